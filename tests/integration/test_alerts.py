"""Alerts, told to a real HTTP server on loopback that can be down, slow or rude."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import moment

import scripts.alerts
import scripts.incidents
from ingestion.lake import Lake
from ingestion.settings import Settings, load_settings
from scripts.alerts import Alerts
from scripts.command import the_only_job
from scripts.health import Health, SourceHealth, WarehouseHealth
from scripts.incidents import Incident, Incidents, IncidentStore, open_incidents
from scripts.pipeline_run import Run
from scripts.start_s3 import S3Server
from scripts.watch_lake import Troubles, Watch

SECRET_PATH = "services/T0001/B0002/planted-secret"
NOON = moment("2025-05-12 12:00:00")
SOURCE = SourceHealth(
    source="wrm",
    last_snapshot_at=NOON - timedelta(minutes=10),
    age_seconds=600.0,
    is_stale=False,
    failing_since=None,
    last_error=None,
    coverage_pct=99.0,
    gaps=[],
    quality_day=(NOON - timedelta(days=1)).date(),
    quality_score=97.5,
    lines_today=50_000,
    quarantined_today=5,
    quarantine_pct=0.01,
)
STALE = replace(SOURCE, last_snapshot_at=NOON - timedelta(minutes=45), age_seconds=2700.0, is_stale=True)


class Receiver(ThreadingHTTPServer):
    """A webhook that keeps the texts it took in `texts`, and counts requests in `requests`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.texts: list[str] = []
        self.requests = 0
        self.answer: Any = 200  # or a way of misbehaving
        self.is_asked, self.released = threading.Event(), threading.Event()

    def take(self) -> list[str]:
        """The texts since the last call."""
        taken, self.texts = self.texts, []
        return taken


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        self.server.is_asked.set()
        assert self.path == f"/{SECRET_PATH}"
        if self.server.answer == "slow":
            self.server.released.wait()
            self.finish_telling(body)
        elif self.server.answer == "garbage":
            self.wfile.write(b"\x00\xff nonsense\r\n")
        elif self.server.answer == "redirect":
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/{SECRET_PATH}")
            self.end_headers()
        elif self.server.answer == 200:
            self.finish_telling(body)
        else:
            self.send_response(self.server.answer)
            self.end_headers()

    def finish_telling(self, body: dict[str, str]) -> None:
        """Take the text, then say so, if the client is still there."""
        assert set(body) == {"text"} and self.headers["Content-Type"] == "application/json"
        self.server.texts.append(body["text"])
        with suppress(OSError):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def running_receiver(port: int = 0) -> Iterator[Receiver]:
    with Receiver(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that tests on all cores answers slowly, and that is not what is tested."""
    monkeypatch.setattr(scripts.alerts, "WEBHOOK_SECONDS", 30.0)
    monkeypatch.setattr(scripts.incidents, "LAKE_SECONDS", 30.0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver) -> Settings:
    """A local lake, and the webhook."""
    return load_settings(environment(tmp_path, receiver))


def environment(folder: Path, receiver: Receiver, **values: str) -> dict[str, str]:
    url = f"http://127.0.0.1:{receiver.server_port}/{SECRET_PATH}"
    return {"DATA_DIR": str(folder / "data"), "ALERT_WEBHOOK_URL": url, **values}


def run(job: str = "export", error: str | None = None, at: Any = NOON) -> Run:
    return Run("20250512T120000-abcdef", job, "cron", at - timedelta(minutes=1), at, error)


def health(source: SourceHealth = SOURCE, at: Any = NOON) -> Health:
    return Health(at, [source], [], WarehouseHealth(None, {}, None, None), [], None, {})


def lake_text(settings: Settings) -> str:
    return Path(Lake.of(settings).root, "_incidents.json").read_text()


def test_a_failed_run_is_told_once_and_its_recovery_once(settings, receiver):
    for minute in range(3):
        alerts = Alerts(settings)  # as each process makes its own
        alerts.run_ended(run(error="DbtError: dbt failed in exports: 1 of 20 nodes.\n  it broke"))
        alerts.run_ended(run("run", at=NOON + timedelta(minutes=minute)))
        alerts.check(health())
    place = f"Bike Data Flow (prod, {settings.lake_url})"
    assert receiver.take() == [
        f"{place}: the job export failed: DbtError: dbt failed in exports: 1 of 20 nodes. it broke.\n"
        "Since 2025-05-12 12:00:00 UTC. "
        "Next: scripts/just status says more; scripts/just export tries again."
    ]
    assert open_incidents(settings) == ["run/export"]
    for _ in range(2):
        Alerts(settings).run_ended(run())
    [recovery] = receiver.take()
    first, second = recovery.splitlines()
    assert first == f"{place}: over: the job export succeeds again."
    assert second.startswith("From 2025-05-12 12:00:00 UTC to ")
    assert second.endswith("dbt failed in exports: 1 of 20 nodes. it broke. Nothing to do.")
    assert open_incidents(settings) == [] and json.loads(lake_text(settings)) == {"incidents": {}}


def test_a_run_that_was_interrupted_is_no_trouble_and_ends_none(settings, receiver):
    alerts = Alerts(settings)
    alerts.run_ended(run(error="KeyboardInterrupt: "))
    assert receiver.take() == [] and open_incidents(settings) == []
    alerts.run_ended(run(error="OSError: disk full"))
    alerts.run_ended(run(error="KeyboardInterrupt: "))
    assert len(receiver.take()) == 1 and open_incidents(settings) == ["run/export"]


def test_a_run_that_failed_of_its_feed_is_no_trouble_and_ends_none(settings, receiver):
    alerts = Alerts(settings)
    no_answer = replace(run("run", "The server refused: HTTP 500"), is_feeds_fault=True)
    alerts.run_ended(no_answer)
    assert receiver.take() == [] and open_incidents(settings) == []
    alerts.run_ended(run("run", "OSError: disk full"))
    alerts.run_ended(no_answer)
    assert len(receiver.take()) == 1 and open_incidents(settings) == ["run/run"]


def test_watch_says_that_it_tries_again_by_itself(settings, receiver):
    Alerts(settings).run_ended(replace(run(error="OSError: disk full"), trigger="watch"))
    assert receiver.take()[0].endswith("Next: scripts/just status says more; watch tries again by itself.")


def test_a_watch_that_ended_of_an_error_is_told_and_no_other_end_of_it(settings, receiver):
    for failure in (KeyboardInterrupt, SystemExit, None, OSError):
        with suppress(BaseException), the_only_job(settings, "watch"):
            if failure:
                raise failure("disk full")
        if failure is not OSError:
            assert receiver.take() == []
    [died] = [text for text in receiver.take() if "the job watch failed: OSError: disk full.\n" in text]
    assert died.endswith("Next: scripts/just status says more; scripts/just watch tries again.")
    Troubles(Watch(settings), None).tell()  # the next one is at work
    over = [text for text in receiver.take() if "over: watch is at work" in text]
    assert len(over) == 1 and "watch/died" not in open_incidents(settings)


@pytest.mark.parametrize(
    ("bad", "between", "good", "told", "said"),
    [
        (
            STALE,
            None,
            SOURCE,
            "stale/wrm",
            "no new snapshot of wrm for 45 minutes (allowed: 30).\nSince 2025-05-12 11:15:00 UTC. "
            "Next: scripts/just status says more; scripts/just run tries the feed.",
        ),
        (
            replace(SOURCE, coverage_pct=84.96),
            replace(SOURCE, coverage_pct=85.9),
            replace(SOURCE, coverage_pct=86.0),
            "coverage/wrm",
            "coverage of wrm in the last 24 hours is 85.0 % (at least 85 expected), gaps: 0.\n"
            "Since 2025-05-12 12:00:00 UTC. "
            "Next: scripts/just status shows the gaps, scripts/just backfill fills them.",
        ),
        (
            replace(SOURCE, quality_score=60.0),
            replace(SOURCE, quality_score=None),
            replace(SOURCE, quality_score=85.0),
            "quality/wrm",
            "the data quality of wrm on 2025-05-11 is 60.0 of 100 (at least 85 expected).\n"
            "Since 2025-05-12 12:00:00 UTC. Next: scripts/just query "
            "\"select * from fct_daily_data_quality where dt = '2025-05-11'\" says why.",
        ),
        (
            replace(SOURCE, quarantined_today=5_000, quarantine_pct=10.0),
            replace(SOURCE, lines_today=0, quarantined_today=0, quarantine_pct=0.0),
            replace(SOURCE, quarantined_today=2_000, quarantine_pct=4.0),
            "quarantine/wrm",
            "today 5,000 of 50,000 lines of wrm are in quarantine, 10.0 % (at most 5).\n"
            "Since 2025-05-12 12:00:00 UTC. Next: scripts/just query "
            "\"select * from int_wrm__lines_quarantined where dt = '2025-05-12'\" shows them.",
        ),
    ],
)
def test_each_condition_opens_holds_without_flapping_and_closes(
    settings, receiver, bad, between, good, told, said
):
    alerts = Alerts(settings)
    alerts.check(health(bad))
    [text] = receiver.take()
    assert text == f"Bike Data Flow (prod, {settings.lake_url}): {said}"
    for source in (bad, between or bad, bad):
        alerts.check(health(source))
    assert receiver.take() == [] and open_incidents(settings) == [told]
    alerts.check(health(good))
    alerts.check(health(good))
    [recovery] = receiver.take()
    assert ": over: " in recovery and open_incidents(settings) == []
    alerts.check(health(between or good))  # not bad enough to begin
    assert receiver.take() == []


def test_a_source_without_any_snapshot_is_stale(settings, receiver):
    nothing = replace(SOURCE, last_snapshot_at=None, age_seconds=None, is_stale=True, last_error="HTTP 500")
    Alerts(settings).check(health(nothing))
    assert "there is no snapshot of wrm yet.\nSince 2025-05-12 12:00:00 UTC." in receiver.take()[0]


def test_two_troubles_at_once_are_two_incidents_and_end_one_by_one(settings, receiver):
    alerts = Alerts(settings)
    alerts.check(health(replace(STALE, coverage_pct=50.0)))
    stale, coverage = receiver.take()
    assert "no new snapshot" in stale and "coverage of wrm" in coverage
    alerts.check(health(replace(SOURCE, coverage_pct=50.0)))
    assert ["snapshots of wrm arrive again" in text for text in receiver.take()] == [True]
    assert open_incidents(settings) == ["coverage/wrm"]
    alerts.check(health())
    assert ["in the last 24 hours is 99.0 %" in text for text in receiver.take()] == [True]


@pytest.mark.parametrize("answer", [500, 404, 429, "redirect", "garbage"])
def test_a_message_that_was_refused_is_tried_again_and_told_once(settings, receiver, caplog, answer):
    caplog.set_level(logging.INFO, logger="bike-data-flow")
    receiver.answer = answer
    for _ in range(3):
        Alerts(settings).check(health(STALE))
    assert receiver.requests == 3 and receiver.take() == []
    receiver.answer = 200
    for _ in range(3):
        Alerts(settings).check(health(STALE))
    assert [text.count("no new snapshot") for text in receiver.take()] == [1]
    began, ended = [record.getMessage() for record in caplog.records]
    reason = {"redirect": "HTTP 307", "garbage": "ConnectionError"}.get(answer, f"HTTP {answer}")
    assert began == f"Alerts: the webhook is out of reach: {reason}. Trying again at every check."
    assert ended == "Alerts: the webhook is within reach again."


def test_an_incident_that_is_over_before_the_webhook_returns_is_one_message(settings, receiver):
    receiver.answer = 503
    Alerts(settings).check(health(STALE))
    Alerts(settings).run_ended(run("run", "The feed is out of reach: no connection"))
    Alerts(settings).check(health())
    Alerts(settings).check(health())
    receiver.answer = 200
    Alerts(settings).check(health())
    Alerts(settings).check(health())
    over, still = receiver.take()
    first, second = over.splitlines()
    assert first.endswith("over, and told late because this webhook was out of reach: "
                          "no new snapshot of wrm for 45 minutes (allowed: 30).")  # fmt: skip
    assert second.startswith("From 2025-05-12 11:15:00 UTC to ")
    assert second.endswith("; then snapshots of wrm arrive again. Nothing to do.")
    assert "the job run failed: The feed is out of reach: no connection.\nSince" in still


def test_what_comes_back_before_its_end_was_told_is_the_same_incident(settings, receiver):
    alerts = Alerts(settings)
    alerts.check(health(STALE))
    receiver.answer = 500
    alerts.check(health())
    alerts.check(health(STALE))
    receiver.answer = 200
    alerts.check(health(STALE))
    assert len(receiver.take()) == 1 and open_incidents(settings) == ["stale/wrm"]
    alerts.check(health())
    assert [": over: " in text for text in receiver.take()] == [True]


def test_a_slow_webhook_and_one_that_is_down_do_not_hold_up_the_pipeline(
    settings, receiver, monkeypatch, caplog
):
    monkeypatch.setattr(scripts.alerts, "WEBHOOK_SECONDS", 0.2)
    receiver.answer = "slow"
    alerts = Alerts(settings)
    alerts.check(health(replace(STALE, coverage_pct=50.0)))  # ends although the receiver goes on waiting
    assert receiver.requests == 1  # the second message has no time left
    receiver.answer = 200
    monkeypatch.setattr(scripts.alerts, "WEBHOOK_SECONDS", 30.0)
    alerts.check(health(replace(STALE, coverage_pct=50.0)))
    assert len(receiver.take()) == 2
    port = receiver.server_port
    receiver.shutdown()
    receiver.server_close()
    alerts.check(health())
    alerts.check(health())
    assert open_incidents(settings) == []
    with running_receiver(port) as again:
        alerts.check(health())
        assert len(again.take()) == 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "Alerts: the webhook is out of reach: no answer in time. Trying again at every check.",
        "Alerts: the webhook is out of reach: ConnectionError. Trying again at every check.",
    ]


def test_texts_of_the_feed_and_secrets_reach_nobody_as_they_are(tmp_path, receiver, caplog):
    caplog.set_level(logging.DEBUG, logger="bike-data-flow")
    database = "postgresql://ana:planted-password@127.0.0.1:9/city"
    settings = load_settings(environment(tmp_path, receiver, POSTGRES_URL=database, ENVIRONMENT="dev"))
    hostile = (
        f"<!channel> & <https://evil.example|click>\x1b[31m\n\n{'x' * 1000} {settings.alert_webhook_url}"
    )
    receiver.answer = 500
    alerts = Alerts(settings)
    alerts.check(health(replace(STALE, last_error=hostile)))
    alerts.run_ended(run(error=f"OperationalError: {database} and /{SECRET_PATH} and planted-password"))
    kept = lake_text(settings) + "".join(p.read_text() for p in settings.data_dir.glob("incidents/*.json"))
    assert "planted" not in kept + caplog.text + repr(alerts.settings)
    receiver.answer = 200
    alerts.check(health(replace(STALE, last_error=hostile)))
    stale, failed = receiver.take()
    assert stale.startswith(f"Bike Data Flow (dev, {settings.lake_url}): no new snapshot of wrm")
    assert "&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt; [31m xxx" in stale
    assert "<" not in stale and len(stale) < 1000
    assert "OperationalError: *** and /*** and ***.\n" in failed
    assert "planted" not in stale + failed


def test_no_log_of_any_level_names_the_webhook(tmp_path, receiver):
    receiver.answer = 500
    script = (
        "from scripts.after_run import after_run; from scripts.command import run_command; "
        "from scripts.pipeline_run import Run; "
        "run_command(lambda s: after_run(s, Run('a', 'export', 'cron', error='OSError: away'), None))"
    )
    values = environment(tmp_path, receiver, LOG_LEVEL="DEBUG", LOG_FORMAT="json")
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | values, capture_output=True)
    assert done.returncode == 0 and receiver.requests == 1
    assert b"Alerts: the webhook is out of reach: HTTP 500." in done.stderr
    assert b"planted" not in done.stderr + done.stdout


def test_without_a_webhook_nothing_is_written_and_nobody_is_asked(tmp_path):
    settings = load_settings({"DATA_DIR": str(tmp_path / "data"), "LAKE_URL": str(tmp_path / "lake")})
    alerts = Alerts(settings)
    alerts.check(health(STALE))
    alerts.run_ended(run(error="OSError: disk full"))
    assert list(tmp_path.iterdir()) == [] and open_incidents(settings) == []


@pytest.fixture
def s3_environment(tmp_path: Path, receiver: Receiver, s3_server: S3Server) -> dict[str, str]:
    """A lake of this test's own on S3."""
    lake = f"s3://bike-data-flow/{tmp_path.name}"
    return environment(tmp_path, receiver, **(s3_server.environment | {"LAKE_URL": lake}))


def test_machines_that_share_a_lake_on_s3_tell_an_incident_once(s3_environment, receiver, tmp_path):
    here = load_settings(s3_environment)
    there = load_settings(s3_environment | {"DATA_DIR": str(tmp_path / "there")})
    receiver.answer = "slow"
    telling = threading.Thread(target=Alerts(here).check, args=(health(STALE),))
    telling.start()
    assert receiver.is_asked.wait(60)
    Alerts(there).check(health(STALE))  # while the first is being told
    receiver.answer = 200
    receiver.released.set()
    telling.join()
    Alerts(there).check(health(STALE))
    assert (receiver.requests, len(receiver.take())) == (1, 1)
    Alerts(there).check(health())
    Alerts(here).check(health())
    assert [": over: " in text for text in receiver.take()] == [True]
    bucket, key = Lake.of(here).bucket_and_key("_incidents.json")
    found = Lake.of(here).s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
    assert json.loads(found) == {"incidents": {}}


def test_an_amendment_of_another_machine_is_not_overwritten(s3_environment, tmp_path):
    here = IncidentStore(load_settings(s3_environment))
    there = IncidentStore(load_settings(s3_environment | {"DATA_DIR": str(tmp_path / "there")}))
    tries: list[Incidents] = []

    def change(incidents: Incidents) -> None:
        tries.append(dict(incidents))
        if len(tries) == 1:  # between reading and writing
            there.amend(lambda others: others.update({"run/there": Incident("2025-05-12", "b", "c")}))
        incidents["run/here"] = Incident("2025-05-12", "b", "c")

    with here.locked(), there.locked():
        assert sorted(here.amend(change)) == ["run/here", "run/there"]
        assert [sorted(seen) for seen in tries] == [[], ["run/there"]]
        assert sorted(there.amend(lambda incidents: None)) == ["run/here", "run/there"]


def test_a_lake_that_is_away_is_told_once_and_its_recovery_once(
    s3_environment, receiver, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, logger="bike-data-flow")
    settings = load_settings(s3_environment)
    Alerts(settings).check(health(STALE))
    assert len(receiver.take()) == 1
    away = load_settings(s3_environment | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    refused = "EndpointConnectionError: Could not connect to the endpoint URL"
    Alerts(away).run_ended(run("run", refused))
    monkeypatch.setattr(scripts.incidents, "LAKE_SECONDS", 0.2)  # botocore tries again for seconds
    Alerts(away).run_ended(run("run", refused))
    assert [f"the job run failed: {refused}" in text for text in receiver.take()] == [True]
    Alerts(away).tell([scripts.alerts.Finding("stale/wrm", False, "snapshots arrive again", NOON)])
    assert [": over: snapshots arrive again" in text for text in receiver.take()] == [True]
    monkeypatch.setattr(scripts.incidents, "LAKE_SECONDS", 30.0)
    elsewhere = load_settings(s3_environment | {"DATA_DIR": str(tmp_path / "elsewhere")})
    Alerts(settings).check(health())
    Alerts(elsewhere).check(health())
    assert receiver.take() == []  # the lake has learned that staleness is over, and was told
    Alerts(elsewhere).run_ended(run("run"))
    Alerts(settings).run_ended(run("run"))
    assert [": over: the job run succeeds again" in text for text in receiver.take()] == [True]
    messages = [record.getMessage().split(":")[1].strip() for record in caplog.records]
    assert messages == ["the lake is out of reach", "the lake is within reach again."]


def test_a_torn_or_foreign_state_does_not_stop_the_alerts(settings, receiver):
    alerts = Alerts(settings)
    alerts.check(health(STALE))
    Path(Lake.of(settings).root, "_incidents.json").write_text('{"incid')
    next(settings.data_dir.glob("incidents/*.json")).write_text("[]")
    alerts.check(health())
    alerts.check(health(STALE))
    assert len(receiver.take()) == 2 and open_incidents(settings) == ["stale/wrm"]


def test_a_disk_that_takes_nothing_hurts_no_job(settings, receiver, caplog):
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / "incidents").write_text("a file where the folder should be")
    Alerts(settings).check(health(STALE))
    assert receiver.take() == []
    assert "Alerts could not be brought up to date. The next check tries again." in caplog.text
