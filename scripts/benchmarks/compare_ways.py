"""The project against a bare script that does the same, and against the ways that people usually take.

    python -m scripts.benchmarks.compare_ways --days 2 --cadence 10 --repeats 1

Every way is a process of its own, and the ways of a case take turns (A B C, A B C, …). Before its clock
starts the libraries that it uses are imported, and dbt's projects parsed, as any later run finds them:
`seconds`, `cpu_seconds`, `read_bytes` and `written_bytes` are those of the work alone, `process_seconds` and
`peak_bytes` those of the whole process; of PostgreSQL's own processes only the time shows, in `seconds`. All
ways read the same files from the system's cache; each has an empty place and database of its own.

archive to bronze             raw text files to Parquet, a snapshot a row
    project   scripts.run_pipeline.import_archive
    limit     one COPY a day over DuckDB's read_blob; it looks for no encodings and mends no names
bronze after compaction       text_bytes and bronze_bytes once scripts.compact_bronze has been there
    project   (an import writes one object a day, which compaction leaves as it is)
bronze to silver and gold     every model of every day; rows are the lines parsed
    project   scripts.run_pipeline.transform, which also plans, keeps a state and tests what it built
    limit     the very SQL of the models, day by day: see bare_script.py
archive to PostgreSQL, one day    raw text files of the archive's first day to keyed and indexed tables
    project   import_archive and export_readings of scripts.run_pipeline, from an empty place
    limit     DuckDB's read_csv, and COPY through its postgres extension: see limit.py
    usual     pandas and SQLAlchemy, ON CONFLICT DO NOTHING: see usual.py
    dlt-only  dicts merged by dlt: see dlt_only.py

The last two take only the day's first FIRST_SNAPSHOTS: they are compared by rows per second. The archive's
damaged lines are in every case: each way passes over torn lines and mends broken names, by the project's own
`mend_names`, which SQL could not do.

Ways must agree, or the benchmark fails:
- in bronze, on every snapshot's moment, bytes and digest;
- in silver and gold, on every model's count of rows and a checksum of all columns but `silver_seconds`, which
  is measured (doubles count with 24 bits: the last ones depend on the order of a sum);
- in PostgreSQL, project and limit on the keys and on every column of the whole day but `processed_at`; all
  four on (station_id, timestamp, name, bikes, spaces) of the first snapshots.
The models of the history of runs and of the defects have no rows on either side: an archive tells nothing of
them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2

from ingestion.lake import Lake
from scripts.benchmarks.archive import Archive, bench_archive, first_files
from scripts.benchmarks.measurement import (
    Bench,
    BenchmarkError,
    Observation,
    Place,
    Results,
    Target,
    Usage,
    open_bench,
    python,
    ratio,
    run_measured,
)
from scripts.benchmarks.ways import FIRST_SNAPSHOTS, counters

SCENARIO = "compare_ways"
TO_BRONZE = "archive to bronze"
COMPACTED = "bronze after compaction"
TO_MARTS = "bronze to silver and gold"
TO_POSTGRES = "archive to PostgreSQL, one day"

PUBLIC_TABLES = ("bike_stations", "free_bikes")

Rows = list[tuple[Any, ...]]


def _per_row_against(results: Results, other: str) -> float | None:
    return ratio(
        results.rate(TO_POSTGRES, "project", "rows"),
        results.rate(TO_POSTGRES, other, "rows"),
    )


def _against_limit(results: Results, case: str) -> float | None:
    return ratio(results.median(case, "project", "seconds"), results.median(case, "limit", "seconds"))


def _megabytes(results: Results, case: str) -> float | None:
    peak = results.median(case, "project", "peak_bytes")
    return peak / 1e6 if peak is not None else None


TARGETS = [
    Target(
        "archive to bronze: files per second",
        2000,
        lambda results: results.rate(TO_BRONZE, "project", "files"),
        "files/s",
        is_least=True,
    ),
    Target("archive to bronze: peak memory", 400, lambda results: _megabytes(results, TO_BRONZE), "MB"),
    Target(
        "bronze, compacted, against the text",
        1 / 30,
        lambda results: ratio(
            results.median(COMPACTED, "project", "bronze_bytes"),
            results.median(COMPACTED, "project", "text_bytes"),
        ),
        "×",
    ),
    Target("bronze to silver and gold, against limit", 1.15, lambda r: _against_limit(r, TO_MARTS), "×"),
    Target("bronze to silver and gold: peak memory", 1200, lambda r: _megabytes(r, TO_MARTS), "MB"),
    Target("a day to PostgreSQL, against limit", 1.3, lambda r: _against_limit(r, TO_POSTGRES), "×"),
    Target(
        "a day to PostgreSQL: rows per second, against usual",
        30,
        lambda results: _per_row_against(results, "usual"),
        "×",
        is_least=True,
    ),
]


def measure(bench: Bench) -> Iterator[Observation]:
    """Every case, as it is measured."""
    archive = bench_archive(bench)
    bronze = bench.folder / "bronze"
    yield from _archive_to_bronze(bench, archive, bronze)
    yield from _bronze_to_marts(bench, bronze)
    yield from _compaction(bench, archive, bronze)
    shutil.rmtree(bronze)
    yield from _archive_to_postgres(bench, archive)


# ------------------------------------------------------------------------------------- archive to bronze


def _archive_to_bronze(bench: Bench, archive: Archive, bronze: Path) -> Iterator[Observation]:
    """Leaves the project's bronze of the last repeat in the folder `bronze`."""
    for repeat in range(1, bench.repeats + 1):
        project, limit = (_place(bench, "bronze", way, repeat) for way in ("project", "limit"))
        imported = _lake(project) / "bronze"
        observations = [
            _observe(TO_BRONZE, "project", repeat, project, "project-to-bronze", archive.folder),
            _observe(TO_BRONZE, "limit", repeat, limit, "limit-to-bronze", archive.folder, _lake(limit)),
        ]
        folders = {"project": imported / "wrm" / "station_snapshots", "limit": _lake(limit)}
        if repeat == 1:
            digests = {way: _say(project, "digest-bronze", folder) for way, folder in folders.items()}
            _must_agree(TO_BRONZE, digests)
        for observation in observations:
            objects = len(list(folders[observation.way].glob("dt=*/*.parquet")))
            observation.figures.update(files=archive.files, objects=objects)
            yield observation
        shutil.rmtree(bronze, ignore_errors=True)
        imported.rename(bronze)
        _remove(bench, project, limit)


