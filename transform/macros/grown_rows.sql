{#
  What a process that stays does not do again when its newest day gets one more bronze object.

  A model that configures `grows=true` makes the rows of each bronze object from that object alone, whatever lies
  beside it. A process that lists only some days (`watch`) keeps the rows of its newest day in DuckDB's memory, with
  the names of the objects that they were made from, and reads only those that it has not met. It starts anew with
  another day or other code, and when an object has gone, as compaction makes one of many.

  Gives SQL for the day's rows; what the lake gets of them is the same as without.
#}
{% macro grown_rows(node, sql, inputs, day) %}
  {%- set source = inputs | selectattr('kind', 'equalto', 'source') | first -%}
  {%- set rows = 'grown__' ~ node.name -%}
  {%- set names = rows ~ '__objects' -%}
  {%- set origin = local_md5(code_fingerprint(node) ~ day.dt) -%}
  {%- do run_query(
        'create table if not exists ' ~ names ~ ' (object varchar, origin varchar); '
        ~ 'set variable held = (select coalesce(list(object), []) from ' ~ names ~ " where origin = '" ~ origin ~ "'); "
        ~ 'set variable found = (select list(file) from ' ~ bronze_objects(source, [day.dt]) ~ ')') -%}
  {%- set met = run_query(
        "select list_has_all(getvariable('found'), getvariable('held')) and len(getvariable('held')) > 0 as is_kept, "
        ~ "len(getvariable('found')) > len(getvariable('held')) as has_more").rows[0] -%}
  {%- set is_kept = met['is_kept'] and not should_full_refresh() -%}
  {%- set into = 'insert into ' ~ rows if is_kept else 'create or replace table ' ~ rows ~ ' as' -%}
  {%- if met['has_more'] or not is_kept -%}
    {# names last: rows whose names are missing are made anew. In a new table: deleted rows stay in memory #}
    {%- do run_query(
          'set variable ' ~ source.name ~ " = list_filter(getvariable('found'), lambda object: "
          ~ ("not list_contains(getvariable('held'), object)" if is_kept else 'true') ~ '); '
          ~ 'create or replace table ' ~ names ~ ' as (from ' ~ names ~ ' limit 0); '
          ~ into ~ ' (\n' ~ sql ~ '\n); '
          ~ 'insert into ' ~ names ~ " select unnest(getvariable('found')), '" ~ origin ~ "'") -%}
  {%- endif -%}
  {{ return('select * from ' ~ rows) }}
{% endmacro %}
