{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        post_hook=[
            "{{ remove_missing('landing_wrm__daily_station_readings', ['date']) }}",
            "{{ mark_exported('landing_wrm__daily_station_readings') }}",
        ],
    )
}}

select
    date,
    total_records,
    unique_stations,
    earliest_reading,
    latest_reading,
    avg_bikes,
    avg_spaces,
    processed_at
from {{ source('landing', 'landing_wrm__daily_station_readings') }}
