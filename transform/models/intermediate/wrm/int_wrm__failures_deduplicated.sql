with failures as (
    select * from {{ ref('stg_wrm__failures') }}
),

latest as (
    select
        *,
        min(file_observed_at) over (partition by failure_key) as first_observed_at,
    from failures
    where not is_rejected
    qualify row_number() over (
        partition by failure_key
        order by fetched_at desc, payload_sha256 desc, record_number desc
    ) = 1
),

final as (
    select
        failure_key,
        failure_id,
        bike_id,
        station_id,
        failure_type,
        description,
        reported_at,
        resolved_at,
        status,
        attributes,
        first_observed_at,
        fetched_at,
        payload_sha256 as _payload_sha256,
        record_number as _record_number,
    from latest
)

select * from final
order by failure_key
