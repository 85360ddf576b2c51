"""One run of a job: its id, which every log line carries, how it ended, and its record in the lake."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ingestion import run_history
from ingestion.run_history import Step
from ingestion.settings import Settings
from scripts.lease import Lease

logger = logging.getLogger("bike-data-flow")


@dataclass
class Run:
    """A run under way, or one that has ended."""

    id: str
    job: str
    trigger: str  # manual, cron, watch, or GitHub's name of the event: schedule, workflow_dispatch, push, …
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    error: str | None = None
    is_feeds_fault: bool = False  # the feed did not answer: once that lasts, it is stale
    is_interrupted: bool = False  # by Ctrl-C or SIGTERM
    is_discarded: bool = False
    steps: list[Step] = field(default_factory=list)
    lease: Lease = field(default_factory=Lease)

    @property
    def outcome(self) -> str:
        """succeeded, failed or interrupted."""
        return "interrupted" if self.is_interrupted else "failed" if self.error else "succeeded"

    def fail(self, error: str, *, is_feeds_fault: bool = False) -> None:
        """Note why the run failed although nothing was raised."""
        self.error = error
        self.is_feeds_fault = is_feeds_fault

    def discard(self) -> None:
        """Leave the run unrecorded, unless it fails yet: it did nothing that anybody will ask about."""
        self.is_discarded = True


current_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar("current_run", default=None)


def check_lease(needs_store: bool = True) -> None:
    """Raise `LeaseLostError` where another job has taken the lake over from the current run; what comes next
    may do without the lake's store."""
    run = current_run.get()
    if run is not None:
        run.lease.check(needs_store)


def new_run_id() -> str:
    """Sorts by time and tells it: 20250512T181007-3f9a1c."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"


def find_trigger() -> str:
    """Who set this process going."""
    return os.environ.get("GITHUB_EVENT_NAME") or ("manual" if sys.stdin.isatty() else "cron")


@contextlib.contextmanager
def pipeline_run(
    settings: Settings, job: str, run_id: str, trigger: str | None, lease: Lease
) -> Iterator[Run]:
    """The current run for the length of a `with` block, and its record in the lake afterwards, whatever ended
    it. A run within a run is one of its own: the steps are its."""
    run = Run(run_id, job, trigger or find_trigger(), lease=lease)
    with _sigterm_interrupts(), _current(run):
        try:
            _record_killed(settings, lease)
            yield run
        except KeyboardInterrupt:
            run.is_interrupted = True
            raise
        except BaseException as failure:
            run.error = run.error or f"{type(failure).__name__}: {failure}"
            raise
        finally:
            run.ended_at = datetime.now(UTC)
            if not run.is_discarded or run.outcome != "succeeded":
                _record(settings, run)


@contextlib.contextmanager
def _current(run: Run) -> Iterator[None]:
    """Have log lines, steps and lease checks know the run, for the length of a `with` block."""
    run_token = current_run.set(run)
    steps_token = run_history.current_steps.set(run.steps)
    try:
        yield
    finally:
        run_history.current_steps.reset(steps_token)
        current_run.reset(run_token)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM end a `with` block as Ctrl-C does, unless somebody else sees to it."""
    is_unseen = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_unseen:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_unseen:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _record(settings: Settings, run: Run) -> None:
    """Put a run that has ended on record."""
    row = {
        "run_id": run.id,
        "job": run.job,
        "trigger": run.trigger,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "outcome": run.outcome,
        "error": run.error,
        "host": socket.gethostname(),
        "process": os.getpid(),
    }
    with _at_worst_a_warning(run.id):
        run_history.record(settings, row, run.steps)


def _record_killed(settings: Settings, lease: Lease) -> None:
    """Put the run that died holding the lease on record, if one did: it could not do so itself."""
    holder = lease.left_by
    if holder is None or lease.is_death_recorded:
        return
    started_at = datetime.fromisoformat(holder.since)
    row = {
        "run_id": holder.run_id,
        "job": holder.job,
        "started_at": started_at,
        "outcome": "killed",
        # of another time and perhaps another machine: nobody knows
        **dict.fromkeys(("git_commit", "versions")),
        "host": holder.host,
        "process": holder.process,
    }
    with _at_worst_a_warning(holder.run_id):
        # it may have been killed after its record
        if not run_history.is_recorded(settings, holder.run_id, started_at):
            run_history.record(settings, row, [])
        lease.is_death_recorded = True  # of this lease's runs, one is enough to tell


@contextlib.contextmanager
def _at_worst_a_warning(run_id: str) -> Iterator[None]:
    """A run's outcome is its own, whatever becomes of its record."""
    try:
        yield
    except Exception as error:
        logger.warning("Run %s could not be recorded: %s: %s.", run_id, type(error).__name__, error)
