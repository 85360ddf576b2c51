"""The history of runs: every run of a job and each of its steps are rows of bronze, as any source's are.

What a step is, dlt and dbt say themselves: see `bronze.load_day` and `scripts/run_dbt.py`. A record is
prepared on the local disk first and loaded then: with the lake out of reach it stays pending in dlt's working
directory and lands with the next one.
"""

from __future__ import annotations

import contextvars
import functools
import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pyarrow as pa

from ingestion.lake import Lake
from ingestion.schemas import PIPELINE_RUNS, PIPELINE_STEPS
from ingestion.settings import PROJECT_ROOT, Settings

SOURCE = "pipeline"
ERROR_CHARACTERS = 2000
PACKAGES = ("dlt", "dbt-core", "dbt-duckdb", "dbt-postgres", "duckdb", "bike-data-flow")


@dataclass
class Step:
    """What dlt or dbt report of one thing they did; times are UTC."""

    kind: str  # dlt_load: a table of a load package; dbt_invocation; dbt_node
    project: str  # dlt's pipeline or dbt's project
    name: str
    resource_type: str | None
    status: str  # in the tool's own words
    started_at: datetime
    ended_at: datetime
    rows_count: int | None = None
    size_bytes: int | None = None
    nodes_count: int | None = None
    message: str | None = None
    error: str | None = None
    load_id: str | None = None
    invocation_id: str | None = None


current_steps: contextvars.ContextVar[list[Step] | None] = contextvars.ContextVar(
    "current_steps", default=None
)


def note(step: Step) -> None:
    """Add a step to the run under way; outside of one it is not kept."""
    steps = current_steps.get()
    if steps is not None:
        steps.append(step)


def record(settings: Settings, run: dict[str, Any], steps: list[Step]) -> None:
    """Record a run, a row of bronze but for what the machine itself tells, under the UTC day of its start.

    Raises where it cannot be prepared on the local disk; with the lake out of reach it only warns.
    """
    from ingestion import bronze  # slow to import

    told = {"versions": versions(), "git_commit": git_commit(), "environment": settings.environment}
    row = told | run | {"recorded_at": datetime.now(UTC), "error": _told(run.get("error"), settings)}
    rows = [
        asdict(step)
        | {"run_id": run["run_id"], "step_number": number, "error": _told(step.error, settings)}
        | {"message": _told(step.message, settings)}
        for number, step in enumerate(steps, start=1)
    ]
    tables: dict[str, Iterable[pa.Table]] = {"runs": [pa.Table.from_pylist([row], schema=PIPELINE_RUNS)]}
    if rows:
        tables["steps"] = [pa.Table.from_pylist(rows, schema=PIPELINE_STEPS)]
    bronze.load_day_when_possible(SOURCE, settings, run["started_at"].date(), tables)


def is_recorded(settings: Settings, run_id: str, started_at: datetime) -> bool:
    """Whether bronze holds a run that began at about this time; what waits to land is loaded first."""
    from ingestion import bronze

    bronze.load_pending(SOURCE, settings)
    lake = Lake.of(settings)
    return any(
        row["run_id"] == run_id
        for days_after in (0, 1)
        for row in bronze.read_bronze_day(
            lake, SOURCE, "runs", started_at.date() + timedelta(days=days_after), ["run_id"]
        )
    )


@functools.cache
def versions() -> str:
    """A JSON object of what the project runs on, and of itself."""
    found = {"python": platform.python_version()}
    return json.dumps(found | {package: metadata.version(package) for package in PACKAGES})


@functools.cache
def git_commit() -> str | None:
    """The commit of the project's working tree, with a `+` where tracked files differ; None outside git."""
    if not (PROJECT_ROOT / ".git").exists():  # it may lie in a folder of somebody else's repository
        return None
    folder = str(PROJECT_ROOT)
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _told(text: str | None, settings: Settings) -> str | None:
    """The beginning of a message, fit to be kept: without secrets."""
    if text is None:
        return None
    for secret in _secrets(settings):
        text = text.replace(secret, "***")
    return text[:ERROR_CHARACTERS]


def _secrets(settings: Settings) -> list[str]:
    """The settings' secret values as a message may spell them, the longest first."""
    s3, postgres_url = settings.s3, settings.postgres_url
    values = {
        *(s3.access_key_id, s3.secret_access_key, s3.session_token),
        *(settings.postgres_parameters()["password"], urlsplit(postgres_url or "").password, postgres_url),
        settings.alert_webhook_url,
    }
    spelt = {
        spelling
        for value in values
        if value
        for spelling in (
            value,
            quote(value),
            quote(value, safe=""),
            quote_plus(value),
            value.replace("'", "''"),
            repr(value)[1:-1],
            json.dumps(value)[1:-1],
        )
    }
    return sorted(spelt, key=len, reverse=True)
