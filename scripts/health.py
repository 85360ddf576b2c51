"""How the pipeline is doing, in figures: what `status` shows, /metrics serves and alerts are about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime


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
    gaps: list[Gap]  # of the last 24 hours
    quality_day: date | None  # the last UTC day that has ended and has a score
    quality_score: float | None  # 0 to 100
    lines_today: int  # received on the current UTC day
    quarantined_today: int
    quarantine_pct: float  # of today's lines


@dataclass(frozen=True)
class LayerHealth:
    """What the lake holds in one layer."""

    layer: str  # bronze, silver, gold
    rows: int
    objects: int
    bytes: int


@dataclass(frozen=True)
class WarehouseHealth:
    """How PostgreSQL keeps up."""

    error: str | None  # why it could not be asked
    rows: dict[str, int]  # per public table, as the planner estimates large ones
    newest_reading_at: datetime | None
    lag_seconds: float | None  # of the newest reading behind the lake's


@dataclass(frozen=True)
class RunHealth:
    """One of the last runs."""

    run_id: str
    job: str
    trigger: str
    started_at: datetime
    seconds: float | None  # None: it was killed, nobody knows when
    outcome: str  # succeeded, failed, killed
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
    next_work: dict[str, datetime]  # what is scheduled, and when it is due
