with source as (
    select * from {{ source('pipeline', 'steps') }}
),

final as (
    select
        run_id,
        step_number,
        kind,
        project,
        name,
        resource_type,
        status,
        started_at::timestamp as started_at,
        ended_at::timestamp as ended_at,
        rows_count,
        size_bytes,
        nodes_count,
        message,
        error,
        load_id,
        invocation_id,
    from source
)

select * from final
