"""How every stage grows with the lake: one of 1, one of 10 and one of 100 million lines, on local files.

    python -m scripts.benchmarks.scale --lines 1000000 10000000

Cases: `archive to bronze`, `readings to PostgreSQL`, `silver and gold`, `marts to PostgreSQL` and
`reconciliation`, each by processes of its own, start-up included; and `what is kept`. Ways are the numbers of
lines, of whole days at the cadence that is asked for. Rows are lines of text, whatever a stage makes of them:
all must have been received in the end, and lake and PostgreSQL agree.

The archive comes in slices of at most ten million lines: each is written (which is not measured), imported,
its readings are exported, and its text is removed. What a stage took is then the sum over its processes, and
its peak memory the greatest of theirs. The other stages do all days in one process. Each lake is built once,
as it takes long, and removed before the next.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2

from ingestion.lake import Lake
from ingestion.settings import Settings
from scripts.benchmarks.measurement import (
    Bench,
    BenchmarkError,
    Observation,
    Place,
    Results,
    Target,
    open_bench,
    python,
    ratio,
    run_measured,
)
from scripts.command import run_command, the_only_job
from scripts.run_pipeline import export_marts, export_readings, import_archive, reconcile, transform
from scripts.simulate_feed import City, write_archive
from transform.plugins.lake import open_lake

MODULE = "scripts.benchmarks.scale"
SCENARIO = MODULE.rpartition(".")[2]
FIRST_DAY = date(2025, 1, 1)
LINES_PER_SLICE = 10_000_000  # about a gigabyte of text
ROOM = 1.5  # what a lake may take of the disk at its greatest, over what is kept of it

IMPORT, READINGS, BUILD = "archive to bronze", "readings to PostgreSQL", "silver and gold"
KEPT = "what is kept"
STAGES: dict[str, Callable[[Settings, str], object]] = {
    IMPORT: import_archive,
    READINGS: lambda settings, _: export_readings(settings),
    BUILD: lambda settings, _: transform(settings),
    "marts to PostgreSQL": lambda settings, _: export_marts(settings),
    "reconciliation": lambda settings, _: reconcile(settings),
}
BY_SLICE = (IMPORT, READINGS)

Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How large a lake is to be: whole days, so many of which are imported together."""

    days: int
    days_together: int

    @classmethod
    def of(cls, bench: Bench, lines: int) -> Size:
        """The days that come next to a number of lines."""
        snapshots = int(timedelta(days=1) / timedelta(minutes=bench.cadence_minutes))
        lines_per_day = snapshots * (bench.stations + bench.free_bikes)
        return cls(max(1, round(lines / lines_per_day)), max(1, LINES_PER_SLICE // lines_per_day))

    def slices(self) -> Iterator[tuple[date, int]]:
        """First day and number of days of each part of the archive."""
        for done in range(0, self.days, self.days_together):
            yield FIRST_DAY + timedelta(days=done), min(self.days_together, self.days - done)


def measure(bench: Bench) -> Iterator[Observation]:
    """Build a lake of each size.

    Raises `BenchmarkError` where a lake does not hold the lines that were written, or the disk is too small.
    """
    kept: Figures = {}
    for lines in bench.lines:
        _check_disk(bench.folder, lines, kept)
        size = Size.of(bench, lines)
        place = bench.place(f"{size.days} days")
        observations = _measure_lake(bench, place, size)
        yield from observations
        kept = observations[-1].figures
        _remove(bench, place)


def _check_disk(folder: Path, lines: int, kept: Figures) -> None:
    """Refuse a lake that would be too large, by what the one before took."""
    parts = ("bronze_bytes", "model_bytes", "postgres_bytes", "landing_bytes")
    wanted = ROOM * lines * sum(kept[part] for part in parts) / kept["rows"] if kept else 0
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise BenchmarkError(
            f"The disk is too small for {lines:,} lines: about {wanted / 1e9:.0f} GB are wanted and "
            f"{free / 1e9:.0f} GB are free. Give fewer --lines, or a TMPDIR on another disk."
        )


def _measure_lake(bench: Bench, place: Place, size: Size) -> list[Observation]:
    archive = place.folder / "archive"
    written: list[Figures] = []
    runs: dict[str, list[Figures]] = {stage: [] for stage in STAGES}
    for first, days in size.slices():
        written.append(_write_slice(bench, place, archive, first, days))
        for stage in BY_SLICE:
            runs[stage].append(_run_stage(place, stage, archive))
        shutil.rmtree(archive)
    for stage in STAGES:
        if stage not in BY_SLICE:
            runs[stage].append(_run_stage(place, stage, archive))
    amount = _added(written)
    _check_lines(place, amount["rows"])
    way = f"{amount['rows'] / 1e6:.3g} million lines"
    counts = {name: amount[name] for name in ("rows", "files")}
    return [
        *(Observation(SCENARIO, stage, way, 1, _added(figures) | counts) for stage, figures in runs.items()),
        Observation(SCENARIO, KEPT, way, 1, amount | {"days": size.days} | _kept(place)),
    ]


def _write_slice(bench: Bench, place: Place, archive: Path, first: date, days: int) -> Figures:
    options = {
        "--days": days,
        "--cadence": bench.cadence_minutes,
        "--stations": bench.stations,
        "--free-bikes": bench.free_bikes,
    }
    words = [str(word) for pair in options.items() for word in pair]
    return run_measured(python(MODULE, "write", archive, first.isoformat(), *words), place.environment).said


def _run_stage(place: Place, stage: str, archive: Path) -> Figures:
    return run_measured(python(MODULE, "step", stage, archive), place.environment).figures


def _added(runs: Sequence[Figures]) -> Figures:
    """The figures of processes that did parts of one thing."""
    return {
        name: (max if name == "peak_bytes" else sum)(figures[name] for figures in runs) for name in runs[0]
    }


def _check_lines(place: Place, written: float) -> None:
    with closing(open_lake(place.settings)) as lake:
        [(received,)] = lake.execute("select sum(lines_count) from fct_daily_processing").fetchall()
    if received != written:
        raise BenchmarkError(
            f"The lake has not what was written: {received} lines received, {written:.0f} written. "
            "Look into fct_daily_processing before any figure is believed."
        )


def _kept(place: Place) -> Figures:
    """Bytes and objects of the lake, and bytes of PostgreSQL's tables with their indexes."""
    root = Path(Lake.of(place.settings).root)
    layers = {"bronze": ("bronze",), "model": ("silver", "gold")}
    kept: Figures = {}
    for name, folders in layers.items():
        sizes = [
            path.stat().st_size for folder in folders for path in (root / folder).rglob("*") if path.is_file()
        ]
        kept |= {f"{name}_bytes": sum(sizes), f"{name}_objects": len(sizes)}
    schemas = {"postgres": place.settings.postgres_schema, "landing": place.settings.landing_schema}
    return kept | {f"{name}_bytes": _schema_bytes(place.settings, schema) for name, schema in schemas.items()}


def _schema_bytes(settings: Settings, schema: str) -> int:
    with (
        closing(psycopg2.connect(**settings.postgres_parameters())) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "select coalesce(sum(pg_total_relation_size(oid)), 0)::bigint from pg_class "
            "where relkind = 'r' and relnamespace = %s::regnamespace",
            [schema],
        )
        [(size,)] = cursor.fetchall()
    return int(size)


def _remove(bench: Bench, place: Place) -> None:
    """Give the disk back."""
    shutil.rmtree(place.folder)
    database = place.settings.postgres_parameters()["dbname"]
    with closing(psycopg2.connect(**bench.postgres.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"drop database {database} (force)")


def _greatest(results: Results, figure: str) -> float | None:
    """A figure of the build at the most lines, over that at the fewest; None of one lake alone."""
    lines = {one.way: one.figures["rows"] for one in results.observations if one.case == BUILD}
    if len(lines) < 2:
        return None
    fewest, most = min(lines, key=lines.__getitem__), max(lines, key=lines.__getitem__)
    return ratio(results.median(BUILD, most, figure), results.median(BUILD, fewest, figure))


def _peak_gigabytes(results: Results) -> float | None:
    peaks = [one.figures["peak_bytes"] / 1e9 for one in results.observations if one.case == BUILD]
    return max(peaks, default=None)


TARGETS = [
    Target("bronze → silver and gold, however many days: peak memory", 1.2, _peak_gigabytes, "GB"),
    Target(
        "bronze → silver and gold: peak memory at the most days over that at the fewest",
        1.1,
        lambda results: _greatest(results, "peak_bytes"),
        "×",
    ),
]


def write_slice(folder: Path, days: Sequence[date], cadence: timedelta, city: City) -> Figures:
    """Write days of an archive without damage, a process per core; lines, files and bytes of them."""
    write = partial(_write_day, folder, cadence=cadence, city=city)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return _added(list(pool.map(write, days)))


def _write_day(folder: Path, day: date, cadence: timedelta, city: City) -> Figures:
    write_archive(folder, [day], cadence, city, with_damage=False)
    texts = [path.read_bytes() for path in (folder / f"dt={day.isoformat()}").iterdir()]
    lines = sum(text.count(b"\n") - 1 for text in texts)  # the first is the header
    return {"rows": lines, "files": len(texts), "text_bytes": sum(map(len, texts))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    _add_options(parser)
    parser.add_argument("--lines", type=int, nargs="+", default=Bench.lines, help="of each lake, about")
    commands = parser.add_subparsers(dest="command", help="what the benchmark starts by itself")
    step = commands.add_parser("step")
    step.add_argument("stage", choices=STAGES)
    step.add_argument("archive")
    write = commands.add_parser("write")
    write.add_argument("folder", type=Path)
    write.add_argument("first", type=date.fromisoformat)
    write.add_argument("--days", type=int, required=True)
    _add_options(write)
    given = parser.parse_args()
    if given.command == "step":
        run_command(lambda settings: _step(settings, given.stage, given.archive))
    elif given.command == "write":
        days = [given.first + timedelta(days=number) for number in range(given.days)]
        city = City(stations=given.stations, free_bikes=given.free_bikes, lively=True)
        print(json.dumps(write_slice(given.folder, days, timedelta(minutes=given.cadence), city)))
    else:
        run_command(lambda _: _measure_alone(given))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cadence", type=float, default=1, help="minutes between snapshots")
    parser.add_argument("--stations", type=int, default=235)
    parser.add_argument("--free-bikes", type=int, default=115)


def _step(settings: Settings, stage: str, archive: str) -> None:
    with the_only_job(settings, "backfill"):
        STAGES[stage](settings, archive)


def _measure_alone(given: argparse.Namespace) -> None:
    options = {
        "days": 1,
        "cadence_minutes": given.cadence,
        "stations": given.stations,
        "free_bikes": given.free_bikes,
        "error_share": 0,
        "repeats": 1,
        "lines": given.lines,
    }
    with TemporaryDirectory() as folder, open_bench(Path(folder), **options) as bench:
        for observation in measure(bench):
            print(observation, flush=True)


if __name__ == "__main__":
    main()
