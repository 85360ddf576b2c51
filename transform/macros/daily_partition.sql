{#
  Materialization `daily_partition`: one Parquet object per UTC day, rebuilt only where the day is stale.

      <lake>/<layer>/<model>/dt=YYYY-MM-DD/data.parquet     one day, appears whole or not at all
      <lake>/<layer>/<model>/_state.parquet                 (dt, fingerprint, row_count, built_at) per day

  A model is plain SQL over ref() and source(); it selects no `dt`, the materialization puts it in front.
  To build a day, the session variable of each upstream (named after it) is set to that day's objects, which
  is all that the upstream's view then reads.

  A day is stale when its fingerprint differs from the one in the state. The fingerprint is made of the code
  (of the model and of every ephemeral model it looks through) and of the day's inputs: names of bronze objects
  for a source, the fingerprint in the upstream's state for a model. Bodies of macros are not in it: a model
  that uses one states a `code_version`. A day of an upstream that holds no row counts as no day.

  What a model may configure:

      reads_days={'<input>': [-1, 0]}   days of an input that make one day, relative to it; default [0]. 'previous' is
                                        the latest earlier day that the input has. A model by local days east of
                                        Greenwich reads [-1, 0] and keeps what is in `day_built()`.
      carries_over=true                 a day is made from the model's own day before, too: `day_before()`. A change
                                        reaches every later day.
      closes_days=true                  a day is built once more when a later one appears: `is_newest_day()`.
      keeps='newest'                    only the newest day is kept, as it holds all that the earlier ones said.
      grows=true                        each bronze object gives rows of its own: a process that stays adds those of new
                                        objects to what it has of the newest day (grown_rows.sql).

  A stale day loses its fingerprint in the state before it is rebuilt and gains the new one after it is published,
  so whatever a crash leaves behind is rebuilt by the next run; until then, what reads the model leaves that day as it
  is. A day that fails a test loses its fingerprint as well. A day without inputs loses its partition.

  In a process that lists only some days of bronze (`listed_days`, set by the plugin's `listing_only`), every other day
  of a model that reads a source itself stays as it is: neither stale nor vanished. Models over models plan as ever.

  --full-refresh rebuilds every day; --vars '{from_day: 2025-05-01, to_day: 2025-05-31}' restricts the days, and so
  does --vars '{days: [2025-05-01, 2025-05-31]}': to these and to what is made from them.
#}

{% materialization daily_partition, adapter='duckdb' %}
  {%- set target_relation = this.incorporate(type='view') -%}
  {%- set inputs = daily_inputs(model, config.get('reads_days', {})) -%}
  {%- set folder = model_folder(model) -%}

  {{ run_hooks(pre_hooks) }}

  {%- set plan = plan_days(model, inputs, folder) -%}
  {%- set rows = 0 -%}
  {%- if plan.stale or plan.vanished or load_cached_relation(this) is none -%}
    {%- set rows = build_days(model, sql, inputs, plan, folder, target_relation) -%}
  {%- endif -%}

  {%- call noop_statement('main', 'built days: ' ~ plan.stale | length, 'OK', rows) -%}
  {%- endcall -%}

  {{ run_hooks(post_hooks) }}
  {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


{# Checks the contract, builds what is stale, removes what vanished, and makes the view; gives the rows written. #}
{% macro build_days(node, sql, inputs, plan, folder, relation) %}
  {%- do use_inputs(inputs, (plan.stale or [none])[0], folder) -%}
  {%- if config.get('contract').enforced -%}
    {%- do get_assert_columns_equivalent(dated(sql, none)) -%}
  {%- endif -%}
  {%- if plan.stale or plan.vanished -%}
    {%- do write_state(folder) -%}
  {%- endif -%}
  {%- set rows = [] -%}
  {%- for day in plan.stale -%}
    {%- if not loop.first -%}
      {%- do use_inputs(inputs, day, folder) -%}
    {%- endif -%}
    {%- do rows.append(build_day(node, sql, inputs, folder, day)) -%}
    {%- if loop.index % 30 == 0 -%}
      {%- do write_state(folder) -%}
    {%- endif -%}
  {%- endfor -%}
  {%- for day in plan.vanished -%}
    {%- do lake_file('remove', partition_path(folder, day.dt)) -%}
    {%- do run_query("delete from temp.day_state where dt = '" ~ day.dt ~ "'") -%}
  {%- endfor -%}
  {%- if plan.stale or plan.vanished -%}
    {%- do write_state(folder) -%}
  {%- endif -%}
  {%- do show_partitions(relation, node, inputs, sql, folder) -%}
  {{ return(rows | sum) }}
{% endmacro %}


{# What a model reads, through ephemeral models: [{name, kind: source|model, folder below the lake, reads: days}],
   by name. #}
{% macro daily_inputs(node, reads_days={}) %}
  {%- set found = {} -%}
  {%- for id in node.depends_on.nodes -%}
    {%- if id.startswith('source.') -%}
      {%- set source = graph.sources[id] -%}
      {%- set name = source.source_name ~ '__' ~ source.name -%}
      {%- do found.update({id: {
            'name': name, 'kind': 'source', 'reads': reads_days.get(name, [0]),
            'folder': '/bronze/' ~ source.source_name ~ '/' ~ source.name}}) -%}
    {%- elif id.startswith('model.') and graph.nodes[id].config.materialized == 'ephemeral' -%}
      {%- for input in daily_inputs(graph.nodes[id], reads_days) -%}
        {%- do found.update({input.name: input}) -%}
      {%- endfor -%}
    {%- elif id.startswith('model.') and graph.nodes[id].config.materialized == 'daily_partition' -%}
      {%- set upstream = graph.nodes[id] -%}
      {%- do found.update({id: {
            'name': upstream.name, 'kind': 'model', 'reads': reads_days.get(upstream.name, [0]),
            'folder': '/' ~ upstream.config.layer ~ '/' ~ upstream.name}}) -%}
    {%- elif id.startswith('model.') -%}
      {%- do exceptions.raise_compiler_error(
            'A daily partition cannot be made from ' ~ id ~ ': it is ' ~ graph.nodes[id].config.materialized
            ~ '. Read sources, ephemeral models and daily partitions only.') -%}
    {%- endif -%}
  {%- endfor -%}
  {{ return(found.values() | unique(attribute='name') | sort(attribute='name') | list) }}
{% endmacro %}


{# Fingerprint of the code that makes a day: the model's own and that of what it looks through. #}
{% macro code_fingerprint(node) %}
  {%- set parts = [node.raw_code, node.config.get('code_version', '') | string] -%}
  {%- for id in node.depends_on.nodes | sort -%}
    {%- if id.startswith('model.') and graph.nodes[id].config.materialized == 'ephemeral' -%}
      {%- do parts.append(code_fingerprint(graph.nodes[id])) -%}
    {%- elif id.startswith('seed.') -%}
      {%- do parts.append(graph.nodes[id].checksum.checksum) -%}
    {%- endif -%}
  {%- endfor -%}
  {{ return(local_md5(parts | join('\n--\n'))) }}
{% endmacro %}


{# Compares inputs with the state: {stale: [{dt, fingerprint, present: 'input=day' of what it reads, …}],
   vanished: [{dt}]}. The state is kept in the connection's temporary table `day_state` from here on. #}
{% macro plan_days(node, inputs, folder) %}
  {%- do read_state(folder) -%}
  {%- set carries_over = node.config.get('carries_over', false) -%}
  {%- set keeps_newest = node.config.get('keeps') == 'newest' -%}
  {%- set until_now = 'over (order by dt rows unbounded preceding)' if carries_over else '' -%}
  {%- set rebuild_all = 'true' if should_full_refresh() else 'false' -%}
  {%- set listed = listed_days(node, inputs) -%}
  {%- set tokens = [] -%}
  {%- set reads = [] -%}
  {%- for input in inputs -%}
    {%- do tokens.append(input_tokens(input, listed)) -%}
    {%- for read in input.reads -%}
      {%- do reads.append("('" ~ input.name ~ "', " ~ ('null::integer' if read == 'previous' else read) ~ ')') -%}
    {%- endfor -%}
  {%- endfor -%}
  {%- set query -%}
    with tokens as (select * from ({{ tokens | join(' union all ') }}) where dt is not null),
    reads as (from (values {{ reads | join(', ') }}) as reads (input, days_after)),
    near as (
      select tokens.input, tokens.dt - reads.days_after as dt, tokens.dt as read_dt, token, build_seconds, is_asked
      from tokens join reads on tokens.input = reads.input and reads.days_after is not null
    ),
    targets as (
      select distinct near.dt, reads.input from near cross join reads where reads.days_after is null
    ),
    inputs as (
      from near
      union all
      -- the latest day before, which another input may not have
      select targets.input, targets.dt, tokens.dt as read_dt, token, build_seconds, is_asked
      from targets asof join tokens on targets.input = tokens.input and targets.dt > tokens.dt
    ),
    days as (
      select
        dt,
        bool_or(token is null) as is_unready,
        string_agg(input || ':' || read_dt || ':' || token, ';' order by input, read_dt) as tokens,
        string_agg(input || '=' || read_dt, ',' order by input, read_dt) as present,
        sum(build_seconds) filter (read_dt = dt) as build_seconds,
        bool_or(is_asked) as is_asked,
      from inputs
      group by dt
    ),
    ordered as (
      select
        dt,
        present,
        coalesce(build_seconds, 0) as build_seconds,
        lag(dt) over (order by dt) as before,
        dt = greatest(
          max(dt) over (),
          (select max(dt) from temp.day_state where not {{ is_day_listed('dt', inputs, listed) }})
        ) as is_newest,
        {{ 'bool_or(is_unready) ' ~ until_now if carries_over else 'is_unready' }} as is_unready,
        {#- of all days until then: a sum, as their whole text would grow with the square of the days #}
        {{ "sum(('0x' || md5(dt || tokens)[:15])::bigint) " ~ until_now ~ '::varchar' if carries_over else 'tokens' }} as tokens,
        {{ 'bool_or(is_asked) ' ~ until_now if carries_over else 'is_asked' }} as is_asked,
      from days
    ),
    wanted as (
      select
        *,
        md5('{{ code_fingerprint(node) }}' || tokens
          {%- if node.config.get('closes_days', false) %} || is_newest{% endif %}) as fingerprint,
      from ordered
      {%- if keeps_newest %} where is_newest{% endif %}
    )
    select
      coalesce(wanted.dt, day_state.dt)::varchar as dt,
      wanted.fingerprint,
      coalesce(wanted.present, '') as present,
      wanted.build_seconds,
      wanted.before::varchar as before,
      wanted.is_newest,
      coalesce(wanted.is_asked, {{ is_day_asked('day_state.dt') }}) as is_asked,
      wanted.dt is null as is_vanished,
      wanted.dt is null or day_state.dt is null or day_state.fingerprint is null
        or wanted.fingerprint <> day_state.fingerprint as is_stale,
    from wanted full join temp.day_state as day_state on wanted.dt = day_state.dt
    where not coalesce(wanted.is_unready, false)
      and {{ is_day_listed('coalesce(wanted.dt, day_state.dt)', inputs, listed) }}
      {#- while the newest day waits, the one before stays #}
      {%- if keeps_newest %} and not (select coalesce(bool_or(is_unready), false) from wanted){% endif %}
  {%- endset -%}
  {#- what carries over is made from its day before, which so comes first, asked for or not -#}
  {%- set asked = 'true' if keeps_newest else '(is_asked or is_stale)' if carries_over else 'is_asked' -%}
  {%- set rows = run_query('select * from (' ~ query ~ ') where (is_stale or ' ~ rebuild_all ~ ') and '
                           ~ asked ~ ' order by dt') -%}
  {%- set plan = {'stale': [], 'vanished': []} -%}
  {%- for row in rows -%}
    {%- set day = {'dt': row['dt'] | string, 'fingerprint': row['fingerprint'],
                   'present': (row['present'] or '').split(','), 'before': row['before'],
                   'is_newest': row['is_newest'], 'build_seconds': row['build_seconds']} -%}
    {%- do plan['vanished' if row['is_vanished'] else 'stale'].append(day) -%}
  {%- endfor -%}
  {%- if plan.vanished and not should_full_refresh() and not has_any_day(inputs) -%}
    {%- do exceptions.raise_compiler_error('The lake shows no input at all for ' ~ node.name ~ ', yet '
          ~ plan.vanished | length ~ ' days of it were built: ' ~ folder ~ '. Check LAKE_URL; '
          ~ 'dbt build --full-refresh removes the days.') -%}
  {%- endif -%}
  {%- set dts = (plan.stale + plan.vanished) | map(attribute='dt') | join("', '") -%}
  {%- if dts -%}
    {%- do run_query("update temp.day_state set fingerprint = null where dt in ('" ~ dts ~ "')") -%}
  {%- endif -%}
  {{ return(plan) }}
{% endmacro %}


{# Whether the vars from_day, to_day and days ask for a day, as SQL. #}
{% macro is_day_asked(day) %}
  {%- set conditions = ['true'] -%}
  {%- if var('from_day', none) -%}{%- do conditions.append(day ~ " >= date '" ~ var('from_day') ~ "'") -%}{%- endif -%}
  {%- if var('to_day', none) -%}{%- do conditions.append(day ~ " <= date '" ~ var('to_day') ~ "'") -%}{%- endif -%}
  {%- if var('days', none) -%}
    {%- do conditions.append(day ~ " in (date '" ~ var('days') | join("', date '") ~ "')") -%}
  {%- endif -%}
  {{ return('(' ~ conditions | join(' and ') ~ ')') }}
{% endmacro %}


{# The only days of its sources that a node's plan lists; none where it lists all. Where a day is made from all earlier
   ones, or from whichever was the latest, they have to be known. #}
{% macro listed_days(node, inputs) %}
  {%- set needs_all = [node.config.get('carries_over'), node.config.get('keeps'), node.config.get('lands_whole_history')] -%}
  {%- set sources = inputs | selectattr('kind', 'equalto', 'source') | list -%}
  {%- for input in sources -%}{%- do needs_all.append('previous' in input.reads) -%}{%- endfor -%}
  {%- if not sources or needs_all | select | list -%}
    {{ return([]) }}
  {%- endif -%}
  {{ return(lake_value('listed_days').split(',') | select | list) }}
{% endmacro %}


{# Whether all that a day reads of sources was listed, as SQL. #}
{% macro is_day_listed(day, inputs, listed) %}
  {%- set conditions = ['true'] -%}
  {%- for input in inputs if listed and input.kind == 'source' -%}
    {%- for read in input.reads -%}
      {%- do conditions.append(day ~ (' + (' ~ read ~ ')' if read else '') ~ " in (date '" ~ listed | join("', date '") ~ "')") -%}
    {%- endfor -%}
  {%- endfor -%}
  {{ return('(' ~ conditions | join(' and ') ~ ')') }}
{% endmacro %}


{# Objects of a source, (file): those of the listed days, or all. #}
{% macro bronze_objects(input, listed) %}
  {%- set globs = [] -%}
  {%- for day in listed or ['*'] -%}
    {%- do globs.append("getvariable('lake') || '" ~ input.folder ~ '/dt=' ~ day ~ "/*.parquet'") -%}
  {%- endfor -%}
  {{ return('glob([' ~ globs | join(', ') ~ '])') }}
{%- endmacro %}


{# Whether any input has a day, empty or not; lists them all. #}
{% macro has_any_day(inputs) %}
  {%- set counted -%}
    {%- for input in inputs %}
      select dt from ({{ day_tokens(input) }}) where dt is not null
      {%- if not loop.last %} union all {% endif -%}
    {%- endfor %}
  {%- endset -%}
  {{ return(run_query('select 1 from (' ~ counted ~ ') limit 1').rows | length > 0) }}
{% endmacro %}


{# (input, dt, token, build_seconds, is_asked) per day of an input that holds a row. A day is asked for by the vars, and
   where this run has just built the input's. #}
{% macro input_tokens(input, listed) %}
      select input, dt, token, build_seconds,
        {{ is_day_asked('dt') }}
        {%- if input.kind == 'model' %} or getvariable('lake') || '{{ input.folder }}/dt=' || dt || '/data.parquet'
          in (select object from built_days){% endif %} as is_asked,
      from ({{ day_tokens(input, listed) }})
      where row_count > 0 or row_count is null or token is null
{% endmacro %}


{# (input, dt, token, row_count, build_seconds) per day of one input; the token changes whenever the day's content may
   have, and is null while the day waits to be rebuilt. A compacted object that is a whole day bears the token of the
   objects it was made from in its name: see ingestion/compaction.py. #}
{% macro day_tokens(input, listed=[]) %}
  {%- if input.kind == 'source' %}
      select
        '{{ input.name }}' as input,
        {{ day_of('file') }} as dt,
        case
          when count(*) = 1 and bool_and(regexp_matches(file, '{{ compacted_object() }}'))
            then any_value(regexp_extract(file, '{{ compacted_object() }}', 1))
          else md5(string_agg(parse_filename(file), ',' order by parse_filename(file)))
        end as token,
        null::bigint as row_count,
        null::double as build_seconds,
      from {{ bronze_objects(input, listed) }}
      group by all
  {%- elif is_built(input) %}
      select '{{ input.name }}' as input, dt, fingerprint as token, row_count, build_seconds
      from read_parquet(getvariable('lake') || '{{ input.folder }}/_state.parquet')
  {%- else %}
      select '{{ input.name }}' as input, null::date as dt, '' as token, 0 as row_count, null::double as build_seconds
      where false
  {%- endif %}
{% endmacro %}


{# What the path of a compacted object looks like, with its token. #}
{% macro compacted_object() %}/compacted-([0-9a-f]{32})\.parquet${% endmacro %}


{# Points every input at the objects that make one day; at nothing when `day` is none or an input lacks them. #}
{% macro use_inputs(inputs, day, folder=none) %}
  {%- set settings = [] -%}
  {%- for input in inputs -%}
    {%- set file = 'data' if input.kind == 'model' else '*' -%}
    {%- set objects = [] -%}
    {%- for present in (day.present if day else []) if present.split('=')[0] == input.name -%}
      {%- do objects.append("getvariable('lake') || '" ~ input.folder ~ '/dt=' ~ present.split('=')[1] ~ '/' ~ file ~ ".parquet'") -%}
    {%- endfor -%}
    {%- do settings.append(input.name ~ ' = [' ~ (objects | join(', ') or "'" ~ empty_object(input) ~ "'") ~ ']') -%}
  {%- endfor -%}
  {%- do settings.append('day_built = ' ~ ("date '" ~ day.dt ~ "'" if day else 'null::date')) -%}
  {%- do settings.append('is_newest_day = ' ~ (day.is_newest | lower if day else 'null::boolean')) -%}
  {%- do settings.append('inputs_build_seconds = ' ~ (day.build_seconds if day else 'null') ~ '::double') -%}
  {%- if config.get('carries_over', false) -%}
    {%- set before = "'" ~ partition_path(folder, day.before) ~ "'" if day and day.before else "'" ~ empty_day_before() ~ "'" -%}
    {%- do settings.append('day_before = [' ~ before ~ ']') -%}
  {%- endif -%}
  {%- do run_query('set variable ' ~ settings | join('; set variable ')) -%}
{% endmacro %}


{# The UTC or local day being built, as SQL. #}
{% macro day_built() %}getvariable('day_built'){% endmacro %}


{# Whether the lake has no later day than the one being built, as SQL; for models that close their days. #}
{% macro is_newest_day() %}getvariable('is_newest_day'){% endmacro %}


{# Seconds that it took to build the day's inputs, as SQL. #}
{% macro inputs_build_seconds() %}getvariable('inputs_build_seconds'){% endmacro %}


{# The model's own rows of the day before, for models that carry over; without rows on the first day. #}
{% macro day_before() %}read_parquet(getvariable('day_before'), hive_partitioning = true){% endmacro %}


{# Path of an empty file with the columns that the model's own description names. #}
{% macro empty_day_before() %}
  {%- set path = lake_value('scratch') ~ '/' ~ this.identifier ~ '__before.parquet' -%}
  {%- set columns = [] -%}
  {%- for column in model.columns.values() -%}
    {%- do columns.append('null::' ~ column.data_type ~ ' as ' ~ column.name) -%}
  {%- endfor -%}
  {%- do run_query('copy (select ' ~ columns | join(', ') ~ " limit 0) to '" ~ path ~ "' (format parquet)") -%}
  {{ return(path) }}
{% endmacro %}


{# Path of an empty file with an input's columns. Those of bronze are in the scratch folder from the start; that of
   a model is made here, under the reader's name as well, because several models may be built at once. #}
{% macro empty_object(input) %}
  {%- set scratch = lake_value('scratch') -%}
  {%- if input.kind == 'source' -%}
    {{ return(scratch ~ '/' ~ input.name ~ '.parquet') }}
  {%- endif -%}
  {%- set path = scratch ~ '/' ~ input.name ~ '__for__' ~ this.identifier ~ '.parquet' -%}
  {%- set built = lake_value('lake') ~ input.folder -%}
  {# of one object: the view would list every day #}
  {%- set newest = newest_day("read_parquet('" ~ built ~ "/_state.parquet')") -%}
  {%- set one = partition_path(built, newest) if newest else built ~ '/_empty.parquet' -%}
  {%- do run_query("copy (from read_parquet('" ~ one ~ "', hive_partitioning = true) limit 0) to '" ~ path ~ "' (format parquet)") -%}
  {{ return(path) }}
{% endmacro %}


{% macro dated(sql, dt) -%}
select {{ "cast('" ~ dt ~ "' as date)" if dt else 'null::date' }} as dt, * from (
{{ sql }}
) as model_rows
{%- endmacro %}


{# Builds and publishes one day; gives the number of rows. #}
{% macro build_day(node, sql, inputs, folder, day) %}
  {%- set path = partition_path(folder, day.dt) -%}
  {%- set started_at = modules.datetime.datetime.now() -%}
  {%- set grows = config.get('grows') and day.is_newest and lake_value('listed_days') -%}
  {%- set rows = grown_rows(node, sql, inputs, day) if grows else sql -%}
  {%- set copied = copy_to(dated(rows, day.dt), path, {'fingerprint': day.fingerprint}) -%}
  {%- set seconds = (modules.datetime.datetime.now() - started_at).total_seconds() -%}
  {%- do run_query("delete from temp.day_state where dt = '" ~ day.dt ~ "'; "
                   ~ "insert into temp.day_state values ('" ~ day.dt ~ "', '" ~ day.fingerprint ~ "', "
                   ~ copied ~ ", now()::timestamp, " ~ seconds ~ "); "
                   ~ "insert into built_days values ('" ~ node.name ~ "', '" ~ path ~ "')") -%}
  {{ return(copied) }}
{% endmacro %}


{# Writes one object that appears whole or not at all; gives the number of rows. #}
{% macro copy_to(sql, path, metadata) %}
  {%- set written = path if path.startswith('s3://') else unfinished_path(path) -%}
  {%- do lake_file('prepare', path) -%}
  {%- set entries = [] -%}
  {%- for key, value in metadata.items() -%}{%- do entries.append(key ~ ": '" ~ value ~ "'") -%}{%- endfor -%}
  {%- set result = run_query(
        'copy (\n' ~ sql ~ "\n) to '" ~ written ~ "' (format parquet, compression zstd, row_group_size 122880"
        ~ (', kv_metadata {' ~ entries | join(', ') ~ '}' if entries else '') ~ ')') -%}
  {%- do lake_file('publish', path) -%}
  {{ return(result.columns[0].values()[0] | int) }}
{% endmacro %}


{# Where a local file is written before it is published; the plugin knows the same name. Readers of the folder
   pass it over: it begins with '_' and does not end with '.parquet'. #}
{% macro unfinished_path(path) %}
  {{ return(path.rsplit('/', 1)[0] ~ '/_' ~ path.rsplit('/', 1)[1] ~ '.unfinished') }}
{% endmacro %}


{# Where a model's days are. #}
{% macro model_folder(node) %}
  {{ return(lake_value('lake') ~ '/' ~ node.config.layer ~ '/' ~ node.name) }}
{% endmacro %}


{% macro partition_path(folder, dt) %}
  {{ return(folder ~ '/dt=' ~ dt ~ '/data.parquet') }}
{% endmacro %}


{# Whether a model has a state. One that has a view has, as dbt knows without asking anybody. #}
{% macro is_built(input) %}
  {%- set view = this.incorporate(path={'identifier': input.name}) -%}
  {{ return(load_cached_relation(view) is not none or state_exists(lake_value('lake') ~ input.folder)) }}
{% endmacro %}


{% macro state_exists(folder) %}
  {%- set files = run_query("select count(*) from glob('" ~ folder ~ "/_state.parqu*t')") -%}
  {{ return(files.columns[0].values()[0] > 0) }}
{% endmacro %}


{# Fills temp.day_state. A lost state object is made again from the partitions' own metadata. #}
{% macro read_state(folder) %}
  {%- set is_kept = state_exists(folder) -%}
  {%- do run_query(
        'create or replace temp table day_state '
        ~ '(dt date, fingerprint varchar, row_count bigint, built_at timestamp, build_seconds double)'
        ~ ("; insert into temp.day_state by name from read_parquet('" ~ folder ~ "/_state.parquet')" if is_kept else '')
      ) -%}
  {%- if not is_kept and run_query("from glob('" ~ folder ~ "/dt=*/data.parquet') limit 1").rows | length -%}
    {%- do run_query(
          "insert into temp.day_state select " ~ day_of('file_name') ~ ", decode(value), num_rows, null, null "
          ~ "from parquet_kv_metadata('" ~ folder ~ "/dt=*/data.parquet') "
          ~ "join parquet_file_metadata('" ~ folder ~ "/dt=*/data.parquet') using (file_name) "
          ~ "where decode(key) = 'fingerprint'") -%}
    {%- do write_state(folder) -%}
  {%- endif -%}
{% endmacro %}


{# The newest day of a state, ready ones first; none without days. #}
{% macro newest_day(state) %}
  {{ return(run_query('select coalesce(max(dt) filter (fingerprint is not null), max(dt))::varchar from ' ~ state
                      ).columns[0].values()[0]) }}
{% endmacro %}


{% macro write_state(folder) %}
  {%- do copy_to('select * from temp.day_state order by dt', folder ~ '/_state.parquet', {}) -%}
{% endmacro %}


{# The view that people and other models read: the objects in the variable of its name, or all days. #}
{% macro show_partitions(relation, node, inputs, sql, folder) %}
  {%- set newest = newest_day('temp.day_state') -%}
  {%- if newest -%}
    {%- set every_day = folder ~ '/dt=*/data.parquet' -%}
    {%- set one_day = partition_path(folder, newest) -%}
  {%- else -%}
    {%- do use_inputs(inputs, none, folder) -%}
    {# an empty object and an empty state, from which later processes make the view #}
    {%- set every_day = folder ~ '/_empty.parquet' -%}
    {%- set one_day = every_day -%}
    {%- do copy_to(dated(sql, none) ~ '\nlimit 0', every_day, {}) -%}
    {%- do write_state(folder) -%}
  {%- endif -%}
  {# bound to one object: a glob would be listed, and every day has the same columns #}
  {%- set names = [node.name] + inputs | map(attribute='name') | list -%}
  {%- do run_query('set variable ' ~ node.name ~ " = ['" ~ one_day ~ "']; "
                   ~ 'create or replace view ' ~ relation ~ ' as select * from read_parquet('
                   ~ "coalesce(getvariable('" ~ node.name ~ "'), ['" ~ every_day ~ "']), hive_partitioning = true); "
                   ~ 'reset variable ' ~ names | join('; reset variable ')) -%}
{% endmacro %}


{# The day that an object's path tells, null where its folder is no day's. #}
{% macro day_of(path) %}
  {{ return("try_cast(regexp_extract(" ~ path ~ ", '/dt=([0-9]{4}-[0-9]{2}-[0-9]{2})/[^/]*$', 1) as date)") }}
{% endmacro %}


{# Run last: days that were built just now and failed a test of theirs lose their fingerprint, so that they are built
   and tested again until they pass, and nothing is made from them meanwhile. Failing rows that tell their `dt` spare
   the other days. #}
{% macro forget_failed_days(results) %}
  {%- for result in results if result.status == 'fail' and result.node.resource_type == 'test' -%}
    {%- set failing = '(\n' ~ result.node.compiled_code ~ '\n)' -%}
    {%- set tells_day = 'dt' in run_query('select * from ' ~ failing ~ ' limit 0').column_names -%}
    {%- for id in result.node.depends_on.nodes
          if id.startswith('model.') and graph.nodes[id].config.materialized == 'daily_partition' -%}
      {%- set node = graph.nodes[id] -%}
      {%- set folder = model_folder(node) -%}
      {%- set built = "select " ~ day_of('object') ~ " from built_days where model = '" ~ node.name ~ "'" -%}
      {%- do read_state(folder) -%}
      {%- do run_query('update temp.day_state set fingerprint = null where dt in (' ~ built ~ ')'
                       ~ (' and dt in (select dt from ' ~ failing ~ ')' if tells_day else '')) -%}
      {%- do write_state(folder) -%}
    {%- endfor -%}
  {%- endfor -%}
{% endmacro %}


{% macro lake_file(operation, path) %}
  {%- do adapter.store_relation('lake', this, [], path, 'parquet', {'operation': operation}) -%}
{% endmacro %}


{# What the plugin told DuckDB, as text: lake, scratch, landing_schema, public_schema, listed_days. Asked once a run:
   dbt takes milliseconds for each statement, and a build has hundreds. #}
{% macro lake_value(name) %}
  {%- if not execute -%}{{ return('') }}{%- endif -%}
  {%- if graph.get('lake_values', {}).get('invocation_id') != invocation_id -%}
    {%- set row = run_query(
          "select getvariable('lake') as lake, getvariable('scratch') as scratch, "
          ~ "getvariable('landing_schema') as landing_schema, getvariable('public_schema') as public_schema, "
          ~ "coalesce(array_to_string(getvariable('listed_days')::varchar[], ','), '') as listed_days").rows[0] -%}
    {%- set values = {'invocation_id': invocation_id} -%}
    {%- for column, value in row.dict().items() -%}{%- do values.update({column: value | string}) -%}{%- endfor -%}
    {%- do graph.update({'lake_values': values}) -%}
  {%- endif -%}
  {{ return(graph['lake_values'][name]) }}
{% endmacro %}
