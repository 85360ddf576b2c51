{{ config(tags=['reconciliation']) }}

-- Count and checksum of every day's readings, on both sides. Of a reading that two days hold, because the feed stood
-- still over midnight, PostgreSQL keeps the newer fetch, and so it is reckoned here.
-- depends_on: {{ ref('int_wrm__station_readings_deduplicated') }}
-- depends_on: {{ ref('int_wrm__free_bike_readings_deduplicated') }}
{%- set kinds = [
    {
        'model': 'int_wrm__station_readings_deduplicated', 'landing': 'landing_wrm__bike_stations',
        'table': 'bike_stations', 'key': 'station_id',
        'lake_columns': ['station_id', 'bikes_count', 'spaces_count', 'docks_count'],
        'columns': ['station_id', 'bikes', 'spaces', 'total_docks'],
    },
    {
        'model': 'int_wrm__free_bike_readings_deduplicated', 'landing': 'landing_wrm__free_bikes',
        'table': 'free_bikes', 'key': 'bike_id',
        'lake_columns': ['bike_id', 'battery_pct'],
        'columns': ['bike_id', 'battery_pct'],
    },
] %}

{%- if execute and flags.WHICH in ('build', 'test') %}
{%- set public_schema = lake_value('public_schema') %}
{%- for kind in kinds %}
{%- set days = days_to_reconcile(kind.landing) %}
{%- set node = graph.nodes.values() | selectattr('name', 'equalto', kind.model) | first %}
{%- set objects = objects_around(node, days) if days else [] %}
{%- set in_days = "date in ('" ~ days | join("', '") ~ "')" if days else 'false' %}
(
    with winners as (
        select
            dt,
            {{ kind.lake_columns | join(', ') }},
            observed_at,
            replace(name, chr(0), '') as name,
        from {% if objects %}read_parquet([{{ objects | join(', ') }}]){% else %}{{ kind.model }} limit 0{% endif %}
        {%- if objects %}
        qualify row_number() over (partition by {{ kind.key }}, observed_at order by fetched_at desc, dt desc) = 1
        {%- endif %}
    ),

    in_lake as (
        select
            dt as date,
            count(*) as readings_count,
            sum({{ text_number("concat_ws('|', epoch_us(observed_at), name, " ~ kind.lake_columns | join(', ') ~ ')') }}) as checksum,
        from winners
        where {{ in_days | replace('date in', 'dt in') }}
        group by dt
    ),

    in_postgres as (
        select date, readings_count, checksum::hugeint as checksum,
        from postgres_query('warehouse', $query$
            select
                date,
                count(*) as readings_count,
                sum({{ postgres_text_number(
                    "concat_ws('|', (extract(epoch from \"timestamp\") * 1000000)::bigint, name, " ~ kind.columns | join(', ') ~ ')'
                ) }})::text as checksum
            from {{ public_schema }}.{{ kind.table }}
            where {{ in_days }}
            group by date
        $query$)
    )

    select
        '{{ kind.table }}' as table_name,
        date,
        in_lake.readings_count as readings_in_lake,
        in_postgres.readings_count as readings_in_postgres,
        'lake and PostgreSQL do not hold the same readings of this day; run: scripts/just rebuild ' || date
        as failure_reason,
    from in_lake
    full join in_postgres using (date)
    where in_lake.readings_count is distinct from in_postgres.readings_count
        or in_lake.checksum is distinct from in_postgres.checksum
)
{% if not loop.last %}union all{% endif %}
{%- endfor %}
{%- else %}
select null as date where false
{%- endif %}
