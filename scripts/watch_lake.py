"""Watch the feed and the archive, keep the lake built and PostgreSQL up to date, until Ctrl-C or SIGTERM:

python -m scripts.watch_lake

Two sensors look for what is new: the raw sensor polls the feed and looks at the archive every
WATCH_POLL_SECONDS, the export sensor looks at what PostgreSQL lacks every WATCH_EXPORT_SECONDS, and at once
when something has come in. One round of the loop does what is due: poll, readings to PostgreSQL, build, marts
to PostgreSQL. What fails is tried again later and later, and does not keep the rest from its work.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg2

from ingestion.archive import ArchiveError
from ingestion.compaction import recover
from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT, Settings
from ingestion.wrm import SOURCE, ImportOutcome, SeenArchive
from scripts.alerts import Alerts, Finding
from scripts.command import WATCHED, explain, run_command, the_only_job
from scripts.compact_bronze import compact
from scripts.foreground import wait_until_stopped
from scripts.health import measure_health
from scripts.lease import Holder, LeaseLostError
from scripts.metrics import Metrics
from scripts.pipeline_run import Run, new_run_id, pipeline_run
from scripts.run_dbt import DbtError, close_duckdb
from scripts.run_pipeline import (
    export_marts,
    export_readings,
    import_archive,
    import_recent,
    reconcile,
    take_snapshot,
    transform,
)
from scripts.start_postgres import running_postgres
from transform.plugins.lake import listing_only

# a sensor that fails again and again waits up to so many of its intervals
LONGEST_BACKOFF = 5
HISTORY_SECONDS = 15 * 60
COMPACTION_SECONDS = 60 * 60
FULL_CHECK_HOUR = 3  # UTC
WITHOUT_HISTORY = ("--selector", "stale_days_without_history")

MODELS = PROJECT_ROOT / "transform" / "models"
# what a sensor's failure may come from, in words
MATTERS = {"lake": "the lake's storage", "warehouse": "PostgreSQL"}

logger = logging.getLogger("bike-data-flow")


@dataclass
class Sensor:
    """Work that is due now and then, or when it is woken; after a failure it waits longer each time."""

    name: str
    interval_seconds: float
    work: Callable[[], None]
    backs_off: bool = True
    due_at: float = 0  # of time.monotonic()
    failures: int = 0
    failing_since: datetime | None = None
    error: str | None = None  # of the last attempt
    trouble: str = ""  # what that comes from: lake, warehouse, or the sensor's own name

    def wake(self) -> None:
        """Be due now, unless it is waiting after a failure."""
        if not self.failures:
            self.due_at = 0

    def attempt(self) -> None:
        """Do the work; what goes wrong is kept in `error`, except the loss of the lease."""
        started = time.monotonic()
        self.error = None
        try:
            self.work()
        except LeaseLostError:
            raise
        except Exception as failure:
            self.error = explain(failure)
            if self.error is None:  # a mistake of the project's own
                self.error = f"{type(failure).__name__}: {failure}"
                logger.exception("%s failed", self.name)
            close_duckdb()
        self.failures = self.failures + 1 if self.error else 0
        self.failing_since = (self.failing_since or datetime.now(UTC)) if self.error else None
        times = min(2 ** max(self.failures - 1, 0), LONGEST_BACKOFF) if self.backs_off else 1
        waits = self.interval_seconds * times
        self.due_at = (time.monotonic() if self.error else started) + waits
        if self.error:
            logger.warning("%s failed, next try in %.0f s. %s", self.name, waits, self.error)


@dataclass
class Watch:
    """What has come in and is not built, or not exported, yet; and the sensors that see to it."""

    settings: Settings
    seen: SeenArchive = field(default_factory=SeenArchive)
    unbuilt: set[date] = field(default_factory=set)  # UTC days that have something new in bronze
    unexported: set[date] = field(default_factory=set)
    has_marts_to_export: bool = False
    is_reconciled: bool = True
    # what has to look at the whole lake, or archive, instead of its recent days
    unchecked: set[str] = field(default_factory=lambda: {"archive", "build", "readings"})
    checked_on: date = field(default_factory=lambda: datetime.now(UTC).date())
    history_due_at: float = 0
    is_idle: bool = True  # this round has brought nothing further

    def __post_init__(self) -> None:
        self.alerts = Alerts(self.settings)
        self.metrics = Metrics(self.settings)
        poll, export = self.settings.watch_poll_seconds, self.settings.watch_export_seconds
        # the feed shows only now, and what it shows can wait on the local disk for a lake that is away
        self.raw = Sensor("poll", poll, self.poll, backs_off=False)
        self.archive = Sensor("archive", poll, self.look_at_archive)
        self.export = Sensor("export", export, self.bring_to_postgres)
        self.build = Sensor("build", export, self.build_lake)
        self.compaction = Sensor("compact", COMPACTION_SECONDS, self.compact)
        self.compaction.due_at = time.monotonic() + COMPACTION_SECONDS
        self.health = Sensor("health", export, self.report_health)
        self.sensors = [self.raw, self.archive, self.export, self.build, self.compaction, self.health]

    def run_round(self, stopped: threading.Event) -> list[str]:
        """Do what is due, and what that wakes, sensor by sensor until `stopped` is set; gives what failed."""
        self.is_idle = True
        had_turn: list[Sensor] = []
        while not stopped.is_set():
            sensor = next((sensor for sensor in self.sensors if self._has_turn(sensor, had_turn)), None)
            if sensor is None:
                break
            sensor.attempt()
            if sensor.error:
                self._note_trouble(sensor)
            had_turn.append(sensor)
        return [f"{sensor.name}: {sensor.error}" for sensor in self.failing() if sensor in had_turn]

    def _has_turn(self, sensor: Sensor, had_turn: list[Sensor]) -> bool:
        # the export has two: readings before the build, marts after it
        turns = 2 if sensor is self.export and self.build in had_turn else 1
        return sensor.due_at <= time.monotonic() and had_turn.count(sensor) < turns

    def _note_trouble(self, sensor: Sensor) -> None:
        """What a failure comes from: several sensors fail of one lake that is away, which is one trouble. It
        stays the same trouble when the lake answers again before the sensor has come round."""
        if not _lake_answers(self.settings):
            sensor.trouble = "lake"
        elif not _warehouse_answers(self.settings):
            sensor.trouble = "warehouse"
        elif sensor.failures == 1:
            sensor.trouble = sensor.name

    def failing(self) -> list[Sensor]:
        return [sensor for sensor in self.sensors if sensor.error]

    def seconds_until_due(self) -> float:
        return max(0.0, min(sensor.due_at for sensor in self.sensors) - time.monotonic())

    def check_everything(self) -> None:
        """Have the next round look at the whole lake and archive, once a night."""
        now = datetime.now(UTC)
        if now.hour >= FULL_CHECK_HOUR and now.date() > self.checked_on:
            self.checked_on = now.date()
            self.unchecked = {"archive", "build", "readings", "compact"}
            self.compaction.wake()
            self.build.wake()
            self.export.wake()

    def poll(self) -> None:
        """The feed. One that does not answer is recorded, and asked again as ever."""
        started = time.monotonic()
        what = "failed"
        try:
            outcome = take_snapshot(self.settings)
            what = "failed" if outcome.error else "taken" if outcome.is_taken else "unchanged"
            if outcome.is_taken:
                self._wake_for({_today()})
            if outcome.error:
                logger.warning("%s.", outcome.error)
        finally:  # every attempt is a row, and a load that failed may be finished by the next
            self.metrics.poll_ended(SOURCE, what, time.monotonic() - started)
            self.unbuilt.add(_today())
            self.unexported.add(_today())

    def look_at_archive(self) -> None:
        """New files of WATCH_ARCHIVE."""
        if self.settings.watch_archive:
            try:
                self._wake_for(self._look_at(self.settings.watch_archive).days)
            except Exception:  # some of its days may have landed: which is not known
                self.unchecked |= {"archive", "build", "readings"}
                raise

    def _look_at(self, archive: str) -> ImportOutcome:
        if "archive" not in self.unchecked:
            return import_recent(self.settings, archive, _recent_days(), self.seen)
        try:
            outcome = import_archive(self.settings, archive, self.seen)
        except ArchiveError as error:  # it may come to be
            logger.warning("%s", error)
            outcome = ImportOutcome()
        self.unchecked.discard("archive")
        return outcome

    def _wake_for(self, days: set[date]) -> None:
        if days:
            self.unbuilt |= days
            self.unexported |= days
            self.is_idle = False
            self.export.wake()
            self.build.wake()

    def bring_to_postgres(self) -> None:
        """New readings, and the days of marts that were rebuilt."""
        self._mend_bronze()
        with running_postgres(self.settings):  # also where the embedded server was stopped meanwhile
            if self.unexported or "readings" in self.unchecked:
                with self._listing("readings", self.unexported):
                    export_readings(self.settings)
                self.unexported.clear()
                self.is_idle = False
            if self.has_marts_to_export:
                with self._listing("marts", set()):
                    export_marts(self.settings)
                self.has_marts_to_export = False
                self.is_reconciled = False
                self.is_idle = False
            if not self.is_reconciled and not self.unbuilt:  # or PostgreSQL is ahead of the lake
                reconcile(self.settings)
                self.is_reconciled = True

    def build_lake(self) -> None:
        """Rebuild the days that have something new, and the history of runs now and then."""
        if not self.unbuilt and "build" not in self.unchecked:
            return
        self._mend_bronze()
        has_history = "build" in self.unchecked or time.monotonic() >= self.history_due_at
        self.is_idle = False
        try:
            with self._listing("build", self.unbuilt):
                transform(self.settings, *(() if has_history else WITHOUT_HISTORY))
            self._note_build(has_history)
        except DbtError as failure:  # a day or model that fails does not keep the others back
            if failure.only_tests_failed:
                self.unchecked.discard("build")
                self._note_build(has_history)
            self.has_marts_to_export = _is_every_model_built(self.settings)
            self.export.wake()
            raise

    def _note_build(self, has_history: bool) -> None:
        self.unbuilt.clear()
        if has_history:
            self.history_due_at = time.monotonic() + HISTORY_SECONDS
        self.has_marts_to_export = True
        self.export.wake()

    def _mend_bronze(self) -> None:
        """Finish a compaction that failed midway before anything is read: rows may stand twice."""
        if self.compaction.failures:
            recover(Lake.of(self.settings))

    def compact(self) -> None:
        """Fold the small objects of hours that have ended, and in the nightly check those of every day."""
        days = None if "compact" in self.unchecked else _recent_days()
        folded = compact(self.settings, days)
        self.unchecked.discard("compact")
        if folded:
            close_duckdb()  # rows that grow begin anew now, and with them goes what it keeps of freed blocks
            days_folded = {each.part.day for each in folded}
            self.unbuilt |= days_folded
            self.unexported |= days_folded
            self.is_idle = False

    def report_health(self) -> None:
        """Bring metrics and alerts up to date with how sources and PostgreSQL do."""
        health = measure_health(self.settings)
        self.metrics.note_health(health)
        if not self.raw.error:  # or snapshots wait on the local disk, and the feed only looks stale
            self.alerts.check(health)

    @contextlib.contextmanager
    def _listing(self, part: str, days: set[date]) -> Iterator[None]:
        """List recent days of bronze and `days` alone, unless the part has the whole lake to look at."""
        if part in self.unchecked:
            yield
            self.unchecked.discard(part)
        else:
            with listing_only(sorted(days | _recent_days())):
                yield


def watch(settings: Settings, stopped: threading.Event) -> None:
    """Do round after round until `stopped` is set; the step under way is finished.

    Raises `LeaseLostError` where another job has taken the lake over.
    """
    with (
        the_only_job(settings, "watch", waits=lambda: not stopped.is_set()) as process,
        running_postgres(settings),
    ):
        state = Watch(settings)
        troubles = Troubles(state, process.lease.left_by)
        with state.metrics.served() as url:
            logger.info("Watching %s every %.0f s; metrics: %s", SOURCE, settings.watch_poll_seconds, url)
            while not stopped.is_set():
                state.check_everything()
                with pipeline_run(settings, "watch round", new_run_id(), "watch", process.lease) as run:
                    note_round(run, state.run_round(stopped), state.is_idle)
                count_round(state.metrics, run)
                troubles.tell()
                stopped.wait(state.seconds_until_due())


def note_round(run: Run, errors: list[str], is_idle: bool) -> None:
    """How a round ended; one in which nothing was due, or nothing new was found, is not kept."""
    if errors:
        run.fail("\n".join(errors))
    elif is_idle:
        run.discard()


def count_round(metrics: Metrics, run: Run) -> None:
    """Count a round that has ended, and the rows that it brought to PostgreSQL."""
    if run.is_discarded:
        return
    metrics.run_ended(run)
    for step in run.steps:
        if step.kind == "dbt_node" and step.project == "exports" and step.rows_count:
            metrics.rows_exported(step.name, step.rows_count)


@dataclass
class Troubles:
    """Tells the alerts what keeps `watch` from its work, when that changes."""

    state: Watch
    left_by: Holder | None  # the job that died before this one
    told: set[str] | None = None

    def tell(self) -> None:
        """What is the matter now, and what no longer is."""
        failing = {sensor.trouble: sensor for sensor in self.state.failing()}
        if self.left_by is not None:
            self.state.alerts.tell([self._death(self.left_by)])
        if self.told == set(failing) and self.left_by is None:
            return
        self.left_by = None
        names = {*MATTERS, *(sensor.name for sensor in self.state.sensors)} - set(failing)
        bad = [self._failure(trouble, sensor) for trouble, sensor in failing.items()]
        good = [self._end(name, f"{self._matter(name)} works again") for name in sorted(names)]
        good.append(self._end("died", "watch is at work"))
        # what failed by itself before is done here now
        done_here = ("watch", "run", *WATCHED) if not failing else ()
        good += [Finding(f"run/{job}", False, "watch does its work", datetime.now(UTC)) for job in done_here]
        self.state.alerts.tell([*bad, *good])
        self.told = set(failing)

    def _matter(self, trouble: str) -> str:
        return MATTERS.get(trouble, f"the part {trouble} of watch")

    def _end(self, trouble: str, what: str) -> Finding:
        return Finding(f"watch/{trouble}", False, what, datetime.now(UTC))

    def _failure(self, trouble: str, sensor: Sensor) -> Finding:
        return Finding(
            f"watch/{trouble}",
            True,
            f"{self._matter(trouble)} fails: {(sensor.error or '').rstrip('. ')}",
            sensor.failing_since or datetime.now(UTC),
            "watch tries again by itself and catches up; scripts/just status says more",
        )

    def _death(self, holder: Holder) -> Finding:
        return Finding(
            "watch/died",
            True,
            f"a job died without a word and was succeeded: {holder}",
            datetime.now(UTC),
            "look at the memory and the system log of its machine if this comes again",
        )


def _today() -> date:
    return datetime.now(UTC).date()


def _recent_days() -> set[date]:
    return {_today(), _today() - timedelta(days=1)}


def _is_every_model_built(settings: Settings) -> bool:
    """Whether each model of the lake has been built, so that all that lands can land."""
    lake, layers = Lake.of(settings), {"intermediate": "silver", "marts": "gold"}
    filesystem = lake.filesystem()
    return all(
        filesystem.exists(f"{lake.root}/{layers[path.parts[-3]]}/{path.stem}/_state.parquet")
        for folder in layers
        for path in MODELS.glob(f"{folder}/*/*.sql")
    )


def _lake_answers(settings: Settings) -> bool:
    lake = Lake.of(settings)
    try:
        if not lake.is_local:
            bucket, prefix = lake.bucket_and_key("")
            lake.s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return not lake.is_local or Path(lake.root).is_dir()
    except Exception:  # of botocore's many kinds
        return False


def _warehouse_answers(settings: Settings) -> bool:
    try:
        psycopg2.connect(**settings.postgres_parameters(), connect_timeout=5).close()
    except psycopg2.Error:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    run_command(_watch_until_stopped)


def _watch_until_stopped(settings: Settings) -> None:
    """The loop runs in a thread of its own: signals reach the main thread, and libraries that would catch
    them in the middle of their work do so only there."""
    stopped = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            watch(settings, stopped)
        except BaseException as failure:
            failures.append(failure)

    worker = threading.Thread(target=work, name="watch", daemon=True)
    worker.start()
    if wait_until_stopped(worker):
        logger.info("Stopping when the step under way is done; once more stops at once.")
    stopped.set()
    worker.join()
    for failure in failures:
        raise failure
    logger.info("Stopped.")


if __name__ == "__main__":
    main()
