{{ config(meta={'copies': 'fct_daily_station_readings'}) }}

with days as (
    select * from {{ ref('fct_daily_station_readings') }}
),

final as (
    select
        dt as date,
        readings_count as total_records,
        stations_count as unique_stations,
        first_observed_at as earliest_reading,
        last_observed_at as latest_reading,
        average_bikes as avg_bikes,
        average_spaces as avg_spaces,
        last_fetched_at as processed_at,
    from days
)

select * from final
