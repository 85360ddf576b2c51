{{
    config(
        reads_days={'pipeline__runs': ['previous', 0]},
    )
}}

-- A run may have begun before midnight. Its own attempts are no run's yet while it goes on: a run is recorded at its
-- end.
with runs as (
    select * from {{ ref('stg_pipeline__runs') }}
),

steps as (
    select * from {{ ref('stg_pipeline__steps') }}
),

fetch_attempts as (
    select * from {{ source('wrm', 'fetch_attempts') }}
),

recorded as (
    select
        *,
        md5(run_id || ':' || step_number) as step_id,
    from steps
),

attempts as (
    select
        md5(concat_ws('|', 'fetch', resource, url, attempt_number, epoch_us(attempted_at))) as step_id,
        'fetch' as kind,
        'wrm' as project,
        resource as name,
        case when error is not null then 'failed' when is_unchanged then 'unchanged' else 'taken' end as status,
        attempted_at::timestamp as started_at,
        attempted_at::timestamp + to_microseconds((coalesce(latency_seconds, 0) * 1000000)::bigint) as ended_at,
        response_bytes as size_bytes,
        'HTTP ' || status as message,
        error,
    from fetch_attempts
),

assigned as (
    select
        attempts.*,
        runs.run_id,
    from attempts
    left join runs
        -- when a killed one ended nobody knows, but it was found dead
        on attempts.started_at between runs.started_at and coalesce(runs.ended_at, runs.recorded_at)
    -- of a run and one within it, the inner one works
    qualify row_number() over (partition by attempts.step_id order by runs.started_at desc nulls last) = 1
),

combined as (
    select * from recorded
    union all by name
    select * from assigned
),

final as (
    select
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
        epoch_us(ended_at - started_at) / 1000000.0 as seconds,
        rows_count,
        size_bytes,
        nodes_count,
        message,
        error,
        load_id,
        invocation_id,
    from combined
)

select * from final
order by started_at, step_number
