{#
  Descriptions become comments, where they differ from what stands. dbt itself gives every comment again on each run,
  which takes a lock that autovacuum yields to, a dead row in pg_description and 25 ms a model.
#}
{% macro postgres__persist_docs(relation, model, for_relation, for_columns) %}
  {%- set wanted = {} -%}
  {%- if for_relation and config.persist_relation_docs() -%}
    {%- do wanted.update({'': model.description}) -%}
  {%- endif -%}
  {%- if for_columns and config.persist_column_docs() -%}
    {%- for column in model.columns.values() -%}
      {%- do wanted.update({column.name: column.description}) -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if wanted -%}
    {%- for name in differing_comments(relation, wanted) -%}
      {%- set target = 'column ' ~ relation ~ '.' ~ adapter.quote(name) if name else 'table ' ~ relation -%}
      {%- do run_query('comment on ' ~ target ~ ' is ' ~ postgres_escape_comment(wanted[name])) -%}
    {%- endfor -%}
  {%- endif -%}
{% endmacro %}


{# Names of the columns whose comment is another than wanted; '' stands for the table. #}
{% macro differing_comments(relation, wanted) %}
  {%- set query -%}
    select wanted.name
    from (
        values
        {% for name, comment in wanted.items() -%}
        ('{{ name }}', {{ postgres_escape_comment(comment) }}){{ ', ' if not loop.last }}
        {% endfor -%}
    ) as wanted (name, comment)
    inner join (
        select '' as name, obj_description('{{ relation }}'::regclass, 'pg_class') as comment
        union all
        select attname, col_description(attrelid, attnum)
        from pg_attribute
        where attrelid = '{{ relation }}'::regclass and attnum > 0 and not attisdropped
    ) as held using (name)
    where wanted.comment <> coalesce(held.comment, '')
  {%- endset -%}
  {{ return(run_query(query).columns[0].values() | map('default', '', true) | list) }}
{% endmacro %}
