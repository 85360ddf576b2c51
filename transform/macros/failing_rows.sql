{# Run last: the first rows of every test that failed or warned, which dbt only counts. #}
{% macro tell_failing_rows(results) %}
  {%- for result in results
        if result.node.resource_type == 'test' and result.status in ('fail', 'warn') and result.node.compiled_code -%}
    {%- set found = run_query('select * from (\n' ~ result.node.compiled_code ~ '\n) as failing_rows limit 5') -%}
    {%- set told = [] -%}
    {%- for row in found -%}
      {%- set values = [] -%}
      {%- for name in found.column_names -%}{%- do values.append(name ~ ' ' ~ row[name]) -%}{%- endfor -%}
      {%- do told.append(values | join(', ')) -%}
    {%- endfor -%}
    {%- do exceptions.warn(result.node.name ~ ': ' ~ told | join('; ')
          ~ ('; …' if (result.failures or 0) > told | length else '')) -%}
  {%- endfor -%}
{% endmacro %}
