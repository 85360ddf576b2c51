"""The way `limit`: hand-written DuckDB scripts that do the same work with no framework, as fast as they can.

Nothing is planned, nothing is remembered and nothing can be taken up again: what stands between them and the
project is the price of its structure. `compare_ways` runs them.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg2

from ingestion.encoding import mend_names
from ingestion.lake import quoted
from ingestion.settings import PROJECT_ROOT, Settings

# bike_stations and free_bikes as exports/ makes them; the comparison fails where they are not
TABLES = {
    "bike_stations": """
        create table bike_stations (
            id uuid not null,
            station_id integer not null,
            "timestamp" timestamp not null,
            name text,
            bikes integer,
            spaces integer,
            date date not null,
            processed_at timestamp not null,
            timezone_1 integer,
            timezone_2 integer,
            total_docks integer,
            is_over_capacity boolean,
            has_capacity_mismatch boolean,
            is_outside_service_area boolean,
            is_name_mended boolean
        )
    """,
    "free_bikes": """
        create table free_bikes (
            id uuid not null,
            bike_id text not null,
            "timestamp" timestamp not null,
            name text,
            latitude double precision,
            longitude double precision,
            battery_pct integer,
            is_outside_service_area boolean,
            is_name_mended boolean,
            date date not null,
            processed_at timestamp not null
        )
    """,
}
KEYS = {
    "bike_stations": (
        "alter table bike_stations add primary key (id)",
        'alter table bike_stations add unique (station_id, "timestamp")',
        "create index on bike_stations (station_id)",
        'create index on bike_stations ("timestamp")',
        "create index on bike_stations (date)",
    ),
    "free_bikes": (
        "alter table free_bikes add primary key (id)",
        'alter table free_bikes add unique (bike_id, "timestamp")',
        'create index on free_bikes ("timestamp")',
        "create index on free_bikes (date)",
    ),
}

SERVICE_AREAS = PROJECT_ROOT / "transform" / "seeds" / "service_areas.csv"

# a torn line lacks fields, a broken one does not cast: either is passed over; the buffer is a file's, and the
# usual one of 32 MB doubles the time
_LINES = """
    create table lines as
    from read_csv(
        {files}, auto_detect = false, header = true, quote = '"', escape = '"', ignore_errors = true,
        filename = true, hive_partitioning = true, buffer_size = 65536, columns = {{
            'id': 'varchar', 'stamp': 'varchar', 'name': 'varchar', 'latitude': 'double',
            'longitude': 'double', 'bikes': 'integer', 'spaces': 'integer', 'installed': 'boolean',
            'locked': 'boolean', 'temporary': 'boolean', 'docks': 'integer', 'battery': 'varchar',
            'pedelecs': 'integer'
        }}
    )
"""
_MENDED_NAMES = """
    create table mended_names as
    select unnest(map_keys(mended)) as name, unnest(map_values(mended)) as mended_name,
    from (select $mended::json::map(varchar, varchar) as mended)
"""
_READINGS = """
    create table readings as
    select
        id,
        make_timestamp(round(split_part(stamp, '|', 1)::double * 1000000)::bigint) as moment,
        md5('wrm:' || id) as digest,
        coalesce(mended_name, name) as name,
        mended_name is not null as is_name_mended,
        latitude, longitude, bikes, spaces, docks, battery, dt,
        split_part(stamp, '|', 2)::integer as timezone_1,
        split_part(stamp, '|', 3)::integer as timezone_2,
        not (
            latitude between min_latitude and max_latitude
            and longitude between min_longitude and max_longitude
        ) as is_outside_service_area,
    from lines left join mended_names using (name) cross join read_csv({service_areas})
    -- of several the one of the last file
    qualify row_number() over (partition by id, stamp order by lines.filename desc) = 1
"""
_ID = """
    (format(
        '{:08x}-{:04x}-8{:03x}-',
        epoch_ms(moment) >> 16, epoch_ms(moment) & 65535, epoch_us(moment) % 1000 * 4
    )
    || substr('89ab', 1 + ('0x' || digest[1])::integer % 4, 1) || digest[2:4] || '-' || digest[5:16])::uuid
