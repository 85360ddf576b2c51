{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['bike_id', 'started_at']}],
        pre_hook="{{ remove_outdated('landing_wrm__free_bike_idle_spells', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__free_bike_idle_spells') }}",
    )
}}

select
    date,
    bike_id,
    started_at,
    last_observed_at,
    idle_minutes,
    idle_minutes_of_day,
    has_ended,
    latitude,
    longitude,
    is_outside_service_area,
    first_battery_pct,
    last_battery_pct,
    readings_count
from {{ source('landing', 'landing_wrm__free_bike_idle_spells') }}
