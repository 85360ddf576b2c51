{{ config(keeps='newest') }}

with periods as (
    select * from {{ ref('int_wrm__station_periods_accumulated') }}
),

final as (
    select
        station_id,
        period_number,
        name,
        latitude,
        longitude,
        docks_count,
        valid_from,
        valid_to,
        is_current,
        has_vanished,
        change_kinds,
        has_moved,
        moved_meters,
        is_outside_service_area,
        last_observed_at,
        readings_count,
    from periods
)

select * from final
order by station_id, valid_from
