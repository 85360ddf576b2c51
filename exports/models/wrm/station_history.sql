{{
    config(
        incremental_strategy='delete+insert',
        unique_key=['station_id', 'valid_from'],
        indexes=[{'columns': ['is_current', 'station_id']}],
        pre_hook="{{ remove_outdated('landing_wrm__station_history', ['station_id', 'valid_from']) }}",
        post_hook="{{ mark_exported('landing_wrm__station_history') }}",
    )
}}

select
    date,
    station_id,
    period_number,
    name,
    latitude,
    longitude,
    docks_count,
    valid_from,
    valid_to,
    is_current,
    has_vanished,
    change_kinds,
    has_moved,
    moved_meters,
    is_outside_service_area,
    last_observed_at,
    readings_count
from {{ source('landing', 'landing_wrm__station_history') }}
