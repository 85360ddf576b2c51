{{ config(meta={'copies': 'fct_daily_station_availability'}) }}

with mart as (
    select * from {{ ref('fct_daily_station_availability') }}
),

final as (
    select
        dt as date,
        -- PostgreSQL's text holds no NUL
        * exclude (dt) replace (replace(name, chr(0), '') as name),
    from mart
)

select * from final
