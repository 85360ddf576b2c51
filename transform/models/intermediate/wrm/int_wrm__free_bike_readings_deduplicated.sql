{{ config(code_version=2) }} -- of the macro latest_stored_fetch

with lines as (
    select * from {{ ref('int_wrm__lines_parsed') }}
),

latest as (
    {{ latest_stored_fetch('free_bike') }}
),

final as (
    select
        id as bike_id,
        observed_at,
        name,
        latitude,
        longitude,
        battery_pct,
        is_installed,
        is_locked,
        is_temporary,
        is_name_mended,
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
order by bike_id, observed_at
