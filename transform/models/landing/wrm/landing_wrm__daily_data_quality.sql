{{ config(meta={'copies': 'fct_daily_data_quality'}) }}

with mart as (
    select * from {{ ref('fct_daily_data_quality') }}
),

final as (
    select
        dt as date,
        * exclude (dt),
    from mart
)

select * from final
