{{ config(code_version=1) }} -- of the macros latest_fetch and time_ordered_uuid

-- Straight from bronze, by the same staging SQL as the lake's readings, as the station readings are.
with lines as (
    select * from {{ ref('stg_wrm__station_lines') }}
),

latest as (
    {{ latest_fetch('free_bike') }}
),

final as (
    select
        {{ time_ordered_uuid('observed_at', "'wrm:' || id") }} as id,
        id as bike_id,
        observed_at as "timestamp",
        -- PostgreSQL's text holds no NUL
        replace(name, chr(0), '') as name,
        latitude,
        longitude,
        battery_pct,
        is_outside_service_area,
        is_name_mended,
        snapshot_observed_at::date as date,
        fetched_at as processed_at,
    from latest
)

select * from final
order by "timestamp", bike_id
