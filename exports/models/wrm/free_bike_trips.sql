{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['date']}, {'columns': ['departed_at']}],
        pre_hook="{{ remove_outdated('landing_wrm__free_bike_trips', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__free_bike_trips') }}",
    )
}}

select
    date,
    bike_id,
    departed_at,
    arrived_at,
    duration_minutes,
    start_latitude,
    start_longitude,
    end_latitude,
    end_longitude,
    distance_meters,
    speed_kmh,
    start_battery_pct,
    end_battery_pct,
    is_outside_service_area,
    is_inferred
from {{ source('landing', 'landing_wrm__free_bike_trips') }}
