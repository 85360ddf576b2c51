"""Metrics for Prometheus, under the prefix `bike_data_flow_`: scripts/monitoring/README.md lists them.

`watch` serves them at METRICS_ADDRESS: gauges of how the pipeline is doing, the ages among them as of the
moment they are asked for, and counters and histograms of what the process did. Other jobs write them to
METRICS_TEXTFILE, for node_exporter's textfile collector: without the counters, which would begin anew with
every job, and without ages, which would stand still; the timestamps of both are there. Objects and bytes of
the lake are in the textfile alone: to count them lists the whole lake, and jobs end less often than `watch`
measures.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    start_http_server,
    write_to_textfile,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ingestion.settings import Settings
from scripts.alerts import was_interrupted
from scripts.command import CommandError
from scripts.health import Health, RunHealth, SourceHealth
from scripts.incidents import open_incidents
from scripts.pipeline_run import Run

PREFIX = "bike_data_flow"
RUN_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
FETCH_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60)
CONDITIONS = ("run", "stale", "coverage", "quality", "quarantine", "watch")
# how a run's error begins: with its class, or with what the feed did
ERROR_KINDS = {
    "feed": r"The feed is|The server refused|The body is",
    "archive": r"ArchiveError|\d+ files were refused",
    "lease": r"Lease\w+Error",
    "storage": r"OSError|\w*(Connect|Connection|Timeout|ReadTimeout|Endpoint\w*)Error|ClientError|S3Error"
    r"|NoCredentialsError|FileNotFoundError|PermissionError|HTTPException|IOException",
    "postgres": r"OperationalError|InterfaceError|DatabaseError|PostgresError|psycopg2",
    "dbt": r"DbtError",
}
OTHER_ERROR = "other"


@dataclass(frozen=True)
class LastRun:
    """The last run of a job that is known."""

    ended_at: float  # Unix seconds
    seconds: float
    is_failed: bool


class Metrics:
    """A registry of its own with everything that the project tells Prometheus."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.gauges = Gauges(settings)
        self.registry.register(self.gauges)
        self.runs = Counter(
            f"{PREFIX}_runs",
            "Runs by outcome: succeeded, failed or interrupted",
            ["job_name", "outcome"],
            registry=self.registry,
        )
        self.run_seconds = Histogram(
            f"{PREFIX}_run_duration_seconds",
            "What runs took, in seconds",
            ["job_name"],
            buckets=RUN_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            f"{PREFIX}_errors", "Runs that failed, by kind of trouble", ["kind"], registry=self.registry
        )
        self.snapshots = Counter(
            f"{PREFIX}_snapshots",
            "Polls of a feed: taken, unchanged or failed",
            ["source", "outcome"],
            registry=self.registry,
        )
        self.fetch_seconds = Histogram(
            f"{PREFIX}_fetch_duration_seconds",
            "What polls of a feed took, retries and loading included, in seconds",
            ["source"],
            buckets=FETCH_SECONDS,
            registry=self.registry,
        )
        self.exported_rows = Counter(
            f"{PREFIX}_exported_rows",
            "Rows inserted or updated in PostgreSQL, by public table",
            ["table"],
            registry=self.registry,
        )
        for kind in (*ERROR_KINDS, OTHER_ERROR):
            self.errors.labels(kind)  # from zero, so that the first one is an increase

    def note_health(self, health: Health) -> None:
        """Take over how the pipeline is doing."""
        self.gauges.health = health

    def run_ended(self, run: Run) -> None:
        """Count a run that has ended; one that was interrupted leaves open how the job is doing."""
        ended_at = run.ended_at or datetime.now(UTC)
        seconds = (ended_at - run.started_at).total_seconds()
        ended = "succeeded" if run.error is None else "interrupted" if was_interrupted(run) else "failed"
        for outcome in ("succeeded", "failed", "interrupted"):
            self.runs.labels(run.job, outcome).inc(outcome == ended)
        if ended == "interrupted":
            return
        self.run_seconds.labels(run.job).observe(seconds)
        if run.error is not None:
            self.errors.labels(error_kind(run.error)).inc()
        self.gauges.last_runs[run.job] = LastRun(ended_at.timestamp(), seconds, run.error is not None)

    def poll_ended(self, source: str, outcome: str, seconds: float) -> None:
        """Count a poll of a source's feed: taken, unchanged or failed."""
        for each in ("taken", "unchanged", "failed"):
            self.snapshots.labels(source, each).inc(each == outcome)
        self.fetch_seconds.labels(source).observe(seconds)

    def rows_exported(self, table: str, rows: int) -> None:
        """Count rows that a public table was given."""
        self.exported_rows.labels(table).inc(rows)

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serve /metrics at METRICS_ADDRESS for the length of a `with` block; gives its URL.

        Raises `CommandError` where the address cannot be had.
        """
        host, port = self.settings.metrics_address
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise CommandError(
                f"Metrics cannot be served: {host}:{port} ({error.strerror}). End what listens there, or "
                "name another METRICS_ADDRESS; port 0 takes a free one."
            ) from None
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{server.server_port}/metrics"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Gauges(Collector):
    """What holds at the moment of asking."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.build = {"environment": settings.environment, "python": platform.python_version()} | _versions()
        self.health: Health | None = None
        self.last_runs: dict[str, LastRun] = {}  # by job, of this process

    def collect(self) -> Iterator[Metric]:
        now = datetime.now(UTC)
        yield from self.facts(now)
        yield from self.ages(now)

    def facts(self, now: datetime) -> Iterator[Metric]:
        """What stays true until the next figures."""
        yield _gauge("build_info", "Versions and environment; always 1", [(self.build, 1)])
        thresholds = {
            "stale_threshold_seconds": ("ALERT_STALE_MINUTES, in seconds", self.stale_seconds),
            "score_threshold": ("ALERT_MIN_SCORE, in points of 100", self.settings.alert_min_score),
            "quarantine_threshold_ratio": (
                "ALERT_MAX_QUARANTINE_PCT, as a share of 1",
                self.settings.alert_max_quarantine_pct / 100,
            ),
        }
        for name, (meaning, value) in thresholds.items():
            yield _gauge(name, meaning, [({}, value)])
        yield from self._incidents()
        yield from self._last_runs()
        if self.health is not None:
            yield from self._sources(self.health, now)
            yield from _layers(self.health)
            yield from _warehouse(self.health)
            measured = self.health.measured_at.timestamp()
            yield _gauge(
                "health_timestamp_seconds",
                "When the figures were measured, in Unix seconds",
                [({}, measured)],
            )

    def ages(self, now: datetime) -> Iterator[Metric]:
        """What grows by itself, also while the process hangs."""
        if self.health is None:
            return
        sources = self.health.sources
        yield _gauge(
            "last_snapshot_age_seconds",
            "Since the last snapshot was observed, in seconds",
            [({"source": s.source}, _age(now, s.last_snapshot_at)) for s in sources if s.last_snapshot_at],
        )
        yield _gauge(
            "feed_failing_seconds",
            "Since the first of the attempts that failed after the last good one, in seconds; 0 without",
            [({"source": s.source}, _age(now, s.failing_since)) for s in sources],
        )
        yield _gauge(
            "health_age_seconds",
            "Since the figures were measured, in seconds",
            [({}, _age(now, self.health.measured_at))],
        )

    @property
    def stale_seconds(self) -> float:
        return self.settings.alert_stale_minutes * 60

    def _incidents(self) -> Iterator[Metric]:
        if self.settings.alert_webhook_url is not None:
            found = [key.partition("/")[0] for key in open_incidents(self.settings)]
            yield _gauge(
                "open_incidents",
                "Troubles that alerts know of, as of their last check",
                [({"condition": condition}, found.count(condition)) for condition in CONDITIONS],
            )

    def _last_runs(self) -> Iterator[Metric]:
        recorded = reversed(self.health.runs if self.health else [])
        # one that was interrupted leaves open how the job is doing
        known = {run.job: _last_run(run) for run in recorded if run.outcome != "interrupted"}
        for job, run in list(self.last_runs.items()):
            if job not in known or known[job].ended_at <= run.ended_at:
                known[job] = run
        meanings = {
            "timestamp_seconds": ("When the job's last run ended, in Unix seconds", "ended_at"),
            "duration_seconds": ("What the job's last run took, in seconds", "seconds"),
            "failed": ("1 where the job's last run failed or was killed", "is_failed"),
        }
        for name, (meaning, attribute) in meanings.items():
            values = [
                ({"job_name": job}, float(getattr(run, attribute))) for job, run in sorted(known.items())
            ]
            yield _gauge(f"last_run_{name}", meaning, values)

    def _sources(self, health: Health, now: datetime) -> Iterator[Metric]:
        for name, (meaning, value) in SOURCE_GAUGES.items():
            found = [(source.source, value(source)) for source in health.sources]
            yield _gauge(name, meaning, [({"source": name}, v) for name, v in found if v is not None])
        yield _gauge(
            "feed_stale",
            "1 where the last snapshot is older than ALERT_STALE_MINUTES, or there is none",
            [({"source": source.source}, self._is_stale(source, now)) for source in health.sources],
        )

    def _is_stale(self, source: SourceHealth, now: datetime) -> bool:
        return source.last_snapshot_at is None or _age(now, source.last_snapshot_at) > self.stale_seconds


