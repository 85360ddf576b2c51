"""One run of a job: its id, which every log line carries, and how it ended."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

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
    lease: Lease = field(default_factory=Lease)

    def fail(self, error: str) -> None:
        """Note why the run failed although nothing was raised."""
        self.error = error


current_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar("current_run", default=None)


def check_lease() -> None:
    """Raise `LeaseLostError` where another job has taken the lake over from the current run."""
    run = current_run.get()
    if run is not None:
        run.lease.check()


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
    """The current run for the length of a `with` block."""
    run = Run(run_id, job, trigger or find_trigger(), lease=lease)
    token = current_run.set(run)
    try:
        yield run
    except BaseException as failure:
        run.error = run.error or f"{type(failure).__name__}: {failure}"
        raise
    finally:
        run.ended_at = datetime.now(UTC)
        current_run.reset(token)
