with stations as (
    select * from {{ ref('fct_daily_station_ranking') }}
),

final as (
    select
        dt as date,
        activity_rank,
        station_id,
        replace(name, chr(0), '') as name,
        movements_count as movements,
        departures_count as departures,
        arrivals_count as arrivals,
        average_bikes as avg_bikes,
        average_spaces as avg_spaces,
        readings_count as records,
    from stations
)

select * from final
