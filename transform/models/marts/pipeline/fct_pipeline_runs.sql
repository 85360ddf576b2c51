{{
    config(
        reads_days={'fct_pipeline_steps': [0, 1]},
    )
}}

-- Of a run over midnight, the later fetches are steps of the next day.
with runs as (
    select * from {{ ref('stg_pipeline__runs') }}
),

steps as (
    select * from {{ ref('fct_pipeline_steps') }}
),

counted as (
    select
        run_id,
        count(*) as steps_count,
        count(error) as failed_steps_count,
        count(*) filter (kind = 'fetch') as fetch_attempts_count,
        count(error) filter (kind = 'fetch') as failed_fetch_attempts_count,
        sum(rows_count) filter (kind = 'dlt_load' and name = 'station_snapshots') as snapshots_loaded_count,
        sum(rows_count) filter (kind = 'dlt_load') as rows_loaded_count,
        sum(size_bytes) filter (kind = 'dlt_load') as loaded_bytes,
        sum(rows_count) filter (
            kind = 'dbt_node'
            and resource_type = 'model'
            and project = 'transform'
            and not starts_with(name, 'landing_')
        ) as rows_built_count,
        sum(rows_count) filter (
            kind = 'dbt_node' and resource_type = 'model' and project = 'exports'
        ) as rows_exported_count,
    from steps
    -- every run adds to the history of runs
    where
        name not in ('fct_pipeline_runs', 'fct_pipeline_steps', 'pipeline_runs', 'pipeline_steps')
        or error is not null
    group by run_id
),

final as (
    select
        runs.run_id,
        runs.job,
        runs.trigger,
        runs.environment,
        runs.started_at,
        runs.ended_at,
        epoch_us(runs.ended_at - runs.started_at) / 1000000.0 as seconds,
        runs.outcome,
        runs.error,
        coalesce(counted.steps_count, 0) as steps_count,
        coalesce(counted.failed_steps_count, 0) as failed_steps_count,
        coalesce(counted.fetch_attempts_count, 0) as fetch_attempts_count,
        coalesce(counted.failed_fetch_attempts_count, 0) as failed_fetch_attempts_count,
        coalesce(counted.snapshots_loaded_count, 0)::bigint as snapshots_loaded_count,
        coalesce(counted.rows_loaded_count, 0)::bigint as rows_loaded_count,
        coalesce(counted.loaded_bytes, 0)::bigint as loaded_bytes,
        coalesce(counted.rows_built_count, 0)::bigint as rows_built_count,
        coalesce(counted.rows_exported_count, 0)::bigint as rows_exported_count,
        runs.git_commit,
        runs.host,
        runs.process,
        runs.versions,
    from runs
    left join counted using (run_id)
)

select * from final
order by started_at
