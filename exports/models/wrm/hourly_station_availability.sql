{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['date']}],
        pre_hook="{{ remove_outdated('landing_wrm__hourly_station_availability', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__hourly_station_availability') }}",
    )
}}

select
    date,
    station_id,
    hour_started_at,
    hour_started_at_warsaw,
    name,
    docks_count,
    observed_minutes,
    average_bikes,
    min_bikes,
    max_bikes,
    average_spaces,
    min_spaces,
    max_spaces,
    empty_minutes,
    full_minutes,
    bikes_available_pct,
    spaces_available_pct,
    departures_count,
    arrivals_count,
    turnover,
    readings_count,
    first_observed_at,
    last_observed_at
from {{ source('landing', 'landing_wrm__hourly_station_availability') }}
