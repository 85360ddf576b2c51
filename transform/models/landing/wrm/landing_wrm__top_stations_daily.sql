with stations as (
    select * from {{ ref('fct_daily_station_availability') }}
),

ranked as (
    select
        *,
        row_number() over (
            partition by dt order by movements_count desc, round(average_bikes, 9) desc, station_id
        )::integer as activity_rank,
    from stations
),

final as (
    select
        dt as date,
        activity_rank,
        station_id,
        -- PostgreSQL's text holds no NUL
        replace(name, chr(0), '') as name,
        movements_count as movements,
        departures_count as departures,
        arrivals_count as arrivals,
        average_bikes as avg_bikes,
        average_spaces as avg_spaces,
        readings_count as records,
    from ranked
    where activity_rank <= 10
)

select * from final
