{% macro landing_schema() %}
  {{ return('landing' if target.schema == 'public' else target.schema ~ '_landing') }}
{% endmacro %}


{# Run first: says what to do where nothing has landed yet. Documentation can do without. #}
{% macro check_landed() %}
  {%- if execute and flags.WHICH != 'generate' -%}
    {%- for id in selected_resources if id.startswith('model.') -%}
      {%- for source_id in graph.nodes[id].depends_on.nodes if source_id.startswith('source.') -%}
        {%- set name = graph.sources[source_id].identifier -%}
        {%- if adapter.get_relation(target.database, landing_schema(), name) is none -%}
          {%- do exceptions.raise_compiler_error('Nothing has landed yet: ' ~ landing_schema() ~ '.' ~ name
                ~ ' is missing. Run: scripts/just export') -%}
        {%- endif -%}
      {%- endfor -%}
    {%- endfor -%}
  {%- endif -%}
{% endmacro %}


{#
  Pre-hook of every export, in the transaction of its upsert: of days that landed whole, what the day no longer holds
  is removed, and so is a row that is newer than the one that landed, because its object was withdrawn.
#}
{% macro remove_outdated(landing_model, key, newest=none) %}
{%- if load_cached_relation(this) -%}
delete from {{ this }} as held
using (
    select distinct dt from {{ source('landing', 'pending_objects') }}
    where model = '{{ landing_model }}' and is_whole_day
) as whole_days
where held.date = whole_days.dt
    and not exists (
        select 1 from {{ source('landing', landing_model) }} as landed
        where {% for column in key %}landed.{{ column }} = held.{{ column }}{{ ' and ' if not loop.last }}{% endfor %}
        {%- if newest %} and landed.{{ newest }} >= held.{{ newest }}{% endif %}
    )
{%- else -%}
select 1
{%- endif -%}
{% endmacro %}


{# Post-hook of every export, in the same transaction: what landed is exported now. #}
{% macro mark_exported(landing_model) %}
with taken as (
    delete from {{ source('landing', 'pending_objects') }} where model = '{{ landing_model }}' returning *
),
gone as (
    delete from {{ landing_schema() }}.exported_objects as exported using taken
    where taken.is_gone and (exported.lake, exported.model, exported.object) = (taken.lake, taken.model, taken.object)
)
insert into {{ landing_schema() }}.exported_objects (lake, model, object, fingerprint, dt)
select lake, model, object, fingerprint, dt from taken where not is_gone
on conflict (lake, model, object)
do update set fingerprint = excluded.fingerprint, exported_at = now()
{% endmacro %}
