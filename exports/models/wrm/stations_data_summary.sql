{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        pre_hook="{{ remove_outdated('landing_wrm__stations_data_summary', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__stations_data_summary') }}",
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
from {{ source('landing', 'landing_wrm__stations_data_summary') }}
