{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        pre_hook="{{ remove_outdated('landing_wrm__daily_network', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__daily_network') }}",
    )
}}

select
    date,
    stations_count,
    docks_count,
    average_docked_bikes,
    average_spaces,
    departures_count,
    arrivals_count,
    empty_pct,
    full_pct,
    peak_hour_started_at,
    peak_hour_started_at_warsaw,
    stations_empty_at_peak_pct,
    stations_full_at_peak_pct,
    hour_profile::jsonb as hour_profile,
    free_bikes_count,
    average_free_bikes,
    max_free_bikes,
    free_bikes_outside_area_count,
    readings_count,
    first_observed_at,
    last_observed_at
from {{ source('landing', 'landing_wrm__daily_network') }}