SOURCE_GAUGES: dict[str, tuple[str, Callable[[SourceHealth], float | None]]] = {
    "last_snapshot_timestamp_seconds": (
        "When the last snapshot was observed, in Unix seconds",
        lambda source: _unix(source.last_snapshot_at),
    ),
    "feed_failing_since_timestamp_seconds": (
        "First of the attempts that failed after the last good one, in Unix seconds; none while it answers",
        lambda source: _unix(source.failing_since),
    ),
    "coverage_ratio": (
        "Share of the snapshots due in the last 24 hours that are there, 0 to 1",
        lambda source: None if source.coverage_pct is None else source.coverage_pct / 100,
    ),
    "coverage_gaps": ("Gaps in the snapshots of the last 24 hours", lambda source: len(source.gaps)),
    "quality_score": (
        "Data quality of the last UTC day that has ended, in points of 100",
        lambda source: source.quality_score,
    ),
    "lines_today": ("Lines received on the current UTC day", lambda source: source.lines_today),
    "quarantined_lines_today": (
        "Lines of the current UTC day that are in quarantine",
        lambda source: source.quarantined_today,
    ),
}


def _layers(health: Health) -> Iterator[Metric]:
    meanings = {
        "lake_rows": ("Rows in the lake, by layer", "rows"),
        "lake_objects": ("Objects in the lake, by layer", "objects"),
        "lake_size_bytes": ("Size of the lake, by layer, in bytes", "bytes"),
    }
    for name, (meaning, attribute) in meanings.items():
        found = [(layer.layer, getattr(layer, attribute)) for layer in health.layers]
        yield _gauge(
            name, meaning, [({"layer": layer}, value) for layer, value in found if value is not None]
        )


