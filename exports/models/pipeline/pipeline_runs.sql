{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['date']}, {'columns': ['started_at']}],
        pre_hook="{{ remove_outdated('landing_pipeline__pipeline_runs', ['date']) }}",
        post_hook="{{ mark_exported('landing_pipeline__pipeline_runs') }}",
    )
}}

select
    date,
    run_id,
    job,
    trigger,
    environment,
    started_at,
    ended_at,
    seconds,
    outcome,
    error,
    steps_count,
    failed_steps_count,
    fetch_attempts_count,
    failed_fetch_attempts_count,
    snapshots_loaded_count,
    rows_loaded_count,
    loaded_bytes,
    rows_built_count,
    rows_exported_count,
    git_commit,
    host,
    process,
    versions::jsonb as versions
from {{ source('landing', 'landing_pipeline__pipeline_runs') }}
