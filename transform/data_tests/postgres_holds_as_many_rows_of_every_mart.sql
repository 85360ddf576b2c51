{{ config(tags=['reconciliation']) }}

-- For every landing model that copies a mart, rows per day on both sides.
{%- if execute and flags.WHICH in ('build', 'test') %}
{%- set public_schema = lake_value('public_schema') %}
{%- for node in graph.nodes.values() if node.config.get('meta', {}).get('copies') %}
{%- set mart = graph.nodes.values() | selectattr('name', 'equalto', node.config.meta.copies) | first %}
{%- set table = node.name.split('__')[1] %}
{%- set days = days_to_reconcile(node.name) %}
{%- set in_days = "date in ('" ~ days | join("', '") ~ "')" if days else 'false' %}
(
    select
        '{{ table }}' as table_name,
        coalesce(in_lake.dt, in_postgres.date) as date,
        in_lake.row_count as rows_in_lake,
        in_postgres.row_count as rows_in_postgres,
        'lake and PostgreSQL do not hold as many rows of this day; run: scripts/just rebuild '
        || coalesce(in_lake.dt, in_postgres.date) as failure_reason,
    from (
        select dt, row_count from ({{ lake_row_counts(mart) }})
        where {{ in_days | replace('date in', 'dt in') }}
    ) as in_lake
    full join (
        from postgres_query('warehouse', $query$
            select date, count(*) as row_count from {{ public_schema }}.{{ table }} where {{ in_days }} group by date
        $query$)
    ) as in_postgres on in_lake.dt = in_postgres.date
    where in_lake.row_count is distinct from in_postgres.row_count
)
{% if not loop.last %}union all{% endif %}
{%- endfor %}
{%- else %}
select null as date where false
{%- endif %}