"""
_LOADS = {
    "bike_stations": f"""
        insert into warehouse.bike_stations
        select
            {_ID}, id::integer, moment, name, bikes, spaces, dt, now() at time zone 'UTC',
            timezone_1, timezone_2, docks, bikes > docks, bikes + spaces <> docks,
            is_outside_service_area, is_name_mended,
        from readings where not starts_with(id, 'fb') order by moment
    """,
    "free_bikes": f"""
        insert into warehouse.free_bikes
        select
            {_ID}, id, moment, name, latitude, longitude,
            case when battery::integer between 0 and 100 then battery::integer end,
            is_outside_service_area, is_name_mended, dt, now() at time zone 'UTC',
        from readings where starts_with(id, 'fb') order by moment
    """,
}


def archive_to_bronze(archive: Path, target: Path) -> dict[str, float]:
    """Write one Parquet object a day of an archive's payloads; gives the number of rows."""
    rows = 0
    with duckdb.connect() as connection:
        for folder in sorted(archive.glob("dt=*")):
            written = target / folder.name / "data.parquet"
            written.parent.mkdir(parents=True)
            [(count,)] = connection.execute(
                f"""
                copy (
                    select
                        content as payload, sha256(content) as payload_sha256, size as payload_bytes,
                        filename as source_key, last_modified as source_modified_at, now() as fetched_at,
                        strptime(filename[-23:-5], '%Y-%m-%d_%H-%M-%S') at time zone 'UTC' as observed_at,
                    from read_blob({quoted(f"{folder}/*.txt")})
                ) to {quoted(str(written))} (format parquet, compression zstd)
                """
            ).fetchall()
            rows += count
    return {"rows": rows}


def bronze_to_marts(script: Path, lake: Path, settings: Settings) -> dict[str, float]:
    """Run a bare script (see `bare_script`) on a lake that holds bronze, with the project's own limits."""
    os.chdir(lake)
    text = script.read_text()
    for partition in re.findall(r"^\) to '(.+)/data\.parquet'", text, re.MULTILINE):
        Path(partition).mkdir(parents=True)
    config: dict[str, Any] = {
        "memory_limit": settings.duckdb_memory_limit,
        "threads": settings.duckdb_threads,
        "preserve_insertion_order": False,
    }
    with duckdb.connect(config=config) as connection:
        connection.execute(text)
    return {}


def archive_to_postgres(day: Path, settings: Settings) -> dict[str, float]:
    """Bring one day of an archive into empty tables and key them."""
    with duckdb.connect(config={"preserve_insertion_order": False}) as connection:
        connection.execute(_LINES.format(files=quoted(f"{day}/*.txt")))
        connection.execute(_MENDED_NAMES, {"mended": _mended_names(connection)})
        connection.execute(_READINGS.format(service_areas=quoted(str(SERVICE_AREAS))))
        _attach(connection, settings)
        with ThreadPoolExecutor() as pool:  # a table each, as PostgreSQL has a process for each connection
            list(pool.map(lambda table: _load(connection, table, settings), TABLES))
    return {}


def _mended_names(connection: duckdb.DuckDBPyConnection) -> str:
    """What is broken of the distinct names, and how it is mended, as JSON."""
    names = connection.execute("select distinct name from lines where length(name) < strlen(name)")
    text = io.StringIO()
    csv.writer(text).writerows(names.fetchall())
    return mend_names(text.getvalue()) or "{}"


def _attach(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    execute_in_postgres(settings, *TABLES.values())
    wheel = importlib.import_module("duckdb_extension_postgres_scanner")
    [extension] = Path(wheel.__path__[0]).glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
    connection.execute(f"load {quoted(str(extension))}")
    given = settings.postgres_parameters()
    parameters = " ".join(f"{name}={given[name]}" for name in ("host", "port", "user", "dbname"))
    connection.execute(f"attach {quoted(parameters)} as warehouse (type postgres, schema 'public')")


def _load(connection: duckdb.DuckDBPyConnection, table: str, settings: Settings) -> None:
    """Copy one table's rows in the order of time, then make its keys, which is faster than the other way
    around."""
    connection.cursor().execute(_LOADS[table])
    execute_in_postgres(settings, *KEYS[table])


def execute_in_postgres(settings: Settings, *statements: str) -> None:
    """Run statements in one transaction."""
    with (
        closing(psycopg2.connect(**settings.postgres_parameters())) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)
