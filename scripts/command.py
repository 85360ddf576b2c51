"""What every command shares: settings, logging, clear errors, and one job at a time."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from ingestion.lake import Lake
from ingestion.settings import Settings, load_settings
from scripts.lease import Holder, LeaseHeldError, LeaseLostError, held_lease, lease_holder, locked_file
from scripts.pipeline_run import Run, current_run, find_trigger, new_run_id, pipeline_run

NOISY_LOGGERS = ("dlt", "sqlglot", "botocore", "urllib3", "asyncio", "aiobotocore", "s3fs", "fsspec")
INTERRUPTED = 130
# what `watch` does by itself: a schedule's job that meets it would only be in its way
WATCHED = ("ingest", "transform", "export", "compact")
# what every JSON line of the log has, null where it says nothing of it
FIELDS = dict.fromkeys(("run_id", "source", "rows", "bytes", "seconds"))

# control characters but for tab and line feed, and what turns the direction of writing around
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

logger = logging.getLogger("bike-data-flow")


class CommandError(RuntimeError):
    """Something a user can mend; its message says what failed and what to do next."""


class LeftToWatchError(RuntimeError):
    """A scheduled job found `watch` at work on the lake, which does the same: there is nothing to do."""


def run_command(job: Callable[[Settings], str | None]) -> None:
    """Run a job with the settings. What users can mend, or a returned error, ends it with status 1 and a
    message instead of a traceback."""
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds; libpq waits for minutes else
    try:
        settings = load_settings()
        configure_logging(settings)
        error = job(settings)
    except LeftToWatchError as word:
        print(word, file=sys.stderr)
        return
    except KeyboardInterrupt:
        print("\nInterrupted. The next run carries on from here.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as failure:
        error = explain(failure)
        if error is None:
            raise
    if error:
        print(f"\nFailed. {visible(error)}", file=sys.stderr)
        raise SystemExit(1)


@contextlib.contextmanager
def made_to_stay() -> Iterator[None]:
    """Have Python's collector of garbage pass over what a `with` block makes, then and ever after: libraries
    and parsed projects stay for good, and are too many to look through again and again. For what a process
    makes once: garbage is passed over with it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def explain(failure: Exception) -> str | None:
    """A message for what lies outside the project, None for its own mistakes."""
    if isinstance(failure, CommandError | ValueError):
        from ingestion.archive import ArchiveError
        from ingestion.bronze import BronzeError
        from ingestion.compaction import CompactionError
        from ingestion.settings import SettingsError

        known = isinstance(
            failure, CommandError | ArchiveError | BronzeError | CompactionError | SettingsError
        )
        return str(failure) if known else None
    if isinstance(failure, LeaseLostError):
        return f"{failure} Nothing of this job's is lost; the other carries on."
    cause = failure
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    origin = {type(failure).__module__.split(".")[0], type(cause).__module__.split(".")[0]}
    if isinstance(cause, OSError) or origin & {"botocore", "aiobotocore", "psycopg2"}:
        what = f"{type(cause).__name__}: {cause}".strip()
        return (
            f"Storage or PostgreSQL could not be used: {what}. "
            "Check LAKE_URL, POSTGRES_URL, the AWS settings and permissions, then run again: it carries on."
        )
    return None


def configure_logging(settings: Settings) -> None:
    """Lines on standard error, each with the id of the run: for people, or one JSON object per line with what
    was given as `extra` (source, rows, bytes, seconds)."""
    handler = logging.StreamHandler()
    handler.addFilter(_tell_run)
    if settings.log_format == "json":
        names = "%(asctime)s %(levelname)s %(name)s %(run_id)s %(message)s"
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        formatter: logging.Formatter = JsonFormatter(
            names, rename_fields=renamed, defaults=FIELDS, reserved_attrs=[*RESERVED_ATTRS, "run_tag"]
        )
        formatter.default_msec_format = "%s.%03dZ"
        formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
        formatter.converter = time.gmtime
    else:
        formatter = _PlainFormatter("%(asctime)s %(run_tag)s%(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for noisy in NOISY_LOGGERS:
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _PlainFormatter(logging.Formatter):
    """Lines for people: what a record quotes can neither steer the terminal nor begin a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", "\n    ")


def visible(text: str) -> str:
    """The text with what steers a terminal, or the direction of writing, spelt out; lines stay lines."""
    return STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def _tell_run(record: logging.LogRecord) -> bool:
    run = current_run.get()
    record.run_id = run.id if run else None
    record.run_tag = f"[{run.id[-6:]}] " if run else ""
    return True


@contextlib.contextmanager
def the_only_job(
    settings: Settings,
    name: str,
    *,
    trigger: str | None = None,
    waits: Callable[[], bool] = lambda: False,
) -> Iterator[Run]:
    """Be the one job at work, for the length of a `with` block: two on one dlt working directory, lake and
    landing schema would undo each other. Neither the lock on DATA_DIR nor the lake's lease outlives a job
    that is killed. What a killed compaction left is finished first: until then rows may stand twice.

    Raises `CommandError` that says which job holds it and since when, once it no longer `waits()`;
    `LeftToWatchError` where a schedule's job finds that `watch` does its work.
    """
    with made_to_stay():
        from ingestion import compaction  # slow to import: it brings dlt

    holder = Holder(name, new_run_id())
    trigger = trigger or find_trigger()
    lake = Lake.of(settings)
    try:
        with (
            _followed_up(settings, Run(holder.run_id, name, trigger)) as followed,
            locked_file(settings.data_dir / "pipeline.lock", holder, waits=waits) as dead,
            held_lease(lake, holder, dead=dead, waits=waits) as lease,
            pipeline_run(settings, name, holder.run_id, trigger, lease) as followed.run,
        ):
            compaction.recover(lake)
            yield followed.run
    except LeaseHeldError as error:
        left_to = lease_holder(lake)
        if left_to is not None and left_to.job == "watch" and trigger == "schedule" and name in WATCHED:
            raise LeftToWatchError(
                f"Nothing to do: {left_to}, does the work of {name} on this lake."
            ) from None
        raise CommandError(
            f"Another job is at work: {error}. Wait until it has ended and run again."
        ) from None


@dataclass
class _Followed:
    run: Run


@contextlib.contextmanager
def _followed_up(settings: Settings, run: Run) -> Iterator[_Followed]:
    """Have alerts and metrics know how a run of a `with` block ended, also one that could not begin."""
    followed = _Followed(run)
    try:
        settings.make_data_dir()
        yield followed
    except LeaseHeldError:
        raise  # no failure: another job is at work
    except BaseException as failure:
        followed.run.error = followed.run.error or f"{type(failure).__name__}: {failure}"
        follow_up(settings, followed.run)
        raise
    follow_up(settings, followed.run)


def follow_up(settings: Settings, run: Run) -> None:
    """Tell alerts and metrics of a run that has ended and of how everything does; never raises. `watch`
    tells more itself, but not what ended it."""
    if not (settings.alert_webhook_url or settings.metrics_textfile):
        return
    from scripts.after_run import after_run
    from scripts.alerts import was_interrupted
    from scripts.health import measure_health, warehouse_to_ask

    if run.job == "watch" and (run.error is None or was_interrupted(run)):
        return
    health = None
    try:
        with warehouse_to_ask(settings):  # the job's own embedded server has stopped with it
            health = measure_health(settings, with_sizes=True)
    except Exception as error:  # the lake may be what is the matter
        logger.warning("Health could not be measured: %s: %s.", type(error).__name__, error)
    after_run(settings, run, health)
