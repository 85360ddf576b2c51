"""A job that is killed at any moment and run once more ends with the rows of an undisturbed one.

Most moments are calls that change something on S3 or in PostgreSQL, chosen over all that an undisturbed job
makes: before the call, halfway through its body, or when it is done and unanswered. Between two of them the
outside stays as it is. On files, where no proxy can stand, the moments are chosen by the clock.
"""

from __future__ import annotations

import random
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import pytest
from conftest import bronze_rows, moment
from stages import DAYS, Rows, Stage, differences, open_stage, rows_of, write_archive

from ingestion import wrm
from scripts.server_proxies import READS, Call, Fault, When

# which job each point is of, over and over; the first ones stand for all in a short run
TURNS = (
    *("backfill", "compaction", "run", "backfill on files", "run", "rebuild", "backfill", "run"),
    *("compaction", "backfill on files", "backfill", "run", "backfill", "compaction", "run", "rebuild"),
    *("backfill", "backfill on files", "run", "backfill"),
)
POINTS_PER_TEST = 10  # each test makes an undisturbed run of its own


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    turns = [TURNS[point % len(TURNS)] for point in range(metafunc.config.getoption("points"))]
    chunks = [
        (job, first, min(POINTS_PER_TEST, turns.count(job) - first))
        for job in dict.fromkeys(turns)
        for first in range(0, turns.count(job), POINTS_PER_TEST)
    ]
    metafunc.parametrize("chunk", chunks, ids=[f"{job}-{first}+{points}" for job, first, points in chunks])


@pytest.fixture
def stage(live_workplace, feed, postgres_server, s3_server, chunk) -> Iterator[Stage]:
    """A stage on S3, or on files where the job says so; the feed always shows the same snapshot."""
    feed.last_text = feed.city.snapshot(moment("2026-01-01 12:00:00"))
    feed.misbehave("unchanged", 100_000)
    server = None if chunk[0].endswith("on files") else s3_server
    with open_stage(live_workplace, postgres_server, server) as stage:
        yield stage


def prepare_backfill(stage: Stage) -> list[str]:
    return [
        "run_pipeline",
        "backfill",
        write_archive(stage.folder / "archive", (0, 8, 16)),
    ]


def prepare_compaction(stage: Stage) -> list[str]:
    for hours in ((0, 8), (4, 12), (16,)):
        wrm.import_archive(stage.place.settings, write_archive(stage.folder / f"archive-{hours[0]}", hours))
    return ["compact_bronze"]


def prepare_run(stage: Stage) -> list[str]:
    stage.finish("run_pipeline", "backfill", write_archive(stage.folder / "archive", (0, 8)))
    return ["run_pipeline", "run"]


def prepare_rebuild(stage: Stage) -> list[str]:
    stage.finish("run_pipeline", "backfill", write_archive(stage.folder / "archive", (0, 8)))
    return ["run_pipeline", "backfill", "--from", DAYS[0], "--to", DAYS[1]]


PREPARE = {
    "backfill": prepare_backfill,
    "backfill on files": prepare_backfill,
    "compaction": prepare_compaction,
    "run": prepare_run,
    "rebuild": prepare_rebuild,
}


def rows_after(stage: Stage, job: str) -> Rows:
    """What a job leaves, but for what depends on when it was at work."""
    if job == "compaction":
        return {"bronze": bronze_rows(stage.place.settings, "station_snapshots")}
    if job == "run":
        return rows_of_live(stage)
    return rows_of(stage)


