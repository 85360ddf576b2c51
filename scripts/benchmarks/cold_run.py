"""A cold `scripts/just run` for one new snapshot, whatever the history in the lake.

Cases, each under the ways "2 days, files", "365 days, files", "2 days, S3" and "365 days, S3":

- "cold run": `scripts/just run` as a user calls it, in a process of its own. The simulated feed, in a
  process of its own as well, has a new snapshot for it each time.
- "imports and idle dbt", the yardstick: a process that imports dlt and dbt and has dbt run one model of each
  project that is up to date. Whatever uses both tools takes this long. Its figures tell the parts as well.

A way's lake holds so many days until today (UTC): a few snapshots of the simulated city a day with their
fetch attempts, and a recorded run, one bronze object per day and table, as compaction leaves them; all of it
built and exported. Lakes are made in files and copied to S3, objects, database and all. After one run as a
warm-up the ways take turns.

S3 stands behind a proxy that counts: `requests` are those of a run, `get_requests` and so on those of each
kind. The proxy's own time, a millisecond or two a request, is part of the run's.

    python -m scripts.benchmarks.cold_run --days 2 365 --repeats 5
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa

from ingestion import bronze, run_history, wrm
from ingestion.lake import Lake
from ingestion.run_history import Step
from ingestion.schemas import FETCH_ATTEMPTS, STATION_SNAPSHOTS
from ingestion.settings import PROJECT_ROOT, Settings, canonical_postgres_url
from scripts.benchmarks.measurement import (
    Bench,
    Observation,
    Place,
    Results,
    Target,
    open_bench,
    python,
    ratio,
    run_measured,
)
from scripts.command import run_command
from scripts.run_pipeline import Stages, build_and_export
from scripts.server_proxies import S3Counter, counted_s3
from scripts.simulate_feed import City
from scripts.start_s3 import S3Server, running_s3

SCENARIO = "cold_run"
RUN, BARE = "cold run", "imports and idle dbt"
HISTORIES = (2, 365)  # days
SNAPSHOTS_PER_DAY = 4
LATENCY = timedelta(milliseconds=500)

# without the project's own code, which it is the yardstick of
BARE_PROCESS = """
import json, sys, time
started = time.perf_counter()
import dlt
from dbt.cli.main import dbtRunner
seconds = {"import_seconds": time.perf_counter() - started}
for project, model in (("transform", "int_wrm__snapshots_received"), ("exports", "processing_summary")):
    started = time.perf_counter()
    work = f"{sys.argv[1]}/{project}"
    done = dbtRunner().invoke([
        "run", "--select", model, "--quiet", "--no-write-json", "--log-level", "none",
        "--project-dir", project, "--profiles-dir", project, "--target-path", work, "--log-path", work,
    ])
    assert done.success, (done.exception, done.result)
    seconds[f"idle_{project}_seconds"] = time.perf_counter() - started
