{# Fails for every key that stands on more than one row. #}
{% test unique_key(model, columns) %}
select
    {{ columns | join(', ') }},
    count(*) as rows_count,
    'the key {{ columns | join(", ") }} stands on more than one row' as failure_reason,
from {{ model }}
group by all
having count(*) > 1
{% endtest %}


{#
  What dbt's generic tests read. Within `dbt build`, a daily partition is tested on the days that this run
  built, so that the cost of a run does not grow with the history; `dbt test` looks at every day.
#}
{% macro get_where_subquery(relation) %}
  {%- set objects = [] -%}
  {%- if execute and flags.WHICH == 'build' -%}
    {%- for node in graph.nodes.values()
          if node.name == relation.identifier and node.config.materialized == 'daily_partition' -%}
      {%- set rows = run_query("select object from built_days where invocation = '" ~ invocation_id
            ~ "' and model = '" ~ node.name ~ "' order by 1") -%}
      {%- do objects.extend(rows.columns[0].values()) -%}
      {%- if not objects -%}
        {{ return('(select * from ' ~ relation ~ ' limit 0) as nothing_built') }}
      {%- endif -%}
      {{ return("(select * from read_parquet(['" ~ objects | join("', '") ~ "'], hive_partitioning = true)) as days_built") }}
    {%- endfor -%}
  {%- endif -%}
  {{ return(default__get_where_subquery(relation)) }}
{% endmacro %}
