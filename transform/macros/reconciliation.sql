{#
  Comparing the lake with PostgreSQL, day by day: counts and checksums. `dbt build` looks at the days exported since both
  last agreed, so that the cost does not grow with the history and a day that differs stays in sight; `dbt test` looks
  at every day. A day that waits to be rebuilt is left out.
#}

{# [dt] of the days to compare for a landing model, as text: those that `node`, a model of the lake, has ready. #}
{% macro days_to_reconcile(landing_model, node) %}
  {%- set schema = lake_value('landing_schema') -%}
  {%- set folder = model_folder(node) -%}
  {%- do attach_warehouse(schema) -%}
  {%- if not state_exists(folder) -%}
    {{ return([]) }}
  {%- endif -%}
  {%- set since -%}
    {%- if flags.WHICH == 'build' %} and exported_at > coalesce((select until from {{ schema }}.reconciled where model = '{{ landing_model }}'), '-infinity'){% endif -%}
  {%- endset -%}
  {{ return(run_query(
      "select distinct exported.dt::varchar from postgres_query('warehouse', $$select dt from " ~ schema
      ~ ".exported_objects where model = '" ~ landing_model ~ "' and lake = '" ~ lake_value('lake') ~ "'" ~ since
      ~ "$$) as exported left join read_parquet('" ~ folder ~ "/_state.parquet') as state on state.dt = exported.dt "
      ~ 'where state.dt is null or state.fingerprint is not null order by 1').columns[0].values() | list) }}
{% endmacro %}


{# A model's days within `reach` days of these, as something to select from. #}
{% macro days_of(node, days, reach=0) %}
  {%- set folder = model_folder(node) -%}
  {%- set found = run_query("select distinct state.dt::varchar from read_parquet('" ~ folder ~ "/_state.parquet') as state "
        ~ "join (select unnest(['" ~ days | join("', '") ~ "'])::date as dt) as days "
        ~ 'on abs(state.dt - days.dt) <= ' ~ reach ~ ' where state.fingerprint is not null order by 1').columns[0].values() -%}
  {%- set objects = [] -%}
  {%- for dt in found -%}{%- do objects.append("'" ~ partition_path(folder, dt) ~ "'") -%}{%- endfor -%}
  {%- if objects -%}
    {{ return('read_parquet([' ~ objects | join(', ') ~ '], hive_partitioning = true)') }}
  {%- endif -%}
  {{ return('(from ' ~ node.name ~ ' limit 0)') }}
{% endmacro %}


{# The row's columns ([(name, DuckDB type)]) as one text, alike in both engines: whole numbers, microseconds, and
   thousandths (of degrees, millionths) of broken numbers. #}
{% macro row_text(columns, is_postgres) %}
  {%- set texts = [] -%}
  {%- for name, type in columns -%}
    {%- if type == 'timestamp' and is_postgres -%}
      {%- set text = '(extract(epoch from "' ~ name ~ '") * 1000000)::bigint::text' -%}
    {%- elif type == 'timestamp' -%}
      {%- set text = 'epoch_us("' ~ name ~ '")::text' -%}
    {%- elif type == 'double' -%}
      {%- set text = 'floor("' ~ name ~ '" * ' ~ ('1000000' if 'itude' in name else '1000') ~ ')::bigint::text' -%}
    {%- elif type == 'varchar' and not is_postgres -%}
      {%- set text = 'replace("' ~ name ~ '", chr(0), \'\')' -%}
    {%- else -%}
      {%- set text = '"' ~ name ~ '"::text' -%}
    {%- endif -%}
    {%- do texts.append("coalesce(" ~ text ~ ", '-')") -%}
  {%- endfor -%}
  {{ return("concat_ws('|', " ~ texts | join(', ') ~ ')') }}
{% endmacro %}


{# A number that two texts share only by accident. #}
{% macro text_number(text, is_postgres) %}
  {{ return("('x' || left(md5(" ~ text ~ "), 15))::bit(60)::bigint" if is_postgres else "('0x' || md5(" ~ text ~ ')[:15])::bigint') }}
{% endmacro %}


{# The days on which both sides differ: `lake_rows` is something to select from, with a `date`; `lake_columns` and
   `columns` are [(name, type)] of either side, in the same order. #}
{% macro differing_days(table, days, lake_rows, lake_columns, columns) %}
{%- set dates = "('" ~ days | join("', '") ~ "')" -%}
(
    with in_lake as (
        select
            date,
            count(*) as rows_count,
            sum({{ text_number(row_text(lake_columns, false), false) }})::varchar as checksum,
        from {{ lake_rows }}
        where date in {{ dates }}
        group by date
    ),

    in_postgres as (
        from postgres_query('warehouse', $query$
            select
                date,
                count(*) as rows_count,
                sum({{ text_number(row_text(columns, true), true) }})::text as checksum
            from {{ lake_value('public_schema') }}.{{ table }}
            where date in {{ dates }}
            group by date
        $query$)
    )

    select
        '{{ table }}' as table_name,
        date,
        in_lake.rows_count as rows_in_lake,
        in_postgres.rows_count as rows_in_postgres,
        'lake and PostgreSQL do not hold the same rows of this day; run: scripts/just rebuild ' || date as failure_reason,
    from in_lake
    full join in_postgres using (date)
    where in_lake.rows_count is distinct from in_postgres.rows_count
        or in_lake.checksum is distinct from in_postgres.checksum
)
{%- endmacro %}


{# Run last: where every comparison passed, what is exported until now need not be looked at again. #}
{% macro remember_reconciled(results) %}
  {%- set statuses = [] -%}
  {%- for result in results if 'reconciliation' in result.node.tags -%}
    {%- do statuses.append(result.status | string) -%}
  {%- endfor -%}
  {%- if statuses | length > 1 and statuses | unique | list == ['pass'] -%}
    {%- set schema = lake_value('landing_schema') -%}
    {%- do run_query("call postgres_execute('warehouse', $$insert into " ~ schema ~ '.reconciled '
          ~ 'select model, max(exported_at) from ' ~ schema ~ ".exported_objects group by model "
          ~ 'on conflict (model) do update set until = excluded.until$$)') -%}
  {%- endif -%}
{% endmacro %}