# ------------------------------------------------------------------------------------------- compaction


def _compaction(bench: Bench, archive: Archive, bronze: Path) -> Iterator[Observation]:
    for repeat in range(1, bench.repeats + 1):
        place = _place(bench, "compaction", "project", repeat)
        _link(bronze, place)
        observation = _observe(COMPACTED, "project", repeat, place, "project-compaction")
        objects = list(_lake(place).glob("bronze/wrm/station_snapshots/dt=*/*.parquet"))
        observation.figures.update(
            text_bytes=archive.text_bytes,
            bronze_bytes=sum(path.stat().st_size for path in objects),
            objects=len(objects),
        )
        yield observation
        _remove(bench, place)


# ----------------------------------------------------------------------------- bronze to silver and gold


def _bronze_to_marts(bench: Bench, bronze: Path) -> Iterator[Observation]:
    script = bench.folder / "bare_script"
    rows = 0
    for repeat in range(1, bench.repeats + 1):
        project, limit = (_place(bench, "marts", way, repeat) for way in ("project", "limit"))
        for place in (project, limit):
            _link(bronze, place)
        _say(project, "parse", "transform")
        observations = [_observe(TO_MARTS, "project", repeat, project, "project-to-marts")]
        if not script.exists():
            _say(project, "bare-script", script)
        observations.append(
            _observe(TO_MARTS, "limit", repeat, limit, "limit-to-marts", script / "build.sql", _lake(limit))
        )
        if repeat == 1:
            digests = {
                way: _say(place, "digest-marts", _lake(place))
                for way, place in (("project", project), ("limit", limit))
            }
            _must_agree(TO_MARTS, digests)
            rows = digests["project"]["int_wrm__lines_parsed"][0]
        for observation, place in zip(observations, (project, limit), strict=True):
            observation.figures.update(rows=rows, objects=len(_partitions(_lake(place))))
            yield observation
        _remove(bench, project, limit)


def _partitions(lake: Path) -> list[Path]:
    return [path for layer in ("silver", "gold") for path in lake.glob(f"{layer}/*/dt=*/data.parquet")]


# --------------------------------------------------------------------------------- archive to PostgreSQL


def _archive_to_postgres(bench: Bench, archive: Archive) -> Iterator[Observation]:
    day = archive.of_day(archive.days[0])
    steps = {
        "project": ("project-to-postgres", day),
        "limit": ("limit-to-postgres", day),
        "usual": ("usual-to-postgres", day),
        "dlt-only": ("dlt-only-to-postgres", day),
    }
    for repeat in range(1, bench.repeats + 1):
        places = {way: _place(bench, "postgres", way, repeat) for way in steps}
        _say(places["project"], "parse", "transform", "exports")
        for way, step in steps.items():
            _in_postgres(bench, "checkpoint")  # what one way wrote is not left for the next
            observation = _observe(TO_POSTGRES, way, repeat, places[way], *step)
            observation.figures["rows"] = sum(_count_rows(places[way], way, table) for table in PUBLIC_TABLES)
            yield observation
        if repeat == 1:
            _must_agree(TO_POSTGRES, {way: _digest_keys(places[way]) for way in ("project", "limit")})
            _must_agree(TO_POSTGRES, {way: _digest_day(places[way]) for way in ("project", "limit")})
            until = first_files(day, FIRST_SNAPSHOTS)[1]
            _must_agree(TO_POSTGRES, {way: _digest_first(places[way], way, until) for way in steps})
        _remove(bench, *places.values())


def _count_rows(place: Place, way: str, table: str) -> int:
    [(count,)] = _ask(place, f"select count(*) from {_schema(way)}.{table}")
    return int(count)


def _schema(way: str) -> str:
    return "dlt_only" if way == "dlt-only" else "public"