print(json.dumps(seconds))
"""


def _growth(results: Results, storage: str, figure: str) -> float | None:
    """How many times as much a run takes with the long history as with the short one."""
    short, long = (results.median(RUN, f"{days} days, {storage}", figure) for days in HISTORIES)
    return ratio(long, short)


def _over_yardstick(results: Results, storage: str) -> float | None:
    way = f"{HISTORIES[0]} days, {storage}"
    return ratio(results.median(RUN, way, "seconds"), results.median(BARE, way, "seconds"))


TARGETS = [
    Target(
        "cold run, files: × of bare imports and idle dbt", 1.5, lambda r: _over_yardstick(r, "files"), "×"
    ),
    Target("cold run, S3: × of bare imports and idle dbt", 1.5, lambda r: _over_yardstick(r, "S3"), "×"),
    Target(
        "cold run, files: 365 days of history against 2", 1.1, lambda r: _growth(r, "files", "seconds"), "×"
    ),
    Target("cold run, S3: 365 days of history against 2", 1.1, lambda r: _growth(r, "S3", "seconds"), "×"),
    # constant, but for a listing that takes one more page
    Target("cold run: S3 requests, 365 days against 2", 1.02, lambda r: _growth(r, "S3", "requests"), "×"),
]


@dataclass(frozen=True)
class Way:
    """A place with a history; `counter` sees the requests of one on S3."""

    name: str
    place: Place
    counter: S3Counter | None = None

    def run(self) -> dict[str, float]:
        """The figures of a cold run."""
        return self._measured([PROJECT_ROOT / "scripts" / "just", "run"])

    def bare(self) -> dict[str, float]:
        """Those of the yardstick, which keeps dbt's parsed projects apart from the project's own."""
        return self._measured([sys.executable, "-c", BARE_PROCESS, self.place.folder / "bare"])

    def _measured(self, command: Sequence[str | Path]) -> dict[str, float]:
        if self.counter is None:
            return run_measured(command, self.place.environment).figures
        self.counter.take()
        figures = run_measured(command, self.place.environment).figures
        calls, answered = self.counter.take()
        by_verb = {f"{verb.lower()}_requests": count for verb, count in sorted(calls.items())}
        return figures | by_verb | {"requests": calls.total(), "answered_bytes": answered.total()}


def measure(
    bench: Bench, histories: Sequence[int] = HISTORIES, snapshots: int = SNAPSHOTS_PER_DAY
) -> Iterator[Observation]:
    """Cold runs and their yardstick, way by way, so many times."""
    with ExitStack() as stack:
        s3 = stack.enter_context(running_s3(bench.folder / "cold-s3"))
        counter = stack.enter_context(counted_s3(s3.endpoint_url))
        feed = stack.enter_context(_feed_process())
        ways = [
            replace(way, place=way.place.with_settings(**feed))
            for days in histories
            for way in _prepare_ways(bench, days, snapshots, s3, counter)
        ]
        for way in ways:  # the first parses the projects, and on S3 restores dlt's state
            way.run()
            way.bare()
        for repeat in range(1, bench.repeats + 1):
            for way in ways:
                yield Observation(SCENARIO, RUN, way.name, repeat, way.run())
                yield Observation(SCENARIO, BARE, way.name, repeat, way.bare())


@contextmanager
def _feed_process() -> Iterator[dict[str, str]]:
    """Have the simulated feed answering in a process of its own, for the length of a `with` block; gives the
    settings that name it."""
    command = python("scripts.simulate_feed")
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield dict(re.findall(r"(WRM_\w+)=(\S+)", process.stdout.readline()))
        finally:
            process.terminate()


def _prepare_ways(
    bench: Bench, days: int, snapshots: int, s3: S3Server, counter: S3Counter
) -> tuple[Way, Way]:
    files = bench.place(f"cold-{days}-files")
    options = ("--days", str(days), "--snapshots", str(snapshots))
    run_measured(python(f"scripts.benchmarks.{SCENARIO}", "step", *options), _for_dbt(files).environment)
    on_s3 = bench.place(f"cold-{days}-s3", replace(s3, endpoint_url=counter.endpoint_url))
    _copy_lake(files.settings, on_s3.settings, s3)
    _copy_database(bench.postgres, files.settings, on_s3.settings)
    return (
        Way(f"{days} days, files", _for_dbt(files)),
        Way(f"{days} days, S3", _for_dbt(on_s3), counter),
    )


def _for_dbt(place: Place) -> Place:
    """The place with settings spelt as the project spells them to dbt, which the yardstick calls itself."""
    settings = place.settings
    return place.with_settings(
        ENVIRONMENT=settings.environment,
        POSTGRES_URL=canonical_postgres_url(settings),
        POSTGRES_SCHEMA=settings.postgres_schema,
        POSTGRES_READER_ROLE=settings.postgres_reader_role,
    )


def _copy_lake(source: Settings, target: Settings, s3: S3Server) -> None:
    s3.filesystem().put(
        f"{Lake.of(source).root}/", f"{target.lake_url.removeprefix('s3://')}/", recursive=True
    )


def _copy_database(server: Settings, source: Settings, target: Settings) -> None:
    """Make the target's database a copy of the source's, as if all had come from the target's lake."""
    copied, made = (settings.postgres_parameters()["dbname"] for settings in (source, target))
    _execute(server, f"drop database {made}")
    _execute(server, f"create database {made} template {copied}")
    _execute(target, f"update {target.landing_schema}.exported_objects set lake = %s", Lake.of(target).root)


