{{ config(code_version=2) }} -- of the macro latest_stored_fetch

with lines as (
    select * from {{ ref('int_wrm__lines_parsed') }}
),

latest as (
    {{ latest_stored_fetch('station') }}
),

final as (
    select
        id::integer as station_id,
        observed_at,
        name,
        latitude,
        longitude,
        bikes_count,
        spaces_count,
        docks_count,
        pedelecs_count,
        is_installed,
        is_locked,
        is_name_mended,
        is_over_capacity,
        has_capacity_mismatch,
        is_outside_service_area,
        extra_fields,
        local_offset_seconds,
        server_offset_seconds,
        snapshot_observed_at,
        fetched_at,
        payload_sha256 as _payload_sha256,
        line_number as _line_number,
    from latest
)

select * from final
order by station_id, observed_at