def _digest_keys(place: Place) -> Rows:
    """Every index of the public tables: whether it is the primary key, whether it is unique, and of what."""
    tables = ", ".join(f"'{table}'::regclass" for table in PUBLIC_TABLES)
    return _ask(
        place,
        "select indrelid::regclass::text, indisprimary, indisunique, array("
        "select attname::text from pg_attribute where attrelid = indrelid and attnum = any(indkey) "
        f"order by attname) from pg_index where indrelid in ({tables}) order by 1, 2, 3, 4",
    )


def _digest_day(place: Place) -> Rows:
    """Rows of the public tables, and a checksum of every column but the time of loading."""
    found = []
    for table in PUBLIC_TABLES:
        [(columns,)] = _ask(
            place,
            "select string_agg(format('%I', column_name), ', ' order by column_name) "
            "from information_schema.columns where table_schema = 'public' "
            f"and table_name = '{table}' and column_name <> 'processed_at'",
        )
        found += _ask(place, f"select '{columns}', {_CHECKSUM} from (select {columns} from {table}) as rows")
    return found


def _digest_first(place: Place, way: str, until: datetime | None) -> Rows:
    """Station readings of the first snapshots, and a checksum of what they tell; dlt makes its own types."""
    before = f'where extract(epoch from "timestamp") < {until.timestamp()}' if until else ""
    rows = (
        'select station_id::bigint, extract(epoch from "timestamp")::numeric(20, 6), name::text, '
        f"bikes::bigint, spaces::bigint from {_schema(way)}.bike_stations {before}"
    )
    return _ask(place, f"select {_CHECKSUM} from ({rows}) as rows")


# rows in any order
_CHECKSUM = "count(*), sum(('x' || left(md5(rows::text), 15))::bit(60)::bigint)"


def _ask(place: Place, query: str) -> Rows:
    with (
        closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(query)
        rows: Rows = cursor.fetchall()
        return rows


# ---------------------------------------------------------------------------------------- what all share


def _place(bench: Bench, case: str, way: str, repeat: int) -> Place:
    return bench.place(f"{case}-{way}-{repeat}")


def _lake(place: Place) -> Path:
    return Path(Lake.of(place.settings).root)


def _link(bronze: Path, place: Place) -> None:
    """Give a place a bronze of its own; objects are never written over, so links will do."""
    shutil.copytree(bronze, _lake(place) / "bronze", copy_function=os.link)


def _remove(bench: Bench, *places: Place) -> None:
    """Nothing of a place that is done with keeps the disk or PostgreSQL busy while others are measured."""
    for place in places:
        shutil.rmtree(place.folder)
        _in_postgres(bench, f"drop database {place.settings.postgres_parameters()['dbname']} (force)")


def _in_postgres(bench: Bench, statement: str) -> None:
    with closing(psycopg2.connect(**bench.postgres.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def _run(place: Place, step: str, *arguments: str | Path) -> Usage:
    return run_measured(python("scripts.benchmarks.ways", step, *arguments), place.environment)


def _observe(
    case: str, way: str, repeat: int, place: Place, step: str, *arguments: str | Path
) -> Observation:
    """One step, measured. What it tells of itself comes first: it counts from when it was prepared."""
    usage = _run(place, step, *arguments)
    return Observation(SCENARIO, case, way, repeat, usage.figures | {"process_seconds": usage.seconds})


def _say(place: Place, step: str, *arguments: str | Path) -> dict[str, Any]:
    """What a step that is not measured says. In a process of its own as well: by the system's account, a
    child has taken at least the memory that its parent had."""
    said = _run(place, step, *arguments).said
    return {name: value for name, value in said.items() if name not in counters()}


def _must_agree(case: str, found: Mapping[str, Any]) -> None:
    """Raise `BenchmarkError` where the ways did not produce the same."""
    (first, expected), *others = found.items()
    for way, other in others:
        if other != expected:
            raise BenchmarkError(
                f"Ways disagree in {case!r}: {first} and {way}. Mend the one that is wrong.\n"
                f"{first}: {_only(expected, other)}\n{way}: {_only(other, expected)}"
            )


def _only(one: Any, other: Any) -> Any:
    """What differs of one of two digests, where they are made of parts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: part for name, part in one.items() if part != other.get(name)}
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--cadence", type=float, default=10, help="minutes between snapshots")
    parser.add_argument("--stations", type=int, default=235)
    parser.add_argument("--free-bikes", type=int, default=115)
    parser.add_argument("--error-share", type=float, default=0.02, help="of the snapshots, 0 to 1")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    options = {
        "days": given.days,
        "cadence_minutes": given.cadence,
        "stations": given.stations,
        "free_bikes": given.free_bikes,
        "error_share": given.error_share,
        "repeats": given.repeats,
    }
    with tempfile.TemporaryDirectory() as folder, open_bench(Path(folder), **options) as bench:
        observations = []
        for observation in measure(bench):
            observations.append(observation)
            print(observation, flush=True)
    for target in TARGETS:
        value = target.measured(Results(observations))
        print(f"{target.what}: {value} {target.unit}, to be {target.bound}")


if __name__ == "__main__":
    main()
