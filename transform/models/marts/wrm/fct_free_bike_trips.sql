{{ config(code_version=1) }} -- of the macros distance_meters and utc_of_warsaw

-- One spell ended here and the bike's next began there. Between them the feed shows nothing: a bike that was docked on
-- the way, or carried by a van, looks the same. What took more than a day is no trip.
with spells as (
    select * from {{ ref('int_wrm__free_bike_spells_carried') }}
),

moved as (
    select
        bike_id,
        previous_ended_at as departed_at,
        started_at as arrived_at,
        epoch_us(started_at - previous_ended_at) / 60000000.0 as duration_minutes,
        previous_latitude as start_latitude,
        previous_longitude as start_longitude,
        first_latitude as end_latitude,
        first_longitude as end_longitude,
        {{ distance_meters('previous_latitude', 'previous_longitude', 'first_latitude', 'first_longitude') }}
            as distance_meters,
        previous_battery_pct as start_battery_pct,
        first_battery_pct as end_battery_pct,
        is_previous_outside_service_area or is_first_outside_service_area as is_outside_service_area,
    from spells
    -- each trip once, on the day it ended
    where started_at >= {{ utc_of_warsaw(day_built()) }}
),

final as (
    select
        bike_id,
        departed_at,
        arrived_at,
        duration_minutes,
        start_latitude,
        start_longitude,
        end_latitude,
        end_longitude,
        distance_meters,
        distance_meters / 1000 / (duration_minutes / 60) as speed_kmh,
        start_battery_pct,
        end_battery_pct,
        is_outside_service_area,
        true as is_inferred,
    from moved
    where distance_meters > 50 and duration_minutes <= 24 * 60
)

select * from final
order by bike_id, departed_at
