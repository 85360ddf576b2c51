{{ config(tags=['reconciliation']) }}

-- Rows per day on both sides, for every landing model that copies a mart.
{%- set comparisons = [] %}
{%- for node in graph.nodes.values()
      if execute and flags.WHICH in ('build', 'test') and node.config.get('meta', {}).get('copies') %}
{%- set mart = graph.nodes.values() | selectattr('name', 'equalto', node.config.meta.copies) | first %}
{%- set table = node.name.split('__')[1] %}
{%- set days = days_to_reconcile(node.name) %}
{%- if days %}
{%- set dates = "('" ~ days | join("', '") ~ "')" %}
{%- set comparison %}
(
    select
        '{{ table }}' as table_name,
        date,
        in_lake.row_count as rows_in_lake,
        in_postgres.row_count as rows_in_postgres,
        'lake and PostgreSQL do not hold as many rows of this day; run: scripts/just rebuild ' || date
        as failure_reason,
    from (select dt as date, row_count from ({{ lake_row_counts(mart) }}) where dt in {{ dates }}) as in_lake
    full join (
        from postgres_query('warehouse', $query$
            select date, count(*) as row_count from {{ lake_value('public_schema') }}.{{ table }}
            where date in {{ dates }} group by date
        $query$)
    ) as in_postgres using (date)
    where in_lake.row_count is distinct from in_postgres.row_count
)
{%- endset %}
{%- do comparisons.append(comparison) %}
{%- endif %}
{%- endfor %}

{{ comparisons | join('\nunion all\n') or 'select null as date where false' }}
