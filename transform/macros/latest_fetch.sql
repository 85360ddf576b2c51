{# The good lines of a kind in the CTE `lines`, of several of one id and moment the one fetched last. #}
{% macro latest_fetch(kind) -%}
select *
    from lines
    where not is_rejected and kind = '{{ kind }}'
    qualify row_number() over (
        partition by id, observed_at
        order by fetched_at desc, payload_sha256 desc, line_number desc
    ) = 1
{%- endmacro %}
