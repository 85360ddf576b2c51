"""Servers, disks and clocks that fail while a job is at work.

Under each fault the job ends within a bound: well, because the fault passes, or badly, with a reason that
tells what to do. Once the fault is over, one more run ends with the rows of an undisturbed one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from stages import Rows, Stage, differences, open_stage, rows_of, write_archive

from scripts import start_postgres
from scripts.server_proxies import Call, Fault

BOUND_SECONDS = 240  # within which a job under any fault ends; an undisturbed one takes about 15
FAULTS_PER_CALL = 0.05
STORAGE_FAILS = "Storage or PostgreSQL could not be used: "
POSTGRES_RESTARTS = "the database system is|server closed the connection"
POSTGRES_IS_AWAY = "server closed the connection"

Draw = random.Random
Rule = Callable[[Call], Fault | None]


@dataclass(frozen=True)
class Case:
    """A fault: what befalls the calls of a job; what the job says where it cannot go on."""

    name: str
    rule: Callable[[Stage, Draw], Rule]
    says: str | None = None  # a pattern; None: the job ends well


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
    Case("500 always", always("s3", Fault(status=500)), STORAGE_FAILS),
    Case("503 SlowDown always", always("s3", Fault(status=503)), STORAGE_FAILS),
    Case("bronze cannot be written", always("s3", Fault(status=500), "PUT", "snapshots"), STORAGE_FAILS),
    Case(
        "silver cannot be written",
        always("s3", Fault(status=503), "PUT", "silver/"),
        "HTTP 503 for HTTP PUT to 'http://",
    ),
    Case(
        "gold cannot be read",
        always("s3", Fault("halfway", is_reset=True), "GET", "gold/"),
        "for HTTP GET to 'http://",
    ),
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
        POSTGRES_RESTARTS,
    ),
    Case(
        "restarted in the middle of COPY",
        once("postgres", "DATA", "landing_wrm__free_bikes", lambda stage: Fault(act=lambda: restart(stage))),
        POSTGRES_RESTARTS,
    ),
    Case(
        "a stall of 10 s",
        once("postgres", "DONE", "landing_wrm__bike_stations", lambda stage: stall(10)),
    ),
]

_undisturbed: Rows = {}  # of this process: every case has the same archive


@pytest.fixture(scope="session")  # as what an undisturbed run of it leaves is kept as long
def job(tmp_path_factory) -> list[str]:
    """A backfill of an archive in the same place for every case: files are remembered by it."""
    archive = write_archive(tmp_path_factory.mktemp("faults") / "archive", (0, 8, 16))
    return ["run_pipeline", "backfill", archive]


@pytest.fixture
def stage(workplace, postgres_server, s3_server) -> Iterator[Stage]:
    with open_stage(workplace, postgres_server, s3_server) as stage:
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
    assert says is None or re.search(says, said.rpartition("Failed. ")[2]), said
    assert "Traceback" not in said
    return said


@contextmanager
def healing(stage: Stage, job: list[str], name: str, record_property: Callable[..., None]) -> Iterator[None]:
    """A fault for the length of a `with` block; what it has done is healed when it is over."""
    expected = undisturbed(stage, job)
    yield
    heal(stage, job, expected)
    record_property("fault", name)


def heal(stage: Stage, job: list[str], expected: Rows) -> None:
    """Once the fault is over, one more run has everything in its place."""
    stage.script.fault = lambda call: None
    await_postgres(stage)
    stage.finish(*job)
    assert differences(expected, rows_of(stage)) == ""


def await_postgres(stage: Stage) -> None:
    """Wait until a server that restarts answers again."""
    deadline = time.monotonic() + BOUND_SECONDS
    while True:
        try:
            stage.connect(stage.database).close()
            return
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL did not come back"
            time.sleep(0.2)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{server}: {case.name}")
        for server, cases in (("S3", S3_CASES), ("PostgreSQL", POSTGRES_CASES))
        for case in cases
    ],
)
def test_a_fault_on_the_way_to_a_server_loses_and_doubles_nothing(stage, case, job, torture, record_property):
    befallen = []
    rule = case.rule(stage, Draw(torture.seed))

    def fault(call: Call) -> Fault | None:
        found = rule(call)
        befallen.extend([call] if found else [])
        return found

    with healing(stage, job, case.name, record_property):
        stage.script.fault = fault
        endure(stage, job, case.says)
        assert befallen, "nothing was befallen"


@contextmanager
def altered(stage: Stage, alter: str, back: str) -> Iterator[None]:
    """The database altered by SQL for the length of a `with` block."""
    for statement in (alter, back):
        with closing(stage.connect("postgres")) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement.format(database=stage.database))
        if statement == alter:
            yield


@pytest.mark.sampled
def test_a_postgres_that_refuses_connections(stage, job, record_property):
    url = stage.place.environment["POSTGRES_URL"]
    with healing(stage, job, "refused", record_property):
        stage.place.configure(POSTGRES_URL=f"postgresql://postgres:@127.0.0.1:9/{stage.database}")
        endure(stage, job, "Connection refused")
        stage.place.configure(POSTGRES_URL=url)


@pytest.mark.sampled
def test_a_postgres_that_is_read_only(stage, job, record_property):
    setting = "alter database {database} %s default_transaction_read_only"
    with (
        healing(stage, job, "read-only", record_property),
        altered(stage, setting % "set" + " = on", setting % "reset"),
    ):
        endure(stage, job, "in a read-only transaction")


@pytest.mark.sampled
def test_a_postgres_that_is_out_of_connections(stage, job, record_property):
    user = f"crowded_{stage.database}"
    make = f"create role {user} login connection limit 1; alter database {{database}} owner to {user}"
    with healing(stage, job, "out of connections", record_property):
        url = stage.place.environment["POSTGRES_URL"]
        stage.place.configure(POSTGRES_URL=url.replace("postgres:@", f"{user}:@"))
        with altered(stage, make, f"alter role {user} connection limit -1"):
            endure(stage, job, f'too many connections for role "{user}"')


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own in a folder; gives what changes its size. Skips the test where nobody may mount."""
    admin = [] if os.geteuid() == 0 else ["sudo", "-n"]
    folder.mkdir()
    mounted = subprocess.run(
        [*admin, "mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield lambda size: subprocess.run([*admin, "mount", "-o", f"remount,size={size}", folder], check=True)
    finally:
        subprocess.run([*admin, "umount", "--lazy", folder], check=True)


@pytest.fixture
def file_stage(workplace, postgres_server) -> Iterator[Stage]:
    with open_stage(workplace, postgres_server, None) as stage:
        yield stage


@pytest.mark.sampled
@pytest.mark.parametrize("size", ["32k", "128k", "256k"])
def test_a_disk_that_is_full(file_stage, job, tmp_path, size, record_property):
    with (
        small_disk(tmp_path / "disk", size) as resize,
        healing(file_stage, job, "disk full", record_property),
    ):
        file_stage.place.configure(LAKE_URL=str(tmp_path / "disk" / "lake"))
        endure(file_stage, job, "No space left on device")
        resize("64m")


@pytest.mark.sampled
def test_a_clock_that_jumps_back_an_hour(file_stage, job, record_property):
    stage = file_stage
    expected = undisturbed(stage, job)
    first = min(Path(job[-1]).glob("wrm_stations*"))
    with healing(stage, job, "clock back an hour", record_property):
        stage.place.configure(CLOCK_IS_AHEAD_SECONDS="3600")
        stage.finish(*job[:2], str(first))
        stage.place.configure(CLOCK_IS_AHEAD_SECONDS="0")
    shutil.rmtree(stage.place.settings.data_dir / "dlt")  # what dlt remembers comes back from the lake
    heal(stage, job, expected)
