{{ config(expires=false, meta={'copies': 'dim_bike_stations'}) }}

with mart as (
    select * from {{ ref('dim_bike_stations') }}
),

final as (
    select
        dt as date,
        -- PostgreSQL's text holds no NUL
        * exclude (dt) replace (replace(name, chr(0), '') as name),
    from mart
)

select * from final
