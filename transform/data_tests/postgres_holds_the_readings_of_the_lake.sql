{{ config(tags=['reconciliation']) }}

-- Of a reading that two days hold, because the feed stood still over midnight, PostgreSQL keeps the newer fetch, and so
-- it is reckoned here. Models are found in the graph, not by ref(): who builds one by name needs no PostgreSQL.
{%- set kinds = [
    {
        'model': 'int_wrm__station_readings_deduplicated',
        'key': 'station_id',
        'table': 'bike_stations',
        'columns': [
            ('station_id', 'station_id', 'integer'), ('observed_at', 'timestamp', 'timestamp'), ('name', 'name', 'varchar'),
            ('bikes_count', 'bikes', 'integer'), ('spaces_count', 'spaces', 'integer'),
            ('docks_count', 'total_docks', 'integer'), ('fetched_at', 'processed_at', 'timestamp'),
            ('local_offset_seconds', 'timezone_1', 'integer'), ('server_offset_seconds', 'timezone_2', 'integer'),
            ('is_over_capacity', 'is_over_capacity', 'boolean'),
            ('has_capacity_mismatch', 'has_capacity_mismatch', 'boolean'),
            ('is_outside_service_area', 'is_outside_service_area', 'boolean'),
            ('is_name_mended', 'is_name_mended', 'boolean'),
        ],
    },
    {
        'model': 'int_wrm__free_bike_readings_deduplicated',
        'key': 'bike_id',
        'table': 'free_bikes',
        'columns': [
            ('bike_id', 'bike_id', 'varchar'), ('observed_at', 'timestamp', 'timestamp'), ('name', 'name', 'varchar'),
            ('latitude', 'latitude', 'double'), ('longitude', 'longitude', 'double'),
            ('battery_pct', 'battery_pct', 'integer'), ('fetched_at', 'processed_at', 'timestamp'),
            ('is_outside_service_area', 'is_outside_service_area', 'boolean'),
            ('is_name_mended', 'is_name_mended', 'boolean'),
        ],
    },
] %}

{%- set comparisons = [] %}
{%- for kind in kinds if execute and flags.WHICH in ('build', 'test') %}
{%- set node = graph.nodes.values() | selectattr('name', 'equalto', kind.model) | first %}
{%- set days = days_to_reconcile('landing_wrm__' ~ kind.table, node) %}
{%- if days %}
{%- set winners %}
(
    select *, dt as date
    from {{ days_of(node, days, reach=1) }}
    qualify row_number() over (partition by {{ kind.key }}, observed_at order by fetched_at desc, dt desc) = 1
)
{%- endset %}
{%- set lake_columns = [] %}
{%- set columns = [] %}
{%- for lake_name, name, type in kind.columns %}
{%- do lake_columns.append((lake_name, type)) %}
{%- do columns.append((name, type)) %}
{%- endfor %}
{%- do comparisons.append(differing_days(kind.table, days, winners, lake_columns, columns)) %}
{%- endif %}
{%- endfor %}

{{ comparisons | join('\nunion all\n') or 'select null as date where false' }}
