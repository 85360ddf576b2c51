{{
    config(
        incremental_strategy='upsert_newest',
        unique_key=['station_id', 'timestamp'],
        indexes=[{'columns': ['station_id']}, {'columns': ['timestamp']}, {'columns': ['date'], 'type': 'brin'}],
        post_hook=[
            "{{ remove_missing('landing_wrm__station_readings', ['station_id', 'timestamp']) }}",
            "{{ mark_exported('landing_wrm__station_readings') }}",
        ],
    )
}}

select
    id,
    station_id,
    "timestamp",
    name,
    bikes,
    spaces,
    date,
    processed_at,
    timezone_1,
    timezone_2
from {{ source('landing', 'landing_wrm__station_readings') }}
