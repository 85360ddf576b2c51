{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['station_id', 'date']}],
        pre_hook="{{ remove_outdated('landing_wrm__daily_station_ranking', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__daily_station_ranking') }}",
    )
}}

select
    date,
    measure,
    direction,
    station_rank,
    station_id,
    name,
    value
from {{ source('landing', 'landing_wrm__daily_station_ranking') }}
