with hours as (
    select * from {{ ref('fct_hourly_station_availability') }}
),

days as (
    select
        station_id,
        arg_max(name, hour_started_at) as name,
        arg_max(docks_count, hour_started_at) as docks_count,
        sum(observed_minutes) as observed_minutes,
        sum(average_bikes * observed_minutes) / sum(observed_minutes) as average_bikes,
        min(min_bikes) as min_bikes,
        max(max_bikes) as max_bikes,
        sum(average_spaces * observed_minutes) / sum(observed_minutes) as average_spaces,
        min(min_spaces) as min_spaces,
        max(max_spaces) as max_spaces,
        sum(empty_minutes) as empty_minutes,
        sum(full_minutes) as full_minutes,
        sum(departures_count)::bigint as departures_count,
        sum(arrivals_count)::bigint as arrivals_count,
        sum(readings_count)::bigint as readings_count,
        min(first_observed_at) as first_observed_at,
        max(last_observed_at) as last_observed_at,
    from hours
    group by station_id
),

final as (
    select
        station_id,
        name,
        docks_count,
        observed_minutes,
        average_bikes,
        min_bikes,
        max_bikes,
        average_spaces,
        min_spaces,
        max_spaces,
        empty_minutes,
        full_minutes,
        100 * ((observed_minutes - empty_minutes) / observed_minutes) as bikes_available_pct,
        100 * ((observed_minutes - full_minutes) / observed_minutes) as spaces_available_pct,
        departures_count,
        arrivals_count,
        departures_count + arrivals_count as movements_count,
        (departures_count + arrivals_count) / (2.0 * nullif(docks_count, 0)) as turnover,
        readings_count,
        first_observed_at,
        last_observed_at,
    from days
)

select * from final
order by station_id
