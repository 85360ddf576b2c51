{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['date']}],
        pre_hook="{{ remove_outdated('landing_wrm__hourly_coverage', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__hourly_coverage') }}",
    )
}}

select
    date,
    hour_started_at,
    expected_count,
    received_count,
    unchanged_count,
    failed_attempts_count,
    coverage_pct,
    first_observed_at,
    last_observed_at
from {{ source('landing', 'landing_wrm__hourly_coverage') }}
