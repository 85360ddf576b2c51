"""What every command shares: settings, logging, clear errors, and one job at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from ingestion.settings import Settings, load_settings

NOISY_LOGGERS = ("dlt", "sqlglot", "botocore", "urllib3", "asyncio", "aiobotocore", "s3fs", "fsspec")
INTERRUPTED = 130


class CommandError(RuntimeError):
    """Something a user can mend; its message says what failed and what to do next."""


def run_command(job: Callable[[Settings], str | None]) -> None:
    """Run a job with the settings. What users can mend, or a returned error, ends it with status 1 and a
    message instead of a traceback."""
    try:
        settings = load_settings()
        configure_logging(settings)
        error = job(settings)
    except KeyboardInterrupt:
        print("\nInterrupted. The next run carries on from here.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as failure:
        error = _explain(failure)
        if error is None:
            raise
    if error:
        print(f"\nFailed. {error}", file=sys.stderr)
        raise SystemExit(1)


def _explain(failure: Exception) -> str | None:
    """A message for what lies outside the project, None for its own mistakes."""
    if isinstance(failure, CommandError | ValueError):
        from ingestion.archive import ArchiveError
        from ingestion.settings import SettingsError

        known = isinstance(failure, CommandError | ArchiveError | SettingsError)
        return str(failure) if known else None
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
    """Times and messages on standard error."""
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    for noisy in NOISY_LOGGERS:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def the_only_job(settings: Settings, name: str) -> Iterator[None]:
    """Hold the pipeline for the length of a `with` block: two jobs on one dlt working directory, lake and
    landing schema would undo each other. The lock is a file's, so a killed job does not keep it.

    Raises `CommandError` that says which job holds it and since when.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with open(settings.data_dir / "pipeline.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CommandError(
                f"Another job is at work: {lock.read().strip()}. Wait until it has ended and run again."
            ) from None
        lock.truncate(0)
        lock.write(f"{name}, process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        lock.flush()
        yield
