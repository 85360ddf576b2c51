{#
  Incremental strategy `upsert_newest`: insert what is new; of a key that stands already, the row with the newest
  `processed_at` wins, and an older one never overwrites. An equal one does, so that a mended rule reaches rows
  that were exported before. Of the columns in the model's `keep_earliest` the earliest value stays, whichever row wins.
#}
{% macro get_incremental_upsert_newest_sql(arg_dict) %}
  {%- set columns = arg_dict['dest_columns'] | map(attribute='quoted') | list -%}
  {%- set key = arg_dict['unique_key'] -%}
  {%- set earliest = config.get('keep_earliest', []) -%}
  {%- set changing = [] -%}
  {%- set becoming = [] -%}
  {%- set wins = ['excluded.processed_at >= held.processed_at'] -%}
  {%- for column in arg_dict['dest_columns'] if column.name not in key -%}
    {%- set taken = 'excluded.' ~ column.quoted -%}
    {%- set held = 'held.' ~ column.quoted -%}
    {%- do changing.append(column.quoted) -%}
    {%- if column.name in earliest -%}
      {%- do becoming.append('least(' ~ held ~ ', ' ~ taken ~ ')') -%}
      {%- do wins.append(taken ~ ' < ' ~ held) -%}
    {%- elif earliest -%}
      {%- do becoming.append('case when ' ~ wins[0] ~ ' then ' ~ taken ~ ' else ' ~ held ~ ' end') -%}
    {%- else -%}
      {%- do becoming.append(taken) -%}
    {%- endif -%}
  {%- endfor -%}
insert into {{ arg_dict['target_relation'] }} as held ({{ columns | join(', ') }})
select {{ columns | join(', ') }} from {{ arg_dict['temp_relation'] }}
on conflict ({% for column in key %}"{{ column }}"{{ ', ' if not loop.last }}{% endfor %})
do update set
    {% for column in changing %}{{ column }} = {{ becoming[loop.index0] }}{{ ', ' if not loop.last }}{% endfor %}
where ({{ wins | join(' or ') }})
    and ({{ becoming | join(', ') }})
    is distinct from ({% for column in changing %}held.{{ column }}{{ ', ' if not loop.last }}{% endfor %})
{% endmacro %}
