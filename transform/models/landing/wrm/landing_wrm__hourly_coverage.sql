{{ config(meta={'copies': 'fct_hourly_coverage'}) }}

with mart as (
    select * from {{ ref('fct_hourly_coverage') }}
),

final as (
    select
        dt as date,
        * exclude (dt),
    from mart
)

select * from final
