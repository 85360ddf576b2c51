-- Runs of readings in which a station's name, place and docks stayed the same; a change and back are two changes.
with readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

compared as (
    select
        station_id,
        observed_at,
        name,
        latitude,
        longitude,
        docks_count,
        is_outside_service_area,
        (
            (name, latitude, longitude, docks_count)
            is distinct from lag((name, latitude, longitude, docks_count)) over station
        ) as is_start,
    from readings
    -- what a clock that is far off says of then is of now
    where observed_at between snapshot_observed_at - interval 1 day and snapshot_observed_at + interval 1 hour
    window station as (partition by station_id order by observed_at)
),

numbered as (
    select
        *,
        count(*) filter (is_start) over (partition by station_id order by observed_at) as run_number,
    from compared
),

final as (
    select
        station_id,
        min(observed_at) as first_observed_at,
        max(observed_at) as last_observed_at,
        any_value(name) as name,
        any_value(latitude) as latitude,
        any_value(longitude) as longitude,
        any_value(docks_count) as docks_count,
        any_value(is_outside_service_area) as is_outside_service_area,
        count(*) as readings_count,
    from numbered
    group by station_id, run_number
)

select * from final
order by station_id, first_observed_at
