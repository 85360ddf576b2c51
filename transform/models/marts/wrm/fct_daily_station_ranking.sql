with readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

changes as (
    select
        station_id,
        name,
        observed_at,
        bikes_count,
        spaces_count,
        bikes_count - lag(bikes_count) over (partition by station_id order by observed_at) as bikes_change,
    from readings
),

stations as (
    select
        station_id,
        arg_max(name, observed_at) as name,
        -- between two readings a bike may leave and another come: these are lower bounds
        coalesce(sum(-bikes_change) filter (bikes_change < 0), 0)::bigint as departures_count,
        coalesce(sum(bikes_change) filter (bikes_change > 0), 0)::bigint as arrivals_count,
        avg(bikes_count) as average_bikes,
        avg(spaces_count) as average_spaces,
        count(*) as readings_count,
    from changes
    group by station_id
),

ranked as (
    select
        (row_number() over (
            order by departures_count + arrivals_count desc, average_bikes desc, station_id
        ))::integer as activity_rank,
        station_id,
        name,
        departures_count + arrivals_count as movements_count,
        departures_count,
        arrivals_count,
        average_bikes,
        average_spaces,
        readings_count,
    from stations
),

final as (
    select * from ranked where activity_rank <= 10
)

select * from final
order by activity_rank
