-- an unchanged file is stored once, so its day says nothing of how old a failure is
{{ config(lands_whole_history=true, expires=false) }}

with failures as (
    select * from {{ ref('int_wrm__failures_deduplicated') }}
),

final as (
    select
        failure_key::uuid as id,
        failure_id,
        bike_id,
        station_id,
        failure_type as type,
        description,
        reported_at,
        resolved_at,
        status,
        first_observed_at as created_at,
        to_json(attributes)::varchar as attributes,
        dt as date,
        fetched_at as processed_at,
    from failures
)

select * from final
