{{ config(tags=['reconciliation']) }}

-- Count and checksum of every day's readings, on both sides. Of a reading that two days hold, because the feed stood
-- still over midnight, PostgreSQL keeps the newer fetch, and so it is reckoned here. Models are found in the graph,
-- not by ref(): whoever builds one of them by name needs no PostgreSQL.
{%- set kinds = [
    {
        'model': 'int_wrm__station_readings_deduplicated',
        'table': 'bike_stations',
        'key': 'station_id',
        'lake_columns': 'station_id, bikes_count, spaces_count, docks_count',
        'columns': 'station_id, bikes, spaces, total_docks',
    },
    {
        'model': 'int_wrm__free_bike_readings_deduplicated',
        'table': 'free_bikes',
        'key': 'bike_id',
        'lake_columns': 'bike_id, floor(latitude * 1000000)::bigint, floor(longitude * 1000000)::bigint, battery_pct',
        'columns': 'bike_id, floor(latitude * 1000000)::bigint, floor(longitude * 1000000)::bigint, battery_pct',
    },
] %}

{%- set comparisons = [] %}
{%- for kind in kinds if execute and flags.WHICH in ('build', 'test') %}
{%- set days = days_to_reconcile('landing_wrm__' ~ kind.table) %}
{%- if days %}
{%- set node = graph.nodes.values() | selectattr('name', 'equalto', kind.model) | first %}
{%- set dates = "('" ~ days | join("', '") ~ "')" %}
{%- set comparison %}
(
    with winners as (
        select *
        from read_parquet([{{ objects_around(node, days) | join(', ') }}])
        qualify row_number() over (partition by {{ kind.key }}, observed_at order by fetched_at desc, dt desc) = 1
    ),

    in_lake as (
        select
            dt as date,
            count(*) as readings_count,
            sum({{ text_number(
                "concat_ws('|', epoch_us(observed_at), replace(name, chr(0), ''), " ~ kind.lake_columns ~ ')'
            ) }}) as checksum,
        from winners
        where dt in {{ dates }}
        group by dt
    ),

    in_postgres as (
        select date, readings_count, checksum::hugeint as checksum,
        from postgres_query('warehouse', $query$
            select
                date,
                count(*) as readings_count,
                sum({{ postgres_text_number(
                    "concat_ws('|', (extract(epoch from \"timestamp\") * 1000000)::bigint, name, " ~ kind.columns ~ ')'
                ) }})::text as checksum
            from {{ lake_value('public_schema') }}.{{ kind.table }}
            where date in {{ dates }}
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
{%- endset %}
{%- do comparisons.append(comparison) %}
{%- endif %}
{%- endfor %}

{{ comparisons | join('\nunion all\n') or 'select null as date where false' }}
