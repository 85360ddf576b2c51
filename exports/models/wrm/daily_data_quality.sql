{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        pre_hook="{{ remove_outdated('landing_wrm__daily_data_quality', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__daily_data_quality') }}",
    )
}}

select
    date,
    completeness_pct,
    validity_pct,
    uniqueness_pct,
    consistency_pct,
    quality_score,
    stations_count,
    frozen_stations_count,
    frozen_station_ids::jsonb as frozen_station_ids,
    stale_feed_minutes,
    mended_names_count,
    over_capacity_readings_count,
    capacity_mismatch_readings_count,
    stations_outside_area_count,
    bikes_outside_area_count
from {{ source('landing', 'landing_wrm__daily_data_quality') }}
