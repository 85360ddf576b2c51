"""Servers, disks and clocks that fail while a job is at work.

Under each fault the job ends within a bound: well, because the fault passes, or badly, with a reason that
tells what to do. Once the fault is over, one more run ends with the rows of an undisturbed one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from proxies import Call, Fault
from stages import Rows, Stage, differences, open_stage, rows_of, write_archive

from scripts import start_postgres

BOUND_SECONDS = 240  # within which a job under any fault ends; an undisturbed one takes about 15
FAULTS_PER_CALL = 0.05
LAKE_IS_AWAY = "The lake is out of reach: s3://"
POSTGRES_IS_AWAY = "PostgreSQL"

Draw = random.Random
Rule = Callable[[Call], Fault | None]


@dataclass(frozen=True)
class Case:
    """A fault: what befalls the calls of a job; what the job says where it cannot go on."""

    name: str
    rule: Callable[[Stage, Draw], Rule]
    says: str | None = None  # None: the job ends well


def now_and_then(verbs: str, fault: Fault) -> Callable[[Stage, Draw], Rule]:
    """A fault that befalls some of the calls to S3 with these verbs, never the same one twice in a row."""

    def make(stage: Stage, draw: Draw) -> Rule:
        last: list[str] = [""]

        def rule(call: Call) -> Fault | None:
            name = f"{call.verb} {call.what}"
            if call.server != "s3" or call.verb not in verbs.split() or name == last[0]:
                return None
            last[0] = name
            return fault if draw.random() < FAULTS_PER_CALL else None

        return rule

    return make


def always(server: str, fault: Fault, verbs: str = "", where: str = "") -> Callable[[Stage, Draw], Rule]:
    """A fault that befalls every such call of which the object or statement holds a text."""

    def make(stage: Stage, draw: Draw) -> Rule:
        return lambda call: (
            fault
            if call.server == server and (not verbs or call.verb in verbs.split()) and where in call.what
            else None
        )

    return make


def once(
    server: str, verb: str, where: str, fault: Callable[[Stage], Fault]
) -> Callable[[Stage, Draw], Rule]:
    """A fault that befalls the first such call alone."""

    def make(stage: Stage, draw: Draw) -> Rule:
        waiting = [fault(stage)]

        def rule(call: Call) -> Fault | None:
            is_it = call.server == server and call.verb == verb and where in call.what
            return waiting.pop() if is_it and waiting else None

        return rule

    return make


def stall(seconds: float) -> Fault:
    return Fault(act=lambda: time.sleep(seconds))


def restart(stage: Stage) -> None:
    """Have PostgreSQL crash and come back."""
    folder = stage.postgres_settings.postgres_data_dir
    start_postgres._run("pg_ctl", "restart", "-w", "-m", "immediate", "-D", folder)


ANY = "GET HEAD PUT POST DELETE LIST"
S3_CASES = [
    Case("500 now and then", now_and_then(ANY, Fault(status=500))),
    Case("503 SlowDown now and then", now_and_then(ANY, Fault(status=503))),
    Case("connections reset before they are served", now_and_then(ANY, Fault(is_reset=True))),
    Case("uploads reset halfway", now_and_then("PUT", Fault("halfway", is_reset=True))),
    Case("downloads reset halfway", now_and_then("GET", Fault("halfway", is_reset=True))),
    Case("downloads that end early", now_and_then("GET", Fault("halfway", is_closed=True))),
    Case("uploads done and unanswered", now_and_then("PUT", Fault("after", is_reset=True))),
    Case("listings that are cut short", now_and_then("LIST", Fault("halfway", is_closed=True))),
    Case("listings that are a step behind", always("s3", Fault(is_stale=True), "LIST", "bronze/")),
    Case("a stall of 10 s", once("s3", "PUT", "fct_daily_network", lambda stage: stall(10))),
    Case("a stall of 10 s in ingestion", once("s3", "PUT", "station_snapshots", lambda stage: stall(10))),
    Case("500 always", always("s3", Fault(status=500)), LAKE_IS_AWAY),
    Case("503 SlowDown always", always("s3", Fault(status=503)), LAKE_IS_AWAY),
    Case("bronze cannot be written", always("s3", Fault(status=500), "PUT", "snapshots"), LAKE_IS_AWAY),
    Case("silver cannot be written", always("s3", Fault(status=503), "PUT", "silver/"), LAKE_IS_AWAY),
    Case("gold cannot be read", always("s3", Fault("halfway", is_reset=True), "GET", "gold/"), LAKE_IS_AWAY),
]
POSTGRES_CASES = [
    Case(
        "cut in the middle of COPY",
        once("postgres", "DATA", "landing_wrm__bike_stations", lambda stage: Fault("halfway", is_reset=True)),
        POSTGRES_IS_AWAY,
    ),
    Case(
        "cut when a landing is committed and unanswered",
        once("postgres", "COMMIT", "landing_wrm__daily_network", lambda stage: Fault("after", is_reset=True)),
        POSTGRES_IS_AWAY,
    ),
    Case(
        "cut when an upsert is committed and unanswered",
        once(
            "postgres", "COMMIT", "model.exports.bike_stations", lambda stage: Fault("after", is_reset=True)
        ),
        POSTGRES_IS_AWAY,
    ),
    Case(
        "restarted in the middle of an upsert",
        once(
            "postgres",
            "COMMIT",
            "model.exports.bike_stations",
            lambda stage: Fault(act=lambda: restart(stage)),
        ),
        POSTGRES_IS_AWAY,
    ),
    Case(
        "restarted in the middle of COPY",
        once("postgres", "DATA", "landing_wrm__free_bikes", lambda stage: Fault(act=lambda: restart(stage))),
        POSTGRES_IS_AWAY,
    ),
    Case(
        "a stall of 10 s",
        once("postgres", "DONE", "landing_wrm__bike_stations", lambda stage: stall(10)),
    ),
]

_undisturbed: Rows = {}  # of this process: every case has the same archive


@pytest.fixture
def stage(workplace, archive, postgres_server, s3_server) -> Iterator[Stage]:
    with open_stage(workplace, archive, postgres_server, s3_server) as stage:
        yield stage


def undisturbed(stage: Stage, job: list[str]) -> Rows:
    """The rows that a job leaves which nothing disturbs; leaves the stage empty."""
    if not _undisturbed:
        stage.save()
        stage.finish(*job)
        _undisturbed.update(rows_of(stage))
        stage.restore()
    return _undisturbed


def endure(stage: Stage, job: list[str], says: str | None) -> str:
    """Run a job under a fault; what it printed. It ends within the bound, as it is expected to."""
    with stage.place.job(*job) as running:
        status = running.wait(BOUND_SECONDS)
    said = running.output
    assert status == (1 if says else 0), said
    assert says is None or says in said.rpartition("Failed. ")[2], said
    assert "Traceback" not in said
    return said


def heal(stage: Stage, job: list[str], expected: Rows) -> None:
    """Once the fault is over, one more run has everything in its place."""
    stage.script.fault = lambda call: None
    stage.finish(*job)
    assert differences(expected, rows_of(stage)) == ""


@pytest.mark.sampled
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{server}: {case.name}")
        for server, cases in (("S3", S3_CASES), ("PostgreSQL", POSTGRES_CASES))
        for case in cases
    ],
)
def test_a_fault_on_the_way_to_a_server_loses_and_doubles_nothing(stage, case, torture, record_property):
    job = ["run_pipeline", "backfill", write_archive(stage, (0, 8, 16), "archive")]
    expected = undisturbed(stage, job)
    befallen = []
    rule = case.rule(stage, Draw(torture.seed))

    def fault(call: Call) -> Fault | None:
        found = rule(call)
        befallen.extend([call] if found else [])
        return found

    stage.script.fault = fault
    said = endure(stage, job, case.says)
    assert befallen, "nothing was befallen"
    print(len(befallen), said)
    heal(stage, job, expected)
    record_property("fault", case.name)
