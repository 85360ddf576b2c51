{{ config(meta={'copies': 'fct_free_bike_trips'}) }}

with mart as (
    select * from {{ ref('fct_free_bike_trips') }}
),

final as (
    select
        dt as date,
        * exclude (dt),
    from mart
)

select * from final
