{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        post_hook=[
            "{{ remove_missing('landing_wrm__daily_station_ranking', ['date', 'activity_rank']) }}",
            "{{ mark_exported('landing_wrm__daily_station_ranking') }}",
        ],
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
from {{ source('landing', 'landing_wrm__daily_station_ranking') }}
