{{
    config(
        incremental_strategy='delete+insert',
        unique_key='date',
        indexes=[{'columns': ['date']}, {'columns': ['run_id']}],
        pre_hook="{{ remove_outdated('landing_pipeline__pipeline_steps', ['date']) }}",
        post_hook="{{ mark_exported('landing_pipeline__pipeline_steps') }}",
    )
}}

select
    date,
    step_id,
    run_id,
    step_number,
    kind,
    project,
    name,
    resource_type,
    status,
    started_at,
    ended_at,
    seconds,
    rows_count,
    size_bytes,
    nodes_count,
    message,
    error,
    load_id,
    invocation_id
from {{ source('landing', 'landing_pipeline__pipeline_steps') }}
