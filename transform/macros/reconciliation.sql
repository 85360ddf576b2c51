{#
  Comparing the lake with PostgreSQL, day by day. `dbt build` looks at the days exported within the last hour, so that
  the cost does not grow with the history; `dbt test` looks at every day. A day that waits to be rebuilt is left out.
#}

{# [dt] of the days to compare for a landing model, as text. #}
{% macro days_to_reconcile(landing_model) %}
  {%- set schema = lake_value('landing_schema') -%}
  {%- do attach_warehouse(schema) -%}
  {%- set recent -%}
    {%- if flags.WHICH == 'build' %} and exported_at > now() - interval '1 hour'{% endif -%}
  {%- endset -%}
  {{ return(run_query("select distinct dt::varchar from postgres_query('warehouse', $$select dt from " ~ schema
      ~ ".exported_objects where model = '" ~ landing_model ~ "'" ~ recent ~ '$$) order by 1').columns[0].values()) }}
{% endmacro %}


{# (dt, row_count) of a model's days, from its state. #}
{% macro lake_row_counts(node) %}
  {%- set folder = lake_value('lake') ~ '/' ~ node.config.layer ~ '/' ~ node.name -%}
  {%- if state_exists(folder) -%}
    select dt, row_count from read_parquet('{{ folder }}/_state.parquet') where fingerprint is not null and row_count > 0
  {%- else -%}
    select null::date as dt, 0 as row_count where false
  {%- endif -%}
{% endmacro %}


{# The objects of a model that hold these days or a day beside one, as a list of SQL strings. #}
{% macro objects_around(node, days) %}
  {%- set folder = lake_value('lake') ~ '/' ~ node.config.layer ~ '/' ~ node.name -%}
  {%- set found = run_query("select distinct state.dt::varchar from read_parquet('" ~ folder ~ "/_state.parquet') as state "
        ~ "join (select unnest(['" ~ days | join("', '") ~ "'])::date as dt) as days "
        ~ 'on abs(state.dt - days.dt) <= 1 where state.fingerprint is not null order by 1').columns[0].values() -%}
  {%- set objects = [] -%}
  {%- for dt in found -%}{%- do objects.append("'" ~ partition_path(folder, dt) ~ "'") -%}{%- endfor -%}
  {{ return(objects) }}
{% endmacro %}


{# A number that two texts share only by accident; PostgreSQL reckons the same. #}
{% macro text_number(text) -%}
('0x' || md5({{ text }})[:15])::bigint
{%- endmacro %}


{% macro postgres_text_number(text) -%}
('x' || left(md5({{ text }}), 15))::bit(60)::bigint
{%- endmacro %}
