{{
    config(
        reads_days={
            'int_wrm__free_bike_readings_deduplicated': [-1, 0],
            'int_wrm__station_readings_deduplicated': [-1, 0],
        },
        code_version=1,
    )
}} -- of the macros in local_days.sql

with station_hours as (
    select * from {{ ref('fct_hourly_station_availability') }}
),

station_days as (
    select * from {{ ref('fct_daily_station_availability') }}
),

free_bike_readings as (
    select * from {{ ref('int_wrm__free_bike_readings_deduplicated') }}
),

station_readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

hours as (
    select
        hour_started_at,
        any_value(hour_started_at_warsaw) as hour_started_at_warsaw,
        count(*) as stations_count,
        sum(average_bikes) as average_bikes,
        sum(average_spaces) as average_spaces,
        sum(departures_count)::bigint as departures_count,
        sum(arrivals_count)::bigint as arrivals_count,
        100 * sum(empty_minutes) / sum(observed_minutes) as empty_pct,
        100 * sum(full_minutes) / sum(observed_minutes) as full_pct,
    from station_hours
    group by hour_started_at
),

-- the hour with the most movements; of equal ones the first
peak as (
    select
        hour_started_at as peak_hour_started_at,
        hour_started_at_warsaw as peak_hour_started_at_warsaw,
        empty_pct as stations_empty_at_peak_pct,
        full_pct as stations_full_at_peak_pct,
    from hours
    order by departures_count + arrivals_count desc, hour_started_at
    limit 1
),

profile as (
    select
        to_json(list({
            'hour_started_at_warsaw': strftime(hour_started_at_warsaw, '%Y-%m-%dT%H:%M'),
            'hour_started_at': strftime(hour_started_at, '%Y-%m-%dT%H:%MZ'),
            'average_bikes': round(average_bikes, 3),
            'average_spaces': round(average_spaces, 3),
            'departures': departures_count,
            'arrivals': arrivals_count,
            'empty_pct': round(empty_pct, 3),
            'full_pct': round(full_pct, 3)
        } order by hour_started_at))::varchar as hour_profile,
    from hours
),

docked as (
    select
        count(*) as stations_count,
        sum(docks_count)::bigint as docks_count,
        sum(average_bikes) as average_docked_bikes,
        sum(average_spaces) as average_spaces,
        sum(departures_count)::bigint as departures_count,
        sum(arrivals_count)::bigint as arrivals_count,
        100 * sum(empty_minutes) / sum(observed_minutes) as empty_pct,
        100 * sum(full_minutes) / sum(observed_minutes) as full_pct,
        sum(readings_count)::bigint as readings_count,
        min(first_observed_at) as first_observed_at,
        max(last_observed_at) as last_observed_at,
    from station_days
),

-- snapshots without any free bike count, too
readings_of_day as (
    select snapshot_observed_at, null as bike_id, observed_at from station_readings
    union all
    select
        snapshot_observed_at,
        case when not is_outside_service_area then bike_id end as bike_id,
        observed_at,
    from free_bike_readings
),

free_bikes_of_snapshots as (
    select
        snapshot_observed_at,
        count(distinct bike_id) as bikes_count,
    from readings_of_day
    where observed_at >= {{ utc_of_warsaw(day_built()) }} and observed_at < {{ utc_of_warsaw(day_built() ~ ' + 1') }}
    group by snapshot_observed_at
),

free_bikes as (
    select
        (select avg(bikes_count) from free_bikes_of_snapshots) as average_free_bikes,
        (select max(bikes_count) from free_bikes_of_snapshots) as max_free_bikes,
        count(distinct bike_id) filter (not is_outside_service_area) as free_bikes_count,
        count(distinct bike_id) filter (is_outside_service_area) as free_bikes_outside_area_count,
    from free_bike_readings
    where observed_at >= {{ utc_of_warsaw(day_built()) }} and observed_at < {{ utc_of_warsaw(day_built() ~ ' + 1') }}
),

final as (
    select
        docked.stations_count,
        docked.docks_count,
        docked.average_docked_bikes,
        docked.average_spaces,
        docked.departures_count,
        docked.arrivals_count,
        docked.empty_pct,
        docked.full_pct,
        peak.peak_hour_started_at,
        peak.peak_hour_started_at_warsaw,
        peak.stations_empty_at_peak_pct,
        peak.stations_full_at_peak_pct,
        profile.hour_profile,
        free_bikes.free_bikes_count,
        free_bikes.average_free_bikes,
        free_bikes.max_free_bikes,
        free_bikes.free_bikes_outside_area_count,
        docked.readings_count,
        docked.first_observed_at,
        docked.last_observed_at,
    from docked, profile, free_bikes
    left join peak on true
    where docked.stations_count > 0 or free_bikes.free_bikes_count + free_bikes.free_bikes_outside_area_count > 0
)

select * from final
