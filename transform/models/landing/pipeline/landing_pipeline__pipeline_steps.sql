{{ config(meta={'copies': 'fct_pipeline_steps'}) }}

with mart as (
    select * from {{ ref('fct_pipeline_steps') }}
),

final as (
    select
        dt as date,
        -- PostgreSQL's text holds no NUL
        * exclude (dt) replace (replace(error, chr(0), '') as error),
    from mart
)

select * from final
