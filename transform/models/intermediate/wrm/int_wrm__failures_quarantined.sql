with failures as (
    select * from {{ ref('stg_wrm__failures') }}
),

final as (
    select
        payload_sha256,
        record_number,
        file_observed_at,
        fetched_at,
        rejection_reasons,
        record,
    from failures
    where is_rejected
)

select * from final
order by file_observed_at, payload_sha256, record_number
