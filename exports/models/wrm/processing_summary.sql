{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        pre_hook="{{ remove_outdated('landing_wrm__processing_summary', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__processing_summary') }}",
    )
}}

select
    date,
    snapshots,
    payload_bytes,
    lines,
    station_readings,
    free_bike_readings,
    duplicates,
    quarantined,
    quarantined_by_reason,
    mended_names,
    kept_pct,
    fetch_attempts,
    failed_fetches,
    unchanged_fetches,
    fetch_success_pct,
    fetch_seconds,
    silver_seconds,
    processed_at
from {{ source('landing', 'landing_wrm__processing_summary') }}
