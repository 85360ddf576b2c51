{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        pre_hook="{{ remove_outdated('landing_wrm__top_stations_daily', ['date', 'activity_rank']) }}",
        post_hook="{{ mark_exported('landing_wrm__top_stations_daily') }}",
    )
}}

select
    date,
    activity_rank,
    station_id,
    name,
    movements,
    departures,
    arrivals,
    avg_bikes,
    avg_spaces,
    records
from {{ source('landing', 'landing_wrm__top_stations_daily') }}
