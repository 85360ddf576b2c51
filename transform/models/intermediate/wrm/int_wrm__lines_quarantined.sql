with lines as (
    select * from {{ ref('int_wrm__lines_parsed') }}
),

final as (
    select
        payload_sha256,
        line_number,
        snapshot_observed_at,
        fetched_at,
        rejection_reasons,
        rejected_line as line,
    from lines
    where is_rejected
)

select * from final
order by snapshot_observed_at, payload_sha256, line_number
