{#
  Fails for every key that stands on more than one row, and for every row without a whole key.

  A key with `dt` in it is looked at a day at a time, when the test is compiled, so that memory does not grow with the
  days; the test itself then reads the days that were found to fail, if any.
#}
{% test unique_key(model, columns) %}
  {%- set days = days_tested(model) if 'dt' in columns else [] -%}
  {%- set failing = [] -%}
  {%- for day in days -%}
    {%- if run_query('from (' ~ keys_that_fail(read_days([day]), columns) ~ '\n) limit 1').rows | length -%}
      {%- do failing.append(day) -%}
    {%- endif -%}
  {%- endfor -%}
  {%- if failing -%}
    {{ keys_that_fail(read_days(failing), columns) }}
  {%- elif days -%}
    {{ keys_that_fail('(select * from ' ~ model ~ ' limit 0) as nothing_fails', columns) }}
  {%- else -%}
    {{ keys_that_fail(model, columns) }}
  {%- endif -%}
{% endtest %}


{% macro keys_that_fail(rows, columns) %}
select
    {{ columns | join(', ') }},
    {% if 'dt' not in columns %}min(dt) as dt,{% endif %}
    count(*) as rows_count,
    'the key {{ columns | join(", ") }} is not whole, or stands on more than one row' as failure_reason,
from {{ rows }}
group by all
having count(*) > 1 or {{ columns | join(' is null or ') }} is null
{%- endmacro %}


{# Fails for readings that claim a place which is not on Earth. #}
{% test coordinates_on_earth(model, latitude='latitude', longitude='longitude') %}
select
    dt,
    {{ latitude }},
    {{ longitude }},
    count(*) as rows_count,
    'no place on Earth' as failure_reason,
from {{ model }}
where not coalesce({{ latitude }} between -90 and 90 and {{ longitude }} between -180 and 180, false)
group by all
{% endtest %}


{# Fails where more than `most_pct` of a day's readings hold more bikes than docks. One row per such day. #}
{% test within_capacity(model, most_pct, bikes='bikes_count', docks='docks_count') %}
select
    dt,
    100.0 * count(*) filter ({{ bikes }} > {{ docks }}) / count(*) as over_capacity_pct,
    'more than {{ most_pct }} % of the readings hold more bikes than docks' as failure_reason,
from {{ model }}
group by dt
having 100.0 * count(*) filter ({{ bikes }} > {{ docks }}) / count(*) > {{ most_pct }}
{% endtest %}


{# Fails for every row whose `moment` lies before that of the row before it, in the order of `by`. #}
{% test monotone_time(model, moment, by) %}
select
    {{ by }},
    {{ moment }},
    lag({{ moment }}) over (order by {{ by }}) as earlier,
    '{{ moment }} goes back in time' as failure_reason,
from {{ model }}
qualify {{ moment }} < lag({{ moment }}) over (order by {{ by }})
{% endtest %}


{# Fails for every day on which more than `most_pct` of the stations stood unchanged for 24 hours while others changed. #}
{% test few_stations_frozen(model, most_pct) %}
select
    dt,
    frozen_stations_count,
    frozen_station_ids,
    'more than {{ most_pct }} % of the stations did not change for 24 hours' as failure_reason,
from {{ model }}
where frozen_stations_count > stations_count * {{ most_pct }} / 100
{% endtest %}


{# Fails for every reason that the seed of rules does not know as one to reject a line for. #}
{% test known_rejection_reasons(model, column_name, rules) %}
select
    dt,
    reason,
    count(*) as rows_count,
    'no rule of severity reject in {{ rules.identifier }}' as failure_reason,
from (select dt, unnest({{ column_name }}) as reason from {{ model }})
where reason not in (select code from {{ rules }} where severity = 'reject')
group by dt, reason
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
      {%- set rows = run_query("select object from built_days where model = '" ~ node.name ~ "' order by 1") -%}
      {%- do objects.extend(rows.columns[0].values()) -%}
      {%- if not objects -%}
        {{ return('(select * from ' ~ relation ~ ' limit 0) as nothing_built') }}
      {%- endif -%}
      {{ return('(select * from ' ~ read_days(objects) ~ ') as days_built') }}
    {%- endfor -%}
  {%- endif -%}
  {{ return(default__get_where_subquery(relation)) }}
{% endmacro %}


{# The rows of some objects of a daily partition, as SQL. #}
{% macro read_days(objects) %}
  {{ return("read_parquet(['" ~ objects | join("', '") ~ "'], hive_partitioning = true)") }}
{% endmacro %}


{# The objects that a test reads, a day each, where it reads several days of a daily partition; else none. `read` is
   what `get_where_subquery` gave. #}
{% macro days_tested(read) %}
  {%- if not execute or flags.WHICH not in ('build', 'test', 'show') -%}
    {{ return([]) }}
  {%- endif -%}
  {%- set objects = modules.re.findall("'([^']+/dt=[^']+)'", read | string) -%}
  {%- set identifier = (read | string).split('.')[-1].strip('"') -%}
  {%- for node in graph.nodes.values()
        if not objects and node.name == identifier and node.config.materialized == 'daily_partition' -%}
    {%- set pattern = partition_path(model_folder(node), '*') -%}
    {%- do objects.extend(run_query("select file from glob('" ~ pattern ~ "') order by 1").columns[0].values()) -%}
  {%- endfor -%}
  {{ return(objects if objects | length > 1 else []) }}
{% endmacro %}
