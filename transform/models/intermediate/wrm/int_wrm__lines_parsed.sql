{{ config(grows=true) }}

with lines as (
    select * from {{ ref('stg_wrm__station_lines') }}
),

final as (
    select
        payload_sha256,
        line_number::integer as line_number,
        snapshot_observed_at,
        fetched_at,
        is_rejected,
        kind,
        case when not is_rejected then id end as id,
        observed_at,
        case when not is_rejected then name end as name,
        coalesce(is_name_mended and not is_rejected, false) as is_name_mended,
        case when not is_rejected then latitude end as latitude,
        case when not is_rejected then longitude end as longitude,
        case when not is_rejected then bikes_count end::integer as bikes_count,
        case when not is_rejected then spaces_count end::integer as spaces_count,
        docks_count,
        pedelecs_count,
        battery_pct,
        is_installed,
        is_locked,
        is_temporary,
        local_offset_seconds,
        server_offset_seconds,
        extra_fields,
        is_over_capacity,
        has_capacity_mismatch,
        is_outside_service_area,
        rejection_reasons,
        -- the text is kept only where nothing else holds it
        case when is_rejected then line end as rejected_line,
    from lines
)

select * from final
