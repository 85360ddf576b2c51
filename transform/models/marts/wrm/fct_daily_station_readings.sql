with readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

final as (
    select
        count(*) as readings_count,
        count(distinct station_id) as stations_count,
        min(observed_at) as first_observed_at,
        max(observed_at) as last_observed_at,
        avg(bikes_count) as average_bikes,
        avg(spaces_count) as average_spaces,
        max(fetched_at) as last_fetched_at,
    from readings
    having count(*) > 0
)

select * from final
