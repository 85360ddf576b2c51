{{
    config(
        incremental_strategy='upsert_newest',
        unique_key=['station_id', 'timestamp'],
        indexes=[{'columns': ['station_id']}, {'columns': ['timestamp']}, {'columns': ['date']}],
        pre_hook="{{ remove_outdated('landing_wrm__bike_stations', ['station_id', 'timestamp'], 'processed_at') }}",
        post_hook="{{ mark_exported('landing_wrm__bike_stations') }}",
    )
}}

-- a feed that stands still over midnight gives the same reading on two days; time comes first, so that a day's rows
-- lie together in the table however much lands at once
select distinct on ("timestamp", station_id)
    id,
    station_id,
    "timestamp",
    name,
    bikes,
    spaces,
    date,
    processed_at,
    timezone_1,
    timezone_2,
    total_docks,
    is_over_capacity,
    has_capacity_mismatch,
    is_outside_service_area,
    is_name_mended
from {{ source('landing', 'landing_wrm__bike_stations') }}
order by "timestamp", station_id, processed_at desc, date desc