def _warehouse(health: Health) -> Iterator[Metric]:
    warehouse = health.warehouse
    rows = [({"table": table}, float(count)) for table, count in sorted(warehouse.rows.items())]
    yield _gauge("warehouse_up", "1 where PostgreSQL answered", [({}, warehouse.error is None)])
    yield _gauge("warehouse_rows", "Rows in PostgreSQL, by public table", rows)
    for name, meaning, value in (
        (
            "warehouse_newest_reading_timestamp_seconds",
            "Newest reading in PostgreSQL, in Unix seconds",
            _unix(warehouse.newest_reading_at),
        ),
        (
            "warehouse_lag_seconds",
            "How far PostgreSQL's newest reading is behind the lake's, in seconds",
            warehouse.lag_seconds,
        ),
    ):
        yield _gauge(name, meaning, [] if value is None else [({}, value)])


def write_textfile(settings: Settings, run: Run, health: Health | None) -> None:
    """Write the gauges to METRICS_TEXTFILE, whole or not at all; nothing to do without the setting.

    What this job does not know stays as the last job wrote it: the last runs of other jobs, and everything
    else where `health` could not be measured.
    """
    if settings.metrics_textfile is None:
        return
    metrics = Metrics(settings)
    metrics.run_ended(run)
    metrics.gauges.health = health
    found = {metric.name: metric for metric in metrics.gauges.facts(datetime.now(UTC))}
    for kept in _read_textfile(settings.metrics_textfile):
        if kept.name.startswith(f"{PREFIX}_last_run_") and kept.name in found:
            known = {sample.labels["job_name"] for sample in found[kept.name].samples} | {None}
            found[kept.name].samples += [s for s in kept.samples if s.labels.get("job_name") not in known]
        elif health is None:
            found.setdefault(kept.name, kept)
    registry = CollectorRegistry()
    registry.register(_Fixed(list(found.values())))
    settings.metrics_textfile.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(settings.metrics_textfile), registry)


def _read_textfile(path: Path) -> list[Metric]:
    try:
        return list(text_string_to_metric_families(path.read_text()))
    except (FileNotFoundError, ValueError):  # the first job, or something that is none of ours
        return []


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> list[Metric]:
        return self.metrics


def error_kind(error: str) -> str:
    """Which of a few kinds an error of a run is."""
    for kind, pattern in ERROR_KINDS.items():
        if re.match(pattern, error):
            return kind
    return OTHER_ERROR


def _versions() -> dict[str, str]:
    packages = {"version": "bike-data-flow", "dlt": "dlt", "dbt": "dbt-core", "duckdb": "duckdb"}
    return {name: version(package) for name, package in packages.items()}


def _gauge(name: str, meaning: str, values: Iterable[tuple[dict[str, str], float]]) -> Metric:
    family = Metric(f"{PREFIX}_{name}", meaning, "gauge")
    for labels, value in values:
        family.add_sample(family.name, labels, float(value))
    return family


def _last_run(run: RunHealth) -> LastRun:
    seconds = run.seconds or 0.0
    return LastRun(run.started_at.timestamp() + seconds, seconds, run.outcome != "succeeded")


def _unix(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None


def _age(now: datetime, moment: datetime | None) -> float:
    return (now - moment).total_seconds() if moment else 0.0
