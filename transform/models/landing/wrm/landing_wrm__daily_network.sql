{{ config(meta={'copies': 'fct_daily_network'}) }}

with mart as (
    select * from {{ ref('fct_daily_network') }}
),

final as (
    select
        dt as date,
        * exclude (dt),
    from mart
)

select * from final
