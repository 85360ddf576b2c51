{{
    config(
        incremental_strategy='upsert_newest',
        unique_key=['bike_id', 'timestamp'],
        indexes=[{'columns': ['timestamp']}, {'columns': ['date']}],
        pre_hook="{{ remove_outdated('landing_wrm__free_bikes', ['bike_id', 'timestamp'], 'processed_at') }}",
        post_hook="{{ mark_exported('landing_wrm__free_bikes') }}",
    )
}}

-- a feed that stands still over midnight gives the same reading on two days; time comes first, so that a day's rows
-- lie together in the table however much lands at once
select distinct on ("timestamp", bike_id)
    id,
    bike_id,
    "timestamp",
    name,
    latitude,
    longitude,
    battery_pct,
    is_outside_service_area,
    is_name_mended,
    date,
    processed_at
from {{ source('landing', 'landing_wrm__free_bikes') }}
order by "timestamp", bike_id, processed_at desc, date desc