def _execute(settings: Settings, statement: str, *values: object) -> None:
    with closing(psycopg2.connect(**settings.postgres_parameters())) as connection:
        connection.autocommit = True  # no transaction makes or drops a database
        with connection.cursor() as cursor:
            cursor.execute(statement, values)


def prepare(settings: Settings, days: int, snapshots: int) -> None:
    """Write, build and export a history that ends today."""
    now = datetime.now(UTC)
    city = City(lively=True)  # the simulated feed's
    pipeline = bronze.open_pipeline(wrm.SOURCE, settings)
    for back in range(days - 1, -1, -1):
        day = now.date() - timedelta(days=back)
        moments = [moment for moment in evenly(day, timedelta(days=1) / snapshots) if moment <= now]
        rows = [_snapshot_row(city, moment) for moment in moments]
        tables = {
            "station_snapshots": [pa.Table.from_pylist(rows, schema=STATION_SNAPSHOTS)],
            "fetch_attempts": [pa.Table.from_pylist([*map(_attempt_row, rows)], schema=FETCH_ATTEMPTS)],
        }
        bronze.load_day(pipeline, day, tables)
        _record_run(settings, moments[0])
    build_and_export(settings, Stages())


def evenly(day: date, cadence: timedelta) -> list[datetime]:
    """The moments of a UTC day at which a feed is asked, the first at midnight."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return [midnight + number * cadence for number in range(int(timedelta(days=1) / cadence))]


def snapshot_tables(city: City, moments: Iterable[datetime]) -> Iterator[pa.Table]:
    """What bronze keeps of a city's snapshots, in chunks such as imports make."""
    rows: list[dict[str, Any]] = []
    for moment in moments:
        rows.append(_snapshot_row(city, moment))
        if len(rows) == wrm.ROWS_PER_CHUNK:
            yield pa.Table.from_pylist(rows, schema=STATION_SNAPSHOTS)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=STATION_SNAPSHOTS)


def _snapshot_row(city: City, moment: datetime) -> dict[str, Any]:
    return wrm.payload_row(city.snapshot(moment).encode(), "simulated", None, moment, moment + LATENCY)


def _attempt_row(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {
        "resource": "station_snapshots",
        "url": snapshot["source_key"],
        "attempted_at": snapshot["observed_at"],
        "attempt_number": 1,
        "status": 200,
        "response_bytes": snapshot["payload_bytes"],
        "latency_seconds": LATENCY.total_seconds(),
        "payload_sha256": snapshot["payload_sha256"],
        "is_unchanged": False,
    }


def _record_run(settings: Settings, started_at: datetime) -> None:
    """Put a run on record that did what a run does, in one step."""
    ended_at = started_at + timedelta(seconds=10)
    row = {
        "run_id": f"{started_at:%Y%m%dT%H%M%S}-000000",
        "job": "run",
        "trigger": "cron",
        "started_at": started_at,
        "ended_at": ended_at,
        "outcome": "succeeded",
    }
    step = Step("dbt_invocation", "transform", "build", None, "success", started_at, ended_at, nodes_count=1)
    run_history.record(settings, row, [step])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--days", type=int, nargs=2, default=HISTORIES, help="of history: short and long")
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS_PER_DAY, help="of history, per day")
    steps = parser.add_subparsers(dest="step").add_parser("step", help="prepare a place")
    steps.add_argument("--days", type=int, required=True)
    steps.add_argument("--snapshots", type=int, required=True)
    given = parser.parse_args()
    if given.step:
        run_command(lambda settings: prepare(settings, given.days, given.snapshots))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        options = {"days": 1, "cadence_minutes": 1.0, "stations": 235, "free_bikes": 115, "error_share": 0.0}
        with open_bench(Path(folder), repeats=given.repeats, **options) as bench:
            for one in measure(bench, given.days, given.snapshots):
                print(one)


if __name__ == "__main__":
    main()
