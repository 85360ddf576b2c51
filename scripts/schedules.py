"""When GitHub's schedules run next, as `.github/workflows/` says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from cronsim import CronSim

from ingestion.settings import PROJECT_ROOT

WORKFLOWS = PROJECT_ROOT / ".github" / "workflows"


def next_runs(after: datetime, folder: Path = WORKFLOWS) -> dict[str, datetime]:
    """The next time (UTC) of each scheduled workflow that works on a lake, by its name, the soonest first;
    GitHub may be late."""
    times: dict[str, datetime] = {}
    for file in sorted(folder.glob("*.yml")):
        workflow = yaml.safe_load(file.read_text())
        due = [next(CronSim(cron, after)) for cron in _crons(workflow)]
        if due and _is_of_a_lake(workflow):
            times[workflow.get("name", file.stem)] = min(due)
    return dict(sorted(times.items(), key=lambda item: item[1]))


def _is_of_a_lake(workflow: dict[Any, Any]) -> bool:
    """Whether it is of the group of those that wait for each other because they write to a lake."""
    return str(workflow.get("concurrency", {}).get("group")).startswith("lake-")


def _crons(workflow: dict[Any, Any]) -> Iterator[str]:
    triggers = workflow.get("on", workflow.get(True))  # YAML 1.1 takes a bare `on` for true
    schedules = triggers.get("schedule") if isinstance(triggers, dict) else None
    yield from (schedule["cron"] for schedule in schedules or [])
