{{ config(code_version=1) }} -- of the macros latest_fetch and time_ordered_uuid

-- Straight from bronze, by the same staging SQL as the lake's readings: a reading is in PostgreSQL before its
-- day is rebuilt.
with lines as (
    select * from {{ ref('stg_wrm__station_lines') }}
),

latest as (
    {{ latest_fetch('station') }}
),

final as (
    select
        {{ time_ordered_uuid('observed_at', "'wrm:' || id") }} as id,
        id::integer as station_id,
        observed_at as "timestamp",
        -- PostgreSQL's text holds no NUL
        replace(name, chr(0), '') as name,
        bikes_count::integer as bikes,
        spaces_count::integer as spaces,
        snapshot_observed_at::date as date,
        fetched_at as processed_at,
        local_offset_seconds as timezone_1,
        server_offset_seconds as timezone_2,
        docks_count as total_docks,
        is_over_capacity,
        has_capacity_mismatch,
        is_outside_service_area,
        is_name_mended,
    from latest
)

select * from final
order by "timestamp", station_id
