{{
    config(
        reads_days={'int_wrm__station_readings_deduplicated': [-1, 0]},
        code_version=1,
    )
}} -- of the macros in local_days.sql

-- A reading holds until the station's next one, at most 15 minutes. Durations are whole microseconds, so that sums
-- do not depend on the order of rows. Hours begin alike in UTC and in Warsaw.
{%- set microseconds_per_hour = 3600000000 %}
{%- set longest_hold = 900000000 %}

with readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

bounds as (
    select
        epoch_us({{ utc_of_warsaw(day_built()) }}) as day_started_us,
        epoch_us({{ utc_of_warsaw(day_built() ~ ' + 1') }}) as day_ended_us,
),

-- of the hour before the day, what still holds and what the first changes are counted from; a feed that stands
-- still over midnight gives the same reading on two UTC days
distinct_readings as (
    select
        station_id,
        epoch_us(observed_at) as observed_us,
        arg_max(name, fetched_at) as name,
        arg_max(bikes_count, fetched_at) as bikes_count,
        arg_max(spaces_count, fetched_at) as spaces_count,
        arg_max(docks_count, fetched_at) as docks_count,
    from readings, bounds
    where epoch_us(observed_at) >= day_started_us - {{ microseconds_per_hour }} and epoch_us(observed_at) < day_ended_us
    group by station_id, observed_us
),

held as (
    select
        *,
        least(lead(observed_us) over station, observed_us + {{ longest_hold }}, day_ended_us) as held_until_us,
        bikes_count - lag(bikes_count) over station as bikes_change,
        greatest(observed_us, day_started_us) as held_from_us,
        observed_us >= day_started_us as is_of_day,
    from distinct_readings, bounds
    window station as (partition by station_id order by observed_us)
),

-- at most 15 minutes long, so a hold touches two hours at most
parts as (
    select
        *,
        held_from_us // {{ microseconds_per_hour }} as hour_number,
        least(held_until_us, (held_from_us // {{ microseconds_per_hour }} + 1) * {{ microseconds_per_hour }})
        - held_from_us as held_us,
    from held
    where held_until_us > held_from_us
    union all
    select
        * replace (null as bikes_change, false as is_of_day),
        held_from_us // {{ microseconds_per_hour }} + 1 as hour_number,
        held_until_us - (held_from_us // {{ microseconds_per_hour }} + 1) * {{ microseconds_per_hour }} as held_us,
    from held
    where held_until_us > (held_from_us // {{ microseconds_per_hour }} + 1) * {{ microseconds_per_hour }}
),

hours as (
    select
        station_id,
        hour_number,
        arg_max(name, observed_us) as name,
        arg_max(docks_count, observed_us) as docks_count,
        sum(held_us)::bigint as observed_us,
        sum(bikes_count::bigint * held_us) / sum(held_us) as average_bikes,
        min(bikes_count) as min_bikes,
        max(bikes_count) as max_bikes,
        sum(spaces_count::bigint * held_us) / sum(held_us) as average_spaces,
        min(spaces_count) as min_spaces,
        max(spaces_count) as max_spaces,
        coalesce(sum(held_us) filter (bikes_count = 0), 0)::bigint as empty_us,
        coalesce(sum(held_us) filter (spaces_count = 0), 0)::bigint as full_us,
        -- between two readings a bike may leave and another come: these are lower bounds
        coalesce(sum(-bikes_change) filter (is_of_day and bikes_change < 0), 0)::bigint as departures_count,
        coalesce(sum(bikes_change) filter (is_of_day and bikes_change > 0), 0)::bigint as arrivals_count,
        count(*) filter (is_of_day) as readings_count,
        make_timestamp(min(observed_us) filter (is_of_day)) as first_observed_at,
        make_timestamp(max(observed_us) filter (is_of_day)) as last_observed_at,
    from parts
    group by station_id, hour_number
),

final as (
    select
        station_id,
        make_timestamp(hour_number * {{ microseconds_per_hour }}) as hour_started_at,
        {{ warsaw_of_utc('make_timestamp(hour_number * ' ~ microseconds_per_hour ~ ')') }} as hour_started_at_warsaw,
        name,
        docks_count,
        observed_us / 60000000.0 as observed_minutes,
        average_bikes,
        min_bikes,
        max_bikes,
        average_spaces,
        min_spaces,
        max_spaces,
        empty_us / 60000000.0 as empty_minutes,
        full_us / 60000000.0 as full_minutes,
        100.0 * (observed_us - empty_us) / observed_us as bikes_available_pct,
        100.0 * (observed_us - full_us) / observed_us as spaces_available_pct,
        departures_count,
        arrivals_count,
        (departures_count + arrivals_count) / (2.0 * nullif(docks_count, 0)) as turnover,
        readings_count,
        first_observed_at,
        last_observed_at,
    from hours
)

select * from final
order by station_id, hour_started_at
