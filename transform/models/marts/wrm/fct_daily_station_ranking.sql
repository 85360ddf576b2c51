with stations as (
    select * from {{ ref('fct_daily_station_availability') }}
),

measured as (
    select
        station_id,
        name,
        unnest([
            'movements_count',
            'departures_count',
            'arrivals_count',
            'turnover',
            'average_bikes',
            'empty_minutes',
            'full_minutes',
            'bikes_available_pct',
            'spaces_available_pct',
        ]) as measure,
        unnest([
            movements_count,
            departures_count,
            arrivals_count,
            turnover,
            average_bikes,
            empty_minutes,
            full_minutes,
            bikes_available_pct,
            spaces_available_pct,
        ]::double[]) as value,
    from stations
),

-- equal values may differ in the last digit, depending on the order of their sums
ranked as (
    select
        *,
        row_number() over (partition by measure order by round(value, 9) desc, station_id) as rank_from_top,
        row_number() over (partition by measure order by round(value, 9), station_id) as rank_from_bottom,
    from measured
    where value is not null
),

final as (
    select measure, 'top' as direction, rank_from_top::integer as station_rank, station_id, name, value,
    from ranked
    where rank_from_top <= 10
    union all
    select measure, 'bottom' as direction, rank_from_bottom::integer as station_rank, station_id, name, value,
    from ranked
    where rank_from_bottom <= 10
)

select * from final
order by measure, direction, station_rank
