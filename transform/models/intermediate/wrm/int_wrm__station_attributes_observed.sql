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
        lag(observed_at) over station as previous_observed_at,
        row_number() over station as reading_number,
        (
            row_number() over station = 1
            or name is distinct from lag(name) over station
            or latitude is distinct from lag(latitude) over station
            or longitude is distinct from lag(longitude) over station
            or docks_count is distinct from lag(docks_count) over station
        ) as is_start,
    from readings
    -- what a clock that is far off says of then is of now
    where observed_at between snapshot_observed_at - interval 1 day and snapshot_observed_at + interval 1 hour
    window station as (partition by station_id order by observed_at)
),

stations as (
    select
        station_id,
        max(observed_at) as last_observed_at,
        count(*) as readings_count,
    from compared
    group by station_id
),

-- a run ends where the next one starts; runs are few, so that only readings are put in order
final as (
    select
        station_id,
        observed_at as first_observed_at,
        coalesce(lead(previous_observed_at) over station, last_observed_at) as last_observed_at,
        name,
        latitude,
        longitude,
        docks_count,
        is_outside_service_area,
        coalesce(lead(reading_number) over station, stations.readings_count + 1) - reading_number as readings_count,
    from compared
    inner join stations using (station_id)
    where is_start
    window station as (partition by station_id order by observed_at)
)

select * from final
order by station_id, first_observed_at
