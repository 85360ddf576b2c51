"""How the pipeline is doing, in figures: what `status` shows, /metrics serves and alerts are about."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg2
from psycopg2 import sql

from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT, Settings
from scripts.lake_reader import LakeReader, read_again_where_objects_go
from scripts.lease import Holder, lease_holder
from scripts.schedules import next_runs
from scripts.start_postgres import PostgresError, running_postgres
from transform.plugins.lake import LAYERS, SEEDS, first_exported_day

SOURCE = "wrm"
SNAPSHOTS = f"{SOURCE}/station_snapshots"
ATTEMPTS = f"{SOURCE}/fetch_attempts"
RUNS = "pipeline/runs"
OBSERVATIONS = "int_wrm__snapshots_received"

WINDOW = timedelta(hours=24)
# Objects are told apart by when the store says they were written; its clock may be so far from ours.
CLOCK_TOLERANCE = timedelta(minutes=10)
# More than one folding of small objects into few writes at once, and more than what `status` shows of runs.
NEWEST_OBJECTS = 64
LARGE_TABLE_BYTES = 16 * 2**20
CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10

logger = logging.getLogger("bike-data-flow")


@dataclass(frozen=True)
class Gap:
    """A time without snapshots where some were due (UTC)."""

    started_at: datetime
    ended_at: datetime | None  # None: it goes on


@dataclass(frozen=True)
class SourceHealth:
    """How a source's feed and its data are doing."""

    source: str
    last_snapshot_at: datetime | None  # observed, also when it was unchanged
    age_seconds: float | None
    is_stale: bool  # older than ALERT_STALE_MINUTES, or none at all
    failing_since: datetime | None  # first of the attempts that have failed since the last good one
    last_error: str | None  # of the last attempt, None when it succeeded
    coverage_pct: float | None  # of the snapshots due in the last 24 hours, 0 to 100
    gaps: list[Gap]  # of the last 24 hours, the newest last
    quality_day: date | None  # the last UTC day that has ended and has a score
    quality_score: float | None  # 0 to 100
    lines_today: int  # received on the current UTC day
    quarantined_today: int
    quarantine_pct: float  # of today's lines


@dataclass(frozen=True)
class LayerHealth:
    """What the lake holds in one layer."""

    layer: str  # bronze, silver, gold
    rows: int  # of bronze: the snapshots and unchanged polls that are built
    objects: int | None  # None, and so are the bytes: not asked for
    bytes: int | None


@dataclass(frozen=True)
class WarehouseHealth:
    """How PostgreSQL keeps up."""

    error: str | None  # why it could not be asked
    rows: dict[str, int]  # per public table, as the planner estimates large ones
    newest_reading_at: datetime | None
    lag_seconds: float | None  # behind the lake's newest snapshot, 0 when PostgreSQL holds it
    is_slow: bool = False  # it answers, but not all of this within STATEMENT_SECONDS: the rest is unknown


@dataclass(frozen=True)
class RunHealth:
    """One of the last runs."""

    run_id: str
    job: str
    trigger: str
    started_at: datetime
    seconds: float | None  # None: it was killed, nobody knows when
    outcome: str  # succeeded, failed, interrupted, killed
    error: str | None


@dataclass(frozen=True)
class Health:
    """Everything at one moment (UTC)."""

    measured_at: datetime
    sources: list[SourceHealth]
    layers: list[LayerHealth]
    warehouse: WarehouseHealth
    runs: list[RunHealth]  # the newest first
    at_work: str | None  # which job holds the lake's lease
    next_work: dict[str, datetime]  # what is scheduled, and when it is due at the latest


def measure_health(
    settings: Settings, *, runs: int = 5, with_sizes: bool = False, measured_at: datetime | None = None
) -> Health:
    """How everything does now, or as of `measured_at`, with the last `runs`. It takes no lock, writes nothing
    and reads the newest days only, so that its cost does not grow with the history; `with_sizes` lists the
    whole lake.

    Raises what the lake's store raises when it is out of reach; PostgreSQL may be away.
    """
    now = measured_at or datetime.now(UTC)
    lake = Lake.of(settings)
    holder = lease_holder(lake)
    source, newest, layers, last_runs = read_again_where_objects_go(
        lambda: _measure_lake(settings, now, runs, with_sizes)
    )
    return Health(
        measured_at=now,
        sources=[source],
        layers=layers,
        warehouse=_measure_warehouse(settings, newest, now),
        runs=last_runs,
        at_work=str(holder) if holder else None,
        next_work=_next_work(settings, holder, now),
    )


