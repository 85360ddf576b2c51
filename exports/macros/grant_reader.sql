{#
  Run last: the role POSTGRES_READER_ROLE may look at the public schema and select from every exported table, from
  nothing else. Where the user may not make the role or grant to it, a warning says what an administrator should run.

  Not dbt's `grants`: they fail where the role is missing, and revoke what others granted.
#}
{% macro grant_reader() %}
  {%- if execute and flags.WHICH in ('build', 'run') -%}
    {%- set missing = run_query(missing_grants()).columns[0].values() -%}
    {%- if missing -%}
      {%- call statement('grant_reader', auto_begin=true) -%}{{ give_missing_grants() }}{%- endcall -%}
      {%- do adapter.commit() -%}
      {%- set missing = run_query(missing_grants()).columns[0].values() -%}
    {%- endif -%}
    {%- if missing -%}
      {%- do exceptions.warn('Readers cannot read all exported tables: ' ~ target.user ~ ' may not make or grant the role '
            ~ reader_role() ~ '. Have an administrator run in the database ' ~ target.database ~ ': '
            ~ missing | join('; ') ~ ';') -%}
    {%- endif -%}
  {%- endif -%}
{% endmacro %}


{% macro reader_role() %}
  {%- set role = env_var('POSTGRES_READER_ROLE', '') or 'bike_data_reader' -%}
  {%- if not modules.re.match('(?!pg_|public$|none$)[a-z_][a-z0-9_]*$', role) -%}
    {%- do exceptions.raise_compiler_error('POSTGRES_READER_ROLE is malformed: ' ~ role
          ~ '. Give lower-case letters, digits and underscores.') -%}
  {%- endif -%}
  {{ return(role) }}
{% endmacro %}


{# The statements that are still to be run, in order. #}
{% macro missing_grants() %}
  {%- set tables = [] -%}
  {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.package_name == project_name -%}
    {%- do tables.append("('" ~ node.schema ~ "', '" ~ node.alias ~ "')") -%}
  {%- endfor -%}
  with reader as (
      select pg_roles.oid, wanted.name
      from (values ('{{ reader_role() }}'::name)) as wanted (name)
      left join pg_roles on pg_roles.rolname = wanted.name
  ),
  exported as (
      select pg_class.oid, pg_namespace.oid as schema_id, pg_namespace.nspname, pg_class.relname
      from pg_class
      inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
      where (pg_namespace.nspname, pg_class.relname) in ({{ tables | join(', ') }})
  ),
  missing as (
      select 1 as step, format('create role %I nologin', name) as statement
      from reader
      where oid is null
      union
      select 2, format('grant usage on schema %I to %I', nspname, name)
      from exported cross join reader
      where reader.oid is null or not has_schema_privilege(reader.oid, schema_id, 'usage')
      union
      select 3, format('grant select on %I.%I to %I', nspname, relname, name)
      from exported cross join reader
      where reader.oid is null or not has_table_privilege(reader.oid, exported.oid, 'select')
  )
  select statement from missing order by step, statement
{% endmacro %}


{#
  What fails here is still missing afterwards, and so is told. The lock is for runs in this database; a run in another
  one that makes the same role at this very moment has it made for us.
#}
{% macro give_missing_grants() %}
do $grant_reader$
declare
    missing text;
begin
    perform pg_advisory_xact_lock(hashtext('{{ reader_role() }}'));
    for missing in {{ missing_grants() }} loop
        begin
            execute missing;
        exception when others then null;
        end;
    end loop;
end
$grant_reader$
{% endmacro %}
