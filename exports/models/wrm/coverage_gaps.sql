{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['date']}],
        pre_hook="{{ remove_outdated('landing_wrm__coverage_gaps', ['date']) }}",
        post_hook="{{ mark_exported('landing_wrm__coverage_gaps') }}",
    )
}}

select
    date,
    started_at,
    ended_at,
    gap_minutes,
    missing_snapshots_count
from {{ source('landing', 'landing_wrm__coverage_gaps') }}