@contextlib.contextmanager
def warehouse_to_ask(settings: Settings) -> Iterator[None]:
    """Have the embedded PostgreSQL, where there is one, running for the length of a `with` block that
    measures health; what is not there is not made."""
    with contextlib.ExitStack() as stack:
        if settings.postgres_data_dir.exists():
            try:
                stack.enter_context(running_postgres(settings))
            except PostgresError as error:  # measured as out of reach
                logger.warning("%s", error)
        yield


def snapshot_cadence(day: date) -> timedelta:
    """How often a snapshot is expected on a day, by the seed `snapshot_cadences`."""
    with open(SEEDS / "snapshot_cadences.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["system_id"] == SOURCE]
    valid = [row for row in rows if date.fromisoformat(row["valid_from"]) <= day]
    return timedelta(minutes=float(max(valid, key=lambda row: row["valid_from"])["minutes"]))


def missing_snapshots(started_at: datetime, ended_at: datetime, cadence: timedelta) -> int:
    """Snapshots that are missing between two, as `fct_coverage_gaps` counts: one is, when it is late by half
    a cadence."""
    return max(0, math.floor((ended_at - started_at) / cadence + 0.5) - 1)


def list_gaps(settings: Settings, now: datetime) -> list[Gap]:
    """Every gap in the snapshots, the newest last."""

    def read() -> list[Gap]:
        with closing(LakeReader(settings)) as lake:
            return _gaps(lake, _observe(lake, now).latest, now, None)

    return read_again_where_objects_go(read)


def daily_quality(settings: Settings, days: int, today: date) -> list[dict[str, Any]]:
    """Scores and percentages of the last UTC days that were built, the newest last."""

    def read() -> list[dict[str, Any]]:
        with closing(LakeReader(settings)) as lake:
            names = ["dt", "quality_score", "completeness_pct", "validity_pct", "uniqueness_pct"]
            names += ["consistency_pct", "stations_count", "stale_feed_minutes"]
            built = lake.built_days("fct_daily_data_quality")
            wanted = [day for day in built if today - timedelta(days=days) < day <= today]
            columns = ", ".join(names)
            rows = lake.model_rows(
                "fct_daily_data_quality", wanted, f"select {columns} from rows order by dt"
            )
            return [dict(zip(names, row, strict=True)) for row in rows]

    return read_again_where_objects_go(read)


@dataclass(frozen=True)
class _Observation:
    """A snapshot, or a poll that gave the one before once more."""

    at: datetime
    fetched_at: datetime
    is_stored: bool
    is_live: bool  # polled, not imported


@dataclass(frozen=True)
class _Poll:
    """One attempt to poll the feed."""

    at: datetime
    is_unchanged: bool
    error: str | None


@dataclass(frozen=True)
class _Seen:
    """What is known of the newest two days of either, bronze and what is built."""

    observations: list[_Observation]
    polls: list[_Poll]
    built_until: datetime | None  # the last observation that is built

    @property
    def not_built(self) -> list[datetime]:
        """Observations since."""
        until = self.built_until
        return [each.at for each in self.observations if until is None or each.at > until]

    @property
    def latest(self) -> list[datetime]:
        """The last observation that is built and those since."""
        return [self.built_until, *self.not_built] if self.built_until else self.not_built


def _measure_lake(
    settings: Settings, now: datetime, runs: int, with_sizes: bool
) -> tuple[SourceHealth, _Observation | None, list[LayerHealth], list[RunHealth]]:
    with closing(LakeReader(settings)) as lake:
        seen = _observe(lake, now)
        source = _measure_source(settings, lake, seen, now)
        newest = next((each for each in reversed(seen.observations) if each.is_stored), None)
        return source, newest, _measure_layers(lake, with_sizes), _last_runs(lake, runs)


def _observe(lake: LakeReader, now: datetime) -> _Seen:
    built = _built_observations(lake, now)
    polls = _fresh_polls(lake, built, now)
    fresh = _fresh_snapshots(lake, now)
    fresh |= {_Observation(poll.at, poll.at, False, True) for poll in polls if poll.is_unchanged}
    observations = sorted(built | fresh, key=lambda each: each.at)
    return _Seen(observations, polls, max((each.at for each in built), default=None))


def _built_observations(lake: LakeReader, now: datetime) -> set[_Observation]:
    """Those of the newest two days that were built."""
    days = [day for day in lake.built_days(OBSERVATIONS) if day <= now.date()][-2:]
    columns = "snapshot_observed_at, fetched_at, not is_unchanged, source_key like 'http%'"
    rows = lake.model_rows(OBSERVATIONS, days, f"select {columns} from rows")
    return {_Observation(_utc(at), _utc(fetched_at), *flags) for at, fetched_at, *flags in rows}


def _fresh_snapshots(lake: LakeReader, now: datetime) -> set[_Observation]:
    """Those of the newest two days of bronze that were written since the days were built."""
    found = set()
    for day in [day for day in lake.bronze_days(SNAPSHOTS) if day <= now.date()][-2:]:
        built_at = lake.built_at(OBSERVATIONS, day)
        objects = [
            each.path
            for each in lake.bronze_objects(SNAPSHOTS, day)
            if not built_at or each.written_at > built_at - CLOCK_TOLERANCE
        ]
        columns = "observed_at::timestamp, fetched_at::timestamp, source_key like 'http%'"
        rows = lake.rows(objects, f"select {columns} from rows")
        found |= {_Observation(_utc(at), _utc(fetched), True, is_live) for at, fetched, is_live in rows}
    return found


def _fresh_polls(lake: LakeReader, built: set[_Observation], now: datetime) -> list[_Poll]:
    """Polls since the last good one that was built, in order: those of the first two days, on which a trouble
    began, and of the last two."""
    since = max((each.at for each in built if each.is_live), default=None)
    days = [day for day in lake.bronze_days(ATTEMPTS) if day <= now.date()]
    days = [day for day in days if day >= since.date()] if since else days[-2:]
    objects = [
        each.path
        for day in sorted({*days[:2], *days[-2:]})
        for each in lake.bronze_objects(ATTEMPTS, day)
        if since is None or each.written_at > since - CLOCK_TOLERANCE
    ]
    rows = lake.rows(
        objects,
        "select attempted_at::timestamp, is_unchanged, error from rows "
        # a file of an archive that was refused is an attempt as well, but took no time
        "where resource = 'station_snapshots' and latency_seconds is not null "
        "order by attempted_at, attempt_number",
    )
    return [_Poll(_utc(at), is_unchanged, error) for at, is_unchanged, error in rows]


def _measure_source(settings: Settings, lake: LakeReader, seen: _Seen, now: datetime) -> SourceHealth:
    last_at = seen.latest[-1] if seen.latest else None
    age_seconds = max(0.0, (now - last_at).total_seconds()) if last_at else None
    quality_day, quality_score = _last_quality(lake, now.date())
    lines, quarantined = _lines_of(lake, now.date())
    gaps = _gaps(lake, seen.latest, now, _window_start(now))
    return SourceHealth(
        source=SOURCE,
        last_snapshot_at=last_at,
        age_seconds=age_seconds,
        is_stale=age_seconds is None or age_seconds > settings.alert_stale_minutes * 60,
        failing_since=_failing_since(seen.polls),
        last_error=seen.polls[-1].error if seen.polls else None,
        coverage_pct=_coverage_pct(lake, seen, gaps, now),
        gaps=gaps,
        quality_day=quality_day,
        quality_score=quality_score,
        lines_today=lines,
        quarantined_today=quarantined,
        quarantine_pct=100 * quarantined / lines if lines else 0.0,
    )


def _failing_since(polls: list[_Poll]) -> datetime | None:
    since = None
    for poll in polls:
        since = (since or poll.at) if poll.error else None
    return since


def _coverage_pct(lake: LakeReader, seen: _Seen, gaps: list[Gap], now: datetime) -> float | None:
    """Of the snapshots due since the window or the lake began, those that the gaps do not miss."""
    if not seen.latest:
        return None
    since = _window_start(now)
    cadence = snapshot_cadence(now.date())
    started_at = since
    if min(lake.built_days(OBSERVATIONS) + lake.bronze_days(SNAPSHOTS)) >= since.date():
        started_at = max(since, seen.observations[0].at - cadence)
    missing = sum(
        missing_snapshots(max(gap.started_at, since - cadence), gap.ended_at or now, cadence) for gap in gaps
    )
    return max(0.0, 100 * (1 - missing / ((now - started_at) / cadence)))


def _window_start(now: datetime) -> datetime:
    """24 hours by the clock, the running one among them."""
    return now.replace(minute=0, second=0, microsecond=0) - WINDOW + timedelta(hours=1)


def _gaps(lake: LakeReader, latest: list[datetime], now: datetime, since: datetime | None) -> list[Gap]:
    """Gaps that ended after `since`: those that were built, those between the `latest` observations, and the
    one that goes on."""
    days = [day for day in lake.built_days("fct_coverage_gaps") if since is None or day >= since.date()]
    rows = lake.model_rows("fct_coverage_gaps", days, "select started_at, ended_at from rows order by 1")
    gaps = [Gap(_utc(started_at), _utc(ended_at)) for started_at, ended_at in rows]
    for started_at, ended_at in pairwise(latest):
        if missing_snapshots(started_at, ended_at, snapshot_cadence(ended_at.date())):
            gaps.append(Gap(started_at, ended_at))
    if since is not None:
        gaps = [gap for gap in gaps if gap.ended_at and gap.ended_at > since]
    if latest and missing_snapshots(latest[-1], now, snapshot_cadence(now.date())):
        gaps.append(Gap(latest[-1], None))
    return gaps


def _last_quality(lake: LakeReader, today: date) -> tuple[date | None, float | None]:
    days = [day for day in lake.built_days("fct_daily_data_quality") if day < today][-3:]
    query = "select dt, quality_score from rows where quality_score is not null order by dt desc limit 1"
    for day, score in lake.model_rows("fct_daily_data_quality", days, query):
        return day, score
    return None, None


def _lines_of(lake: LakeReader, day: date) -> tuple[int, int]:
    """Lines received on a day, and how many of them are quarantined."""
    days = [built for built in lake.built_days("fct_daily_processing") if built == day]
    query = "select lines_count, quarantined_count from rows"
    for lines, quarantined in lake.model_rows("fct_daily_processing", days, query):
        return lines, quarantined
    return 0, 0


def _measure_layers(lake: LakeReader, with_sizes: bool) -> list[LayerHealth]:
    layers = []
    for layer in ("bronze", *LAYERS):
        models = (
            [OBSERVATIONS]
            if layer == "bronze"
            else [model for model, state in lake.states.items() if state.layer == layer]
        )
        size = lake.size(layer) if with_sizes else (None, None)
        layers.append(LayerHealth(layer, sum(lake.row_count(model) for model in models), *size))
    return layers


def _last_runs(lake: LakeReader, count: int) -> list[RunHealth]:
    found: dict[str, RunHealth] = {}
    days = lake.bronze_days(RUNS)
    while days and len(found) < count:
        objects = [each.path for each in lake.bronze_objects(RUNS, days.pop())[:NEWEST_OBJECTS]]
        columns = "run_id, job, trigger, started_at::timestamp, ended_at::timestamp, outcome, error"
        for run_id, job, trigger, started_at, ended_at, outcome, error in lake.rows(
            objects, f"select {columns} from rows order by started_at desc limit {count}"
        ):
            seconds = (ended_at - started_at).total_seconds() if ended_at else None
            found[run_id] = RunHealth(run_id, job, trigger, _utc(started_at), seconds, outcome, error)
    return list(found.values())[:count]


def _measure_warehouse(settings: Settings, newest: _Observation | None, now: datetime) -> WarehouseHealth:
    if settings.postgres_url is None and not settings.postgres_data_dir.exists():
        return WarehouseHealth("there is no embedded PostgreSQL yet", {}, None, None)
    rows: dict[str, int] = {}
    try:
        with closing(
            psycopg2.connect(**settings.postgres_parameters(), connect_timeout=CONNECT_SECONDS)
        ) as connection:
            connection.set_session(readonly=True, autocommit=True)
            cursor = connection.cursor()
            cursor.execute("set statement_timeout = %s", [STATEMENT_SECONDS * 1000])
            rows = _table_rows(cursor, settings.postgres_schema)
            if "bike_stations" not in rows:
                return WarehouseHealth(None, rows, None, None)
            reading_at, processed_at = _newest_reading(cursor, settings.postgres_schema)
    except psycopg2.errors.QueryCanceled:
        return WarehouseHealth(None, rows, None, None, is_slow=True)
    except psycopg2.Error as error:
        return WarehouseHealth(" ".join(str(error).split()), {}, None, None)
    first_day = first_exported_day(settings.export_retention_days, now.date())
    if newest is None or reading_at is None or (first_day and newest.at.date() < first_day):
        return WarehouseHealth(None, rows, reading_at, None)
    # told by the fetch, as the feed's own clock may stand still
    holds_newest = processed_at is not None and processed_at >= newest.fetched_at
    lag_seconds = 0.0 if holds_newest else max(0.0, (newest.at - reading_at).total_seconds())
    return WarehouseHealth(None, rows, reading_at, lag_seconds)


def _table_rows(cursor: psycopg2.extensions.cursor, schema: str) -> dict[str, int]:
    """Rows of each public table that is there: small ones counted, large ones as the planner estimates them,
    which it does by their size where they were never analyzed."""
    known = sorted(path.stem for path in PROJECT_ROOT.glob("exports/models/*/*.sql"))
    cursor.execute(
        "select relname, pg_relation_size(oid) from pg_class "
        "where relnamespace = to_regnamespace(%s) and relkind = 'r' and relname = any(%s) order by 1",
        [schema, known],
    )
    sizes = dict(cursor.fetchall())
    small = [table for table, size in sizes.items() if size <= LARGE_TABLE_BYTES]
    rows = {}
    for table in sizes.keys() - {*small}:
        cursor.execute(
            sql.SQL("explain (format json) select 1 from {}").format(sql.Identifier(schema, table))
        )
        [(plans,)] = cursor.fetchall()
        rows[table] = plans[0]["Plan"]["Plan Rows"]
    counts = [
        sql.SQL("select {}, count(*) from {}").format(sql.Literal(table), sql.Identifier(schema, table))
        for table in small
    ]
    if counts:
        cursor.execute(sql.SQL(" union all ").join(counts))
        rows |= dict(cursor.fetchall())
    return dict(sorted(rows.items()))


def _newest_reading(
    cursor: psycopg2.extensions.cursor, schema: str
) -> tuple[datetime | None, datetime | None]:
    """When the newest reading was taken, and when the newest load of about that time was fetched."""
    cursor.execute(
        sql.SQL(
            'with newest as (select max("timestamp") as at from {table}) '
            "select at, (select max(processed_at) from {table} where \"timestamp\" > at - interval '1 hour') "
            "from newest"
        ).format(table=sql.Identifier(schema, "bike_stations"))
    )
    [(reading_at, processed_at)] = cursor.fetchall()
    return (_utc(reading_at), _utc(processed_at)) if reading_at else (None, None)


def _next_work(settings: Settings, holder: Holder | None, now: datetime) -> dict[str, datetime]:
    work = {}
    if holder and holder.job == "watch":
        work["poll by watch"] = now + timedelta(seconds=settings.watch_poll_seconds)
        work["export by watch"] = now + timedelta(seconds=settings.watch_export_seconds)
    return work if settings.environment == "dev" else work | next_runs(now)


def _utc(at: datetime) -> datetime:
    """A moment that is told without its zone, as DuckDB and PostgreSQL do."""
    return at.replace(tzinfo=UTC)
