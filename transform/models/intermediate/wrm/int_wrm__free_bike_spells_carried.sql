{{
    config(
        reads_days={
            'int_wrm__free_bike_readings_deduplicated': [-1, 0],
            'int_wrm__station_readings_deduplicated': [-1, 0],
        },
        carries_over=true,
        code_version=1,
    )
}} -- of the macros distance_meters and utc_of_warsaw

-- A spell goes on while the bike is seen within 50 m of where it was. It ends when the bike is elsewhere, or was
-- missing from a snapshot for more than 15 minutes; hours without any snapshot end nothing. The last spell of a bike
-- that is away is carried for two days, for the trip that may follow.
with readings as (
    select * from {{ ref('int_wrm__free_bike_readings_deduplicated') }}
),

station_readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

before as (
    select * from {{ day_before() }}
    qualify row_number() over (partition by bike_id order by started_at desc) = 1
),

bounds as (
    select
        {{ utc_of_warsaw(day_built()) }} as day_started_at,
        {{ utc_of_warsaw(day_built() ~ ' + 1') }} as day_ended_at,
),

-- a feed that stands still over midnight gives the same reading on two UTC days
distinct_readings as (
    select
        bike_id,
        observed_at,
        max(snapshot_observed_at) as snapshot_observed_at,
        arg_max(latitude, fetched_at) as latitude,
        arg_max(longitude, fetched_at) as longitude,
        arg_max(battery_pct, fetched_at) as battery_pct,
        arg_max(is_outside_service_area, fetched_at) as is_outside_service_area,
    from readings, bounds
    where observed_at >= day_started_at and observed_at < day_ended_at
    group by bike_id, observed_at
),

-- snapshots of the day count from 1, also those without any free bike; number 0 is the last one before the day, at
-- which some bikes were away already
snapshots as (
    select
        snapshot_observed_at,
        row_number() over (order by snapshot_observed_at) as snapshot_number,
    from (
        select snapshot_observed_at from distinct_readings
        union
        select snapshot_observed_at
        from station_readings, bounds
        where observed_at >= day_started_at and observed_at < day_ended_at
    )
),

sightings as (
    select
        bike_id,
        observed_at,
        snapshot_number,
        latitude,
        longitude,
        battery_pct,
        is_outside_service_area,
        false as is_carried,
    from distinct_readings
    inner join snapshots using (snapshot_observed_at)
    union all
    select
        bike_id,
        last_observed_at as observed_at,
        case when is_present then 0 else -1 end as snapshot_number,
        latitude,
        longitude,
        last_battery_pct as battery_pct,
        is_outside_service_area,
        true as is_carried,
    from before
),

compared as (
    select
        *,
        lag(observed_at) over bike is null
        or {{ distance_meters('lag(latitude) over bike', 'lag(longitude) over bike', 'latitude', 'longitude') }} > 50
        or (
            snapshot_number - lag(snapshot_number) over bike > 1
            and observed_at - lag(observed_at) over bike > interval 15 minute
        ) as is_start,
    from sightings
    window bike as (partition by bike_id order by observed_at, is_carried desc)
),

numbered as (
    select
        *,
        count(*) filter (is_start) over (
            partition by bike_id order by observed_at, is_carried desc
        ) as spell_number,
        (select max(snapshot_number) from snapshots) as last_snapshot_number,
    from compared
),

spells as (
    select
        bike_id,
        spell_number,
        bool_or(is_carried) as is_carried,
        min(observed_at) as started_at,
        max(observed_at) as last_observed_at,
        arg_max(latitude, observed_at) as latitude,
        arg_max(longitude, observed_at) as longitude,
        arg_min(latitude, observed_at) as first_latitude,
        arg_min(longitude, observed_at) as first_longitude,
        arg_min_null(battery_pct, observed_at) as first_battery_pct,
        arg_max(battery_pct, observed_at) as last_battery_pct,
        arg_min(is_outside_service_area, observed_at) as is_first_outside_service_area,
        arg_max(is_outside_service_area, observed_at) as is_outside_service_area,
        count(*) filter (not is_carried) as readings_of_day_count,
        -- on a day without snapshots everything stays as it was
        bool_or(snapshot_number = coalesce(last_snapshot_number, 0)) as is_present,
    from numbered
    group by bike_id, spell_number
),

joined as (
    select
        spells.bike_id,
        case when spells.is_carried then before.started_at else spells.started_at end as started_at,
        spells.last_observed_at,
        spells.latitude,
        spells.longitude,
        case when spells.is_carried then before.first_latitude else spells.first_latitude end as first_latitude,
        case when spells.is_carried then before.first_longitude else spells.first_longitude end as first_longitude,
        case
            when spells.is_carried then before.is_first_outside_service_area
            else spells.is_first_outside_service_area
        end as is_first_outside_service_area,
        case
            when spells.is_carried then before.first_battery_pct
            else spells.first_battery_pct
        end as first_battery_pct,
        coalesce(spells.last_battery_pct, before.last_battery_pct) as last_battery_pct,
        spells.is_outside_service_area,
        spells.is_present,
        spells.readings_of_day_count,
        case when spells.is_carried then before.readings_count else 0 end
        + spells.readings_of_day_count as readings_count,
        case
            when spells.is_carried then before.previous_ended_at
            else lag(spells.last_observed_at) over bike
        end as previous_ended_at,
        case
            when spells.is_carried then before.previous_latitude
            else lag(spells.latitude) over bike
        end as previous_latitude,
        case
            when spells.is_carried then before.previous_longitude
            else lag(spells.longitude) over bike
        end as previous_longitude,
        case
            when spells.is_carried then before.previous_battery_pct
            else lag(spells.last_battery_pct) over bike
        end as previous_battery_pct,
        case
            when spells.is_carried then before.is_previous_outside_service_area
            else lag(spells.is_outside_service_area) over bike
        end as is_previous_outside_service_area,
    from spells
    left join before on spells.bike_id = before.bike_id and spells.is_carried
    window bike as (partition by spells.bike_id order by spells.spell_number)
),

final as (
    select
        bike_id,
        started_at,
        last_observed_at,
        latitude,
        longitude,
        first_latitude,
        first_longitude,
        first_battery_pct,
        last_battery_pct,
        is_first_outside_service_area,
        is_outside_service_area,
        is_present,
        readings_of_day_count,
        readings_count,
        previous_ended_at,
        previous_latitude,
        previous_longitude,
        previous_battery_pct,
        is_previous_outside_service_area,
    from joined, bounds
    where readings_of_day_count > 0 or is_present or last_observed_at > day_started_at - interval 2 day
)

select * from final
order by bike_id, started_at
