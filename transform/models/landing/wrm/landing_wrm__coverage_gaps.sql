{{ config(meta={'copies': 'fct_coverage_gaps'}) }}

with mart as (
    select * from {{ ref('fct_coverage_gaps') }}
),

final as (
    select
        dt as date,
        * exclude (dt),
    from mart
)

select * from final
