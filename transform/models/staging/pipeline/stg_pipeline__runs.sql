-- A run that died between its record and the end of its lease may be told twice: by itself, and as killed.
with source as (
    select * from {{ source('pipeline', 'runs') }}
),

final as (
    select
        run_id,
        job,
        trigger,
        environment,
        started_at::timestamp as started_at,
        ended_at::timestamp as ended_at,
        outcome,
        error,
        git_commit,
        host,
        process,
        versions,
        recorded_at::timestamp as recorded_at,
    from source
    qualify row_number() over (partition by run_id order by outcome = 'killed', recorded_at) = 1
)

select * from final
