{{ config(tags=['reconciliation']) }}

-- For every landing model that copies a mart; of the columns those that bear the same name and type on both sides.
{%- set comparisons = [] %}
{%- for node in graph.nodes.values()
      if execute and flags.WHICH in ('build', 'test') and node.config.get('meta', {}).get('copies') %}
{%- set mart = graph.nodes.values() | selectattr('name', 'equalto', node.config.meta.copies) | first %}
{%- set table = node.name.split('__')[1] %}
{%- set days = days_to_reconcile(node.name, mart) %}
{%- if days %}
{%- set found = run_query(
      "from postgres_query('warehouse', $$select column_name::text from information_schema.columns where table_schema = '"
      ~ lake_value('public_schema') ~ "' and table_name = '" ~ table ~ "' and data_type <> 'jsonb'$$)"
    ).columns[0].values() | list %}
{%- set columns = [] %}
{%- for column in mart.columns.values() if column.name in found %}
{%- do columns.append((column.name, column.data_type)) %}
{%- endfor %}
{%- set rows = '(select *, dt as date from ' ~ days_of(mart, days) ~ ')' %}
{%- do comparisons.append(differing_days(table, days, rows, columns or [('date', 'date')], columns or [('date', 'date')])) %}
{%- endif %}
{%- endfor %}

{{ comparisons | join('\nunion all\n') or 'select null as date where false' }}