def rows_of_live(stage: Stage) -> Rows:
    """What of a live snapshot does not depend on when it was taken."""
    lake, warehouse = stage.place.lake_rows, stage.place.warehouse_rows
    counts = "sum(lines_count), sum(duplicates_count), sum(snapshots_count), sum(quarantined_count)"
    return {
        "lines": lake("select kind, id, observed_at, name from int_wrm__lines_parsed order by all"),
        "counts": lake(f"select dt < '2026-01-01', {counts} from fct_daily_processing group by 1 order by 1"),
        "stations": warehouse("select id::text, timestamp, bikes, spaces from bike_stations order by id"),
        "bikes": warehouse("select id::text, timestamp, battery_pct from free_bikes order by id"),
        "summary": warehouse(
            "select sum(snapshots), sum(lines), sum(station_readings) from processing_summary"
        ),
    }


def changed_by(call: Call) -> str | None:
    """What a call changes, as people would name it; None for one that reads."""
    if call.server == "s3":
        name = re.sub(r"/(dt=|_state|_empty|wrm__|pipeline__|init)[^/]*.*", "", call.what.partition("/")[2])
        return name if call.verb in ("PUT", "POST", "DELETE") else None
    node = re.search(r'"node_id": "model\.exports\.(\w+)"', call.what)
    copied = re.search(r'COPY "\w+"\."(\w+)"', call.what)
    name = copied[1] if copied else node[1] if node else "a transaction"
    if call.verb in ("DATA", "DONE"):
        return f"the rows of {name}"
    if call.verb == "COMMIT":
        return f"the commit of {name}" if call.what else None
    return f"the upsert of {name}" if node and not READS.match(call.what) else None


@dataclass(frozen=True)
class Moment:
    """When a job is killed: at the n-th call that changes something, or after a share of its time."""

    changes: str
    number: int
    when: When
    share: float

    def __str__(self) -> str:
        by_call = f"{self.when} {self.changes} ({self.number})"
        return by_call if self.changes else f"after {self.share:.0%} of its time"


def choose(calls: list[Call], job: str, seed: int, point: int) -> Moment:
    """The point-th moment of a job that makes these calls: of each thing that it changes in turn one call."""
    draw = random.Random(f"{seed}/{job}")
    changes = [found for call in calls if (found := changed_by(call))]
    kinds = [""] if job.endswith("on files") else sorted(set(changes))
    draw.shuffle(kinds)
    kind = kinds[point % len(kinds)]
    draw = random.Random(f"{seed}/{job}/{point}")
    # the lease is renewed by the clock, so that only its first write is certain
    number = 1 if kind in ("", "_lease.json") else draw.randint(1, changes.count(kind))
    return Moment(kind, number, draw.choice(get_args(When)), draw.random())


def run_and_kill(stage: Stage, job: list[str], moment: Moment, seconds: float) -> int:
    """Start a job of about so many seconds and kill it at a moment; its exit status."""
    seen = 0
    with stage.place.job(*job) as running:

        def fault(call: Call) -> Fault | None:
            nonlocal seen
            if changed_by(call) != moment.changes:
                return None
            seen += 1
            return Fault(moment.when, running.kill, is_reset=True) if seen == moment.number else None

        if moment.changes:
            stage.script.fault = fault
        else:
            threading.Timer(seconds * moment.share, running.kill).start()
        try:
            return running.wait()
        finally:
            stage.script.fault = lambda call: None


def test_a_job_that_was_killed_and_is_run_once_more_loses_and_doubles_nothing(
    stage, chunk, torture, record_property
):
    name, first, points = chunk
    job = PREPARE[name](stage)
    stage.save()
    stage.script.calls.clear()
    seconds = stage.finish(*job)
    calls = stage.script.calls[:]
    expected = rows_after(stage, name)
    assert any(expected.values())
    for point in range(first, first + points):
        moment = choose(calls, name, torture.seed, point)
        stage.restore()
        status = run_and_kill(stage, job, moment, seconds)
        assert status == -signal.SIGKILL, f"{name} was not killed {moment}"
        stage.finish(*job)
        wrong = differences(expected, rows_after(stage, name))
        assert not wrong, f"{name} was killed {moment}:\n{wrong}"
        record_property("killed", f"{name}: {moment}")
