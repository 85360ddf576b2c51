{{ config(meta={'copies': 'fct_free_bike_idle_spells'}) }}

with mart as (
    select * from {{ ref('fct_free_bike_idle_spells') }}
),

final as (
    select
        dt as date,
        * exclude (dt),
    from mart
)

select * from final
