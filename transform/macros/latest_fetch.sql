{# The good lines of a kind in the CTE `lines`, of several of one id and moment the one fetched last. #}
{% macro latest_fetch(kind) -%}
select *
    from lines
    where not is_rejected and kind = '{{ kind }}'
    {{ only_last_fetched() }}
{%- endmacro %}


{# The same where `lines` stand parsed, and are read twice at little cost: only what came more than once is put in
   order, which is most of the work. #}
{% macro latest_stored_fetch(kind) -%}
with repeated as (
        select id, observed_at
        from lines
        where not is_rejected and kind = '{{ kind }}'
        group by id, observed_at
        having count(*) > 1
    )

    select lines.*
    from lines anti join repeated using (id, observed_at)
    where not is_rejected and kind = '{{ kind }}'
    union all
    select lines.*
    from lines semi join repeated using (id, observed_at)
    where not is_rejected and kind = '{{ kind }}'
    {{ only_last_fetched() }}
{%- endmacro %}


{# Of several lines of one id and moment the one fetched last. #}
{% macro only_last_fetched() -%}
qualify row_number() over (
        partition by id, observed_at
        order by fetched_at desc, payload_sha256 desc, line_number desc
    ) = 1
{%- endmacro %}
