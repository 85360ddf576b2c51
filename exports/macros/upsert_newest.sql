{#
  Incremental strategy `upsert_newest`: insert what is new; of a key that stands already, the row with the newest
  `processed_at` wins, and an older one never overwrites. An equal one does, so that a mended rule reaches rows
  that were exported before.
#}
{% macro get_incremental_upsert_newest_sql(arg_dict) %}
  {%- set columns = arg_dict['dest_columns'] | map(attribute='quoted') | list -%}
  {%- set key = arg_dict['unique_key'] -%}
  {%- set changing = [] -%}
  {%- for column in arg_dict['dest_columns'] if column.name not in key -%}
    {%- do changing.append(column.quoted) -%}
  {%- endfor -%}
insert into {{ arg_dict['target_relation'] }} as held ({{ columns | join(', ') }})
select {{ columns | join(', ') }} from {{ arg_dict['temp_relation'] }}
on conflict ({% for column in key %}"{{ column }}"{{ ', ' if not loop.last }}{% endfor %})
do update set
    {% for column in changing %}{{ column }} = excluded.{{ column }}{{ ', ' if not loop.last }}{% endfor %}
where excluded.processed_at >= held.processed_at
    and ({% for column in changing %}excluded.{{ column }}{{ ', ' if not loop.last }}{% endfor %})
    is distinct from ({% for column in changing %}held.{{ column }}{{ ', ' if not loop.last }}{% endfor %})
{% endmacro %}
