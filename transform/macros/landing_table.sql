{#
  Materialization `landing_table`: what PostgreSQL does not have yet, in an unlogged table of the landing schema,
  written by DuckDB's `postgres` extension (binary COPY). The exports project upserts it from there.

      <landing>.<model>            rows of the objects that are new, or of whole days that changed
      <landing>.pending_objects    those objects; exports moves them to exported_objects with its upsert
      <landing>.exported_objects   what PostgreSQL holds: lake, model, object name, fingerprint

  An object is a bronze object (its fingerprint is the code that reads it) or a daily partition (its fingerprint
  is the one in its state). Where an object that was exported has another fingerprint now, or is gone, its whole
  day lands, so that exports can also remove what the day no longer holds. --full-refresh lands every day;
  the vars from_day, to_day
  and days restrict what lands from bronze, the rest lands another time. With
  `lands_whole_history` every day lands then: of a row that many days hold, another day's may have to stand in.

  Compaction puts one bronze object in the place of many (ingestion/compaction.py). What PostgreSQL holds of the many
  it holds of the one: the ledger takes the new name, and nothing lands. Where it lacks some of them, the one lands as
  any new object does, and the many are forgotten without being gone.

  In a process that lists only some days of bronze (`listed_days`), what lands from bronze is of these days, and all
  others stay as they are.

  Of days before `export_from_day` (the setting EXPORT_RETENTION_DAYS) nothing lands, and what of them was exported
  counts as gone, so that PostgreSQL gives it up; the lake keeps it. A model with `expires=false` keeps every day.

  Pending objects are written last: whatever a crash leaves behind lands again, and upserting twice is harmless.
#}

{% materialization landing_table, adapter='duckdb' %}
  {%- set target_relation = this.incorporate(type='view') -%}
  {%- set inputs = daily_inputs(model) -%}
  {%- if inputs | length != 1 -%}
    {%- do exceptions.raise_compiler_error('A landing table reads exactly one input: ' ~ model.name ~ ' reads '
          ~ inputs | length ~ '. Join in a mart instead.') -%}
  {%- endif -%}
  {%- set input = inputs[0] -%}
  {%- set schema = lake_value('landing_schema') -%}
  {%- set table = 'warehouse.' ~ schema ~ '.' ~ model.name -%}

  {{ run_hooks(pre_hooks) }}

  {%- do attach_warehouse(schema) -%}
  {%- set planned = plan_landing(model, input, schema) -%}
  {%- do prepare_landing_table(sql, input, schema, model.name, planned) -%}

  {#- day by day, so that memory stays bounded whatever lands -#}
  {%- set days = run_query(
        'select string_agg($$getvariable(\'lake\') || \'$$ || replace(object, $$\'$$, $$\'\'$$) || $$\'$$, '
        ~ '$$, $$ order by object) '
        ~ 'from temp.landing_plan where not is_gone group by dt order by dt').columns[0].values() -%}
  {%- set rows = [] -%}
  {%- for objects in days -%}
    {%- set landed = run_query('set variable ' ~ input.name ~ ' = [' ~ objects ~ ']; '
                               ~ 'insert into ' ~ table ~ ' by name\n' ~ sql ~ '\n') -%}
    {%- do rows.append(landed.columns[0].values()[0] | int) -%}
  {%- endfor -%}
  {%- set removed = run_query(
        'reset variable ' ~ input.name ~ '; insert into warehouse.' ~ schema ~ '.pending_objects '
        ~ "select getvariable('lake'), '" ~ model.name ~ "', object, fingerprint, dt, is_whole_day, is_gone "
        ~ 'from temp.landing_plan; '
        ~ 'select count(*) from (select dt from temp.landing_plan group by dt having bool_and(is_gone))'
      ).columns[0].values()[0] if planned else 0 -%}

  {%- set message = 'removed days: ' ~ removed if removed and not days else 'landed days: ' ~ days | length -%}
  {%- call noop_statement('main', message, 'OK', rows | sum) -%}
  {%- endcall -%}

  {{ run_hooks(post_hooks) }}
  {{ return({'relations': []}) }}
{% endmaterialization %}


{# PostgreSQL as the database `warehouse`, with the landing schema in it. #}
{% macro attach_warehouse(schema) %}
  {%- do adapter.store_relation('lake', this, [], '', 'parquet',
        {'operation': 'attach_warehouse', 'ddl': landing_ddl(schema)}) -%}
{% endmacro %}


{# Run last: dbt asks every attached database what it holds, so that with PostgreSQL away even a build of the lake
   alone would fail. #}
{% macro detach_warehouse() %}
  {%- if execute -%}
    {%- do run_query('detach database if exists warehouse') -%}
  {%- endif -%}
{% endmacro %}


{# In one transaction; the lock is for processes that make the same schema at the same moment. #}
{% macro landing_ddl(schema) %}
select pg_advisory_xact_lock(hashtext('{{ schema }}'));
{#- not "if not exists", which wants the right to make schemas also where it makes none #}
do $schema$ begin
    if to_regnamespace('{{ schema }}') is null then create schema {{ schema }}; end if;
end $schema$;
create table if not exists {{ schema }}.exported_objects (
    lake text, model text, object text, fingerprint text not null, dt date not null,
    exported_at timestamptz not null default now(), primary key (lake, model, object)
);
create unlogged table if not exists {{ schema }}.pending_objects (
    lake text, model text, object text, fingerprint text, dt date, is_whole_day boolean, is_gone boolean
);
{#- how far lake and PostgreSQL were found to agree -#}
create table if not exists {{ schema }}.reconciled (model text primary key, until timestamptz not null);
{%- for old, new in renamed_landing_models().items() %}
update {{ schema }}.exported_objects set model = 'landing_wrm__{{ new }}' where model = 'landing_wrm__{{ old }}';
drop table if exists {{ schema }}.landing_wrm__{{ old }};
{%- endfor %}
{% endmacro %}


{# Landing models that had other names before they were named after their public tables. #}
{% macro renamed_landing_models() %}
  {{ return({
      'station_readings': 'bike_stations',
      'daily_station_readings': 'stations_data_summary',
      'daily_processing': 'processing_summary',
  }) }}
{% endmacro %}


{# Fills temp.landing_plan: (object, fingerprint, dt, is_whole_day, is_gone) of what has to land; gives their number.
   What an earlier run had pending is forgotten first. #}
{% macro plan_landing(node, input, schema) %}
  {%- set listed = listed_days(node, [input]) -%}
  {%- do run_query(
        'delete from warehouse.' ~ schema ~ ".pending_objects where model = '" ~ node.name ~ "'; "
        ~ 'create or replace temp table landing_objects as ' ~ landing_objects(node, input, listed) ~ '; '
        ~ "create or replace temp table present_objects as select * from temp.landing_objects where dt is not null"
        ~ (" and dt >= coalesce(getvariable('export_from_day'), dt)" if node.config.get('expires', true) else '') ~ '; '
        ~ ledger(node, input, schema, listed) ~ '; '
        ~ 'create or replace temp table replaced_objects (compacted varchar, part_of varchar, part varchar, fingerprint varchar)'
      ) -%}
  {%- if input.kind == 'source' -%}
    {%- do take_over_compacted(node, input, schema, listed) -%}
  {%- endif -%}
  {%- set whole = 'is_changed and not is_new' -%}
  {%- if node.config.get('lands_whole_history') -%}
    {%- set whole = '(select bool_or(' ~ whole ~ ') from compared)' -%}
  {%- endif -%}
  {#- of models lands what was built; of bronze itself, what is asked for -#}
  {%- set wanted = ' and ' ~ is_day_asked('dt') if input.kind == 'source' else '' -%}
  {#- of every day: an archive older than what PostgreSQL is to hold is no mistake -#}
  {%- set counts = run_query(
        "create or replace temp table landing_plan as
        with compared as (
            select
                coalesce(present.object, exported.object) as object,
                present.fingerprint,
                coalesce(present.dt, exported.dt) as dt,
                present.object is null as is_gone,
                replaced.part is not null as is_replaced,
                exported.object is null as is_new,
                present.object is not null and present.fingerprint is null as is_unready,
                coalesce(present.fingerprint, replaced.fingerprint) is distinct from exported.fingerprint
                    or " ~ should_full_refresh() | string | lower ~ " as is_changed
            from temp.present_objects as present
            full join temp.exported_objects as exported on present.object = exported.object
            left join (select distinct part, fingerprint from temp.replaced_objects) as replaced
                on replaced.part = exported.object and present.object is null
        ),
        days as (
            select dt, bool_or(" ~ whole ~ ") as is_whole_day, bool_or(is_changed) as has_change
            from compared group by dt
            having not bool_or(is_unready)
        )
        select object, fingerprint, dt, days.is_whole_day, is_gone
        from compared join days using (dt)
        where (days.is_whole_day or (days.has_change and (compared.is_changed or compared.is_replaced)))" ~ wanted ~ ";
        select
            (select count(*) from temp.landing_objects) as present,
            count(*) as planned,
            count(*) filter (is_gone) as gone
        from temp.landing_plan").rows[0] -%}
  {%- if counts['present'] == 0 and counts['gone'] > 0
        and not run_query('from (' ~ landing_objects(node, input) ~ ') limit 1').rows | length -%}
    {%- do exceptions.raise_compiler_error('The lake shows nothing of ' ~ input.name ~ ', yet '
          ~ counts['gone'] ~ ' of its objects were exported: ' ~ lake_value('lake')
          ~ '. Check LAKE_URL; to give the history up, drop the schema ' ~ schema ~ '.') -%}
  {%- endif -%}
  {{ return(counts['planned'] | int) }}
{% endmacro %}


{# The statement that fills temp.exported_objects: (object, fingerprint, dt) of what PostgreSQL holds, of the listed
   days or of all. #}
{% macro ledger(node, input, schema, listed) -%}
  create or replace temp table exported_objects as select object, fingerprint, dt from warehouse.{{ schema }}.exported_objects
  where lake = getvariable('lake') and model = '{{ node.name }}' and {{ is_day_listed('dt', [input], listed) }}
{%- endmacro %}


{# Gives the ledger the name of a compacted object in the place of those that it replaced, where it knows them all.
   Of the others, temp.replaced_objects holds what they replaced: (compacted, part_of, part, fingerprint), of the code
   as it is. Only days on which objects are missing, and a compacted one is new, are looked into. #}
{% macro take_over_compacted(node, input, schema, listed) %}
  {%- set compacted = run_query(
        "select distinct present.object from temp.present_objects as present semi join ("
        ~ 'select dt from temp.exported_objects anti join temp.present_objects using (object)) as missing using (dt) '
        ~ "where regexp_matches(present.object, '" ~ compacted_object() ~ "') "
        ~ 'and present.object not in (select object from temp.exported_objects)').columns[0].values() -%}
  {%- if compacted | length -%}
    {%- set paths = [] -%}
    {%- for object in compacted -%}{%- do paths.append("getvariable('lake') || " ~ text_of(object)) -%}{%- endfor -%}
    {%- do run_query(
          "insert into temp.replaced_objects
          with entries as (
              select
                  replace(file_name, getvariable('lake'), '') as compacted,
                  unnest(map_entries(cast(cast(decode(value) as json) as map(varchar, varchar[])))) as entry
              from parquet_kv_metadata([" ~ paths | join(', ') ~ "])
              where decode(key) = 'replaced'
          ),
          parts as (select compacted, entry.key as part_of, unnest(entry.value) as part from entries)
          select
              compacted,
              parse_dirpath(compacted) || '/' || part_of,
              parse_dirpath(compacted) || '/' || part,
              '" ~ code_fingerprint(node) ~ "'
          from parts") -%}
    {%- set known = run_query(
          "with recursive unknown as (
              select distinct compacted, compacted as object from temp.replaced_objects
              union all
              select parts.compacted, parts.part
              from unknown join temp.replaced_objects as parts
                  on parts.compacted = unknown.compacted and parts.part_of = unknown.object
              where parts.part not in (select object from temp.exported_objects)
          ),
          lacking as (  -- what is no compacted object itself
              select unknown.compacted from unknown anti join temp.replaced_objects as parts
                  on parts.compacted = unknown.compacted and parts.part_of = unknown.object
          )
          select compacted, any_value(exported.dt)::varchar as dt, string_agg(distinct $$'$$ || replace(part, $$'$$, $$''$$) || $$'$$, ', ') as parts
          from temp.replaced_objects join temp.exported_objects as exported on part = exported.object
          where compacted not in (select compacted from lacking)
          group by compacted order by compacted") -%}
    {%- for row in known -%}
      {#- one statement, one transaction; of differing code nothing is said to be current -#}
      {%- set statement -%}
          with replaced as (
              delete from {{ schema }}.exported_objects
              where lake = {{ text_of(lake_value('lake')) }} and model = '{{ node.name }}' and object in ({{ row['parts'] }})
              returning fingerprint, exported_at
          )
          insert into {{ schema }}.exported_objects (lake, model, object, fingerprint, dt, exported_at)
          select {{ text_of(lake_value('lake')) }}, '{{ node.name }}', {{ text_of(row['compacted']) }},
              case when min(fingerprint) = max(fingerprint) then min(fingerprint) else '' end,
              '{{ row['dt'] }}', max(exported_at)
          from replaced
      {%- endset -%}
      {%- do run_query("call postgres_execute('warehouse', " ~ text_of(statement) ~ ")") -%}
      {%- do run_query("delete from temp.replaced_objects where compacted = " ~ text_of(row['compacted'])) -%}
    {%- endfor -%}
    {%- do run_query(ledger(node, input, schema, listed)) -%}
  {%- endif -%}
{% endmacro %}


{# A value as a literal of SQL. #}
{% macro text_of(value) %}{{ return("'" ~ value | replace("'", "''") ~ "'") }}{% endmacro %}


{# (object, fingerprint, dt) of what an input holds, of the listed days or of all. #}
{% macro landing_objects(node, input, listed=[]) %}
  {%- if input.kind == 'source' -%}
    select replace(file, getvariable('lake'), '') as object, '{{ code_fingerprint(node) }}' as fingerprint,
      {{ day_of('file') }} as dt
    from {{ bronze_objects(input, listed) }}
  {%- elif is_built(input) -%}
    select '{{ input.folder }}/dt=' || dt || '/data.parquet' as object,
      md5('{{ code_fingerprint(node) }}' || fingerprint) as fingerprint, dt
    from read_parquet(getvariable('lake') || '{{ input.folder }}/_state.parquet')
  {%- else -%}
    select null::varchar as object, null::varchar as fingerprint, null::date as dt where false
  {%- endif -%}
{% endmacro %}


{# The landing table, empty, with the columns and types that the model gives now. Others mean other code, and so
   something to land. #}
{% macro prepare_landing_table(sql, input, schema, name, planned) %}
  {%- if input.kind == 'model' and not is_built(input) -%}
    {%- do exceptions.raise_compiler_error('Not built yet: ' ~ input.name ~ '. Run: scripts/just transform') -%}
  {%- endif -%}
  {%- set exists = run_query("from postgres_query('warehouse', $$select to_regclass('" ~ schema ~ '.' ~ name ~ "')::text$$)"
        ).columns[0].values()[0] -%}
  {%- set is_kept = exists -%}
  {%- if exists and planned -%}
    {%- do use_inputs([input], none) -%}
    {%- set columns = "select string_agg(column_name || ' ' || column_type, ', ' order by column_name) from (describe " -%}
    {%- set wanted = run_query(columns ~ sql ~ '\n)').columns[0].values()[0] -%}
    {%- set is_kept = wanted == run_query(columns ~ 'warehouse.' ~ schema ~ '.' ~ name ~ ')').columns[0].values()[0] -%}
  {%- elif not exists -%}
    {%- do use_inputs([input], none) -%}
  {%- endif -%}
  {%- if is_kept -%}
    {%- do run_query("call postgres_execute('warehouse', 'truncate " ~ schema ~ '.' ~ name ~ "')") -%}
  {%- else -%}
    {# by DuckDB itself, which so knows the table: clearing its cache of the catalog would pull it from under the
       models that other threads are building #}
    {%- do run_query('drop table if exists warehouse.' ~ schema ~ '.' ~ name) -%}
    {%- do run_query('create table warehouse.' ~ schema ~ '.' ~ name ~ ' as select * from (\n' ~ sql ~ '\n) limit 0') -%}
    {%- do run_query("call postgres_execute('warehouse', 'alter table " ~ schema ~ '.' ~ name ~ " set unlogged')") -%}
  {%- endif -%}
  {%- do run_query('reset variable ' ~ input.name) -%}
{% endmacro %}
