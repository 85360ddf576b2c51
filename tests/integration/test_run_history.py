"""The history of runs: what is recorded of each, whatever ends it, and what is told of it afterwards."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from conftest import moment, raw_name, small_snapshot

from ingestion import wrm
from ingestion.run_history import PACKAGES, Step, note
from ingestion.settings import PROJECT_ROOT
from scripts.command import the_only_job
from scripts.lease import Lease
from scripts.pipeline_run import current_run, new_run_id, pipeline_run
from scripts.rebuild_days import DaysError, held_days
from scripts.run_dbt import DbtError
from scripts.run_pipeline import (
    Stages,
    build_and_export,
    export_marts,
    export_readings,
    reconcile,
    take_snapshot,
    transform,
)
from scripts.watch_lake import WITHOUT_HISTORY


def recorded(place, table, columns):
    """Rows of bronze, in the order of their starts."""
    objects = f"{place.settings.lake_url}/bronze/pipeline/{table}/dt=*/*.parquet"
    order = "started_at, run_id" if table == "runs" else "run_id, step_number"
    return place.lake_rows(f"select {columns} from read_parquet('{objects}') order by {order}")


def job(place, name="run"):
    """A job that does nothing."""
    with the_only_job(place.settings, name) as run:
        return run.id


def run_script(place, script, *arguments):
    """A Python process with the place's settings, in the project's folder."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=place.command_environment(),
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_run_and_its_steps_are_rows_of_the_lake_and_of_postgres(live_workplace, feed):
    place = live_workplace
    with the_only_job(place.settings, "run", trigger="schedule") as first:
        take_snapshot(place.settings)
        build_without_history(place.settings)
    assert place.warehouse_rows("select to_regclass('pipeline_runs')::text") == [(None,)]
    assert_the_record_is_right(place, first)
    built, exported = assert_the_steps_are_right(place)

    feed.misbehave("unchanged")
    with the_only_job(place.settings, "run") as second:
        take_snapshot(place.settings)
        build_and_export(place.settings, Stages())
    assert "int_wrm__lines_parsed" in {step.name for step in first.steps} - {
        step.name for step in second.steps
    }
    nodes = [step for step in second.steps if step.kind == "dbt_node"]
    assert nodes and all(step.rows_count or "days: " in step.message for step in nodes)
    assert_the_marts_tell_of(place, first, built, exported)


def build_without_history(settings):
    """Every stage after ingestion, as a long-lived process goes through them every minute."""
    export_readings(settings)
    transform(settings, *WITHOUT_HISTORY)
    export_marts(settings, "--exclude", "tag:history")
    reconcile(settings)


def assert_the_record_is_right(place, run):
    """Of the only run: against the run itself, the process and git."""
    [(job, trigger, outcome, error, process, dt, seconds, versions, commit)] = recorded(
        place,
        "runs",
        "job, trigger, outcome, error, process, dt, epoch(ended_at - started_at), versions, git_commit",
    )
    assert (job, trigger, outcome, error) == ("run", "schedule", "succeeded", None)
    assert (process, dt) == (os.getpid(), run.started_at.date())
    assert seconds == pytest.approx((run.ended_at - run.started_at).total_seconds())
    assert json.loads(versions).keys() == {"python", *PACKAGES}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (commit or "").removesuffix("+") == head.stdout.strip()


def assert_the_steps_are_right(place):
    """Of the only run: against bronze, the models and PostgreSQL; gives rows built and exported."""
    columns = "kind, project, name, status, rows_count, nodes_count, load_id, size_bytes"
    steps = recorded(place, "steps", columns)
    assert {status for _, _, _, status, *_ in steps} == {"loaded", "success"}
    loads = {(load_id, name): (rows, size) for kind, _, name, _, rows, _, load_id, size in steps if load_id}
    assert loads == bronze_objects(place)
    calls = [(project, nodes > 1) for kind, project, *_, nodes, _, _ in steps if kind == "dbt_invocation"]
    projects = ("transform", "exports", "transform", "transform", "exports", "transform")
    assert calls == [(project, True) for project in projects]
    nodes = {name: rows for kind, _, name, _, rows, *_ in steps if kind == "dbt_node"}
    landed = {name.split("__")[1]: rows for name, rows in nodes.items() if name.startswith("landing_")}
    built = {name: rows for name, rows in nodes.items() if name.startswith(("int_", "fct_", "dim_"))}
    exported = {name: rows for name, rows in nodes.items() if name not in built and "landing_" not in name}
    assert counts(place.lake_rows, built) == built and len(built) > 15
    assert counts(place.warehouse_rows, exported) == exported and len(exported) > 10
    assert {table: rows for table, rows in landed.items() if rows} == exported
    return sum(built.values()), sum(exported.values())


def counts(query, names):
    """{name: rows} of models or tables."""
    return dict(query(" union all ".join(f"select '{name}', count(*) from {name}" for name in names)))


def bronze_objects(place):
    """(load id, table): rows and bytes, as the objects of the feed hold them."""
    objects = {
        (path.name.rsplit(".", 2)[0], path.parts[-3]): (pq.read_metadata(path).num_rows, path.stat().st_size)
        for path in place.lake_folder.glob("bronze/wrm/[!_]*/dt=*/*.parquet")
    }
    assert sorted(table for _, table in objects) == [
        *("failures", "fetch_attempts", "fetch_attempts", "station_snapshots")
    ]
    return objects


def assert_the_marts_tell_of(place, run, built, exported):
    """What lake and PostgreSQL tell of the first of two runs."""
    [row] = place.lake_rows(
        "select run_id, outcome, steps_count, failed_steps_count, fetch_attempts_count, "
        "failed_fetch_attempts_count, snapshots_loaded_count, rows_loaded_count, rows_built_count, "
        "rows_exported_count from fct_pipeline_runs"
    )
    assert row == (run.id, "succeeded", len(run.steps) + 2, 0, 2, 0, 1, 4, built, exported)
    fetches = place.lake_rows(
        "select run_id, name, status, size_bytes > 0, message, seconds > 0 from fct_pipeline_steps "
        "where kind = 'fetch' order by started_at"
    )
    assert fetches == [
        (run.id, "station_snapshots", "taken", True, "HTTP 200", True),
        (run.id, "failures", "taken", True, "HTTP 200", True),
        # of the run that is not recorded yet
        (None, "station_snapshots", "unchanged", True, "HTTP 200", True),
    ]
    columns = "run_id, outcome, started_at, seconds, rows_loaded_count, rows_exported_count"
    assert place.warehouse_rows(f"select {columns} from pipeline_runs") == place.lake_rows(
        f"select {columns} from fct_pipeline_runs"
    )
    columns = "step_id, run_id, step_number, kind, name, started_at, rows_count, error"
    in_postgres = place.warehouse_rows(f"select {columns} from pipeline_steps order by step_id")
    assert in_postgres == place.lake_rows(f"select {columns} from fct_pipeline_steps order by step_id")
    assert len(in_postgres) == len(run.steps) + len(fetches)
    assert place.warehouse_rows("select versions ->> 'duckdb' from pipeline_runs") == [("1.5.5",)]


def test_a_failing_run_says_why_and_which_step_failed(workplace):
    with pytest.raises(DbtError), the_only_job(workplace.settings, "export"):
        export_marts(workplace.settings)
    [(outcome, error)] = recorded(workplace, "runs", "outcome, error")
    assert outcome == "failed" and error.startswith("DbtError: dbt failed in transform: ")
    assert "Not built yet: " in error
    steps = recorded(workplace, "steps", "kind, status, error is null")
    assert steps[0] == ("dbt_invocation", "error", True)
    assert steps[1:] and set(steps[1:]) == {("dbt_node", "error", False)}


def test_a_load_that_fails_is_a_step(workplace, archive):
    folder = archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    wrm.import_archive(workplace.settings, str(folder))
    workplace.monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")
    tables = workplace.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-13"
    tables.write_text("a file where a folder should be")
    archive(**{raw_name("2025-05-13 12:00:00"): small_snapshot(moment("2025-05-13 12:00:00"))})
    with pytest.raises(Exception, match="load"), the_only_job(workplace.settings, "backfill"):
        wrm.import_archive(workplace.settings, str(folder))
    [(kind, project, name, status, error)] = recorded(
        workplace, "steps", "kind, project, name, status, error"
    )
    assert (kind, project, name, status) == ("dlt_load", "wrm", "load", "failed")
    assert "dt=2025-05-13" in error
    tables.unlink()
    with the_only_job(workplace.settings, "backfill") as run:
        wrm.import_archive(workplace.settings, str(folder))
    assert [(step.name, step.status) for step in run.steps] == [("station_snapshots", "loaded")]


KILLED = """
import os, signal
from ingestion.lake import Lake
from ingestion.settings import load_settings
from scripts.command import the_only_job
from scripts.lease import Holder, held_lease
from scripts.pipeline_run import pipeline_run
settings = load_settings()
with the_only_job(settings, "backfill") as run:
    print(run.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_AFTER_ITS_RECORD = (
    KILLED.split("with the_only_job")[0]
    + """
holder = Holder("backfill", "20250512T181007-3f9a1c")
with held_lease(Lake.of(settings), holder) as lease:
    with pipeline_run(settings, holder.job, holder.run_id, None, lease):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
)


def test_a_killed_run_is_recorded_once_by_the_next_one(workplace):
    killed = run_script(workplace, KILLED)
    assert killed.returncode == -signal.SIGKILL
    following = [job(workplace), job(workplace)]
    columns = (
        "run_id, job, outcome, ended_at is null, git_commit is null, process <> 0, recorded_at > started_at"
    )
    rows = recorded(workplace, "runs", columns)
    assert rows[0] == (killed.stdout.strip(), "backfill", "killed", True, True, True, True)
    assert [row[0] for row in rows[1:]] == following


def test_a_run_that_was_killed_after_its_record_keeps_it(workplace):
    assert run_script(workplace, KILLED_AFTER_ITS_RECORD).returncode == -signal.SIGKILL
    following = job(workplace)
    rows = [("20250512T181007-3f9a1c", "succeeded"), (following, "succeeded")]
    assert recorded(workplace, "runs", "run_id, outcome") == rows


def test_a_record_waits_for_a_lake_that_is_out_of_reach(workplace, s3_server, caplog):
    lake = s3_server.environment | {"LAKE_URL": "s3://bike-data-flow/waiting"}
    workplace.configure(**lake | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    with pipeline_run(workplace.settings, "run", "20250512T120000-3f9a1c", None, Lease()) as waiting:
        waiting.started_at = moment("2025-05-12 12:00:00")
        waiting.fail("the lake is away")
    assert "pipeline waits for the lake, and lands with the next load" in caplog.text
    workplace.configure(**lake)
    following = job(workplace)
    assert recorded(workplace, "runs", "run_id, dt::varchar, outcome") == [
        (waiting.id, "2025-05-12", "failed"),
        (following, str(datetime.now(UTC).date()), "succeeded"),
    ]


STOPPED = """
import os, signal, sys
from dlt.load import Load
from scripts.command import run_command, the_only_job
from scripts.run_pipeline import take_snapshot
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
load = Load.load_single_package
def stopped_load(self, load_id, schema):
    if schema.name == "wrm":
        stop()  # dlt takes note of it and goes on for a while
    load(self, load_id, schema)
Load.load_single_package = stopped_load
def job(settings):
    with the_only_job(settings, "ingest"):
        take_snapshot(settings) if "load" in sys.argv else stop()
run_command(job)
"""


@pytest.mark.parametrize("where", ["within", "load"])
def test_sigterm_interrupts_a_run_and_is_recorded(live_workplace, where):
    done = run_script(live_workplace, STOPPED, where)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Interrupted. The next run carries on from here." in done.stderr and "Traceback" not in done.stderr
    assert recorded(live_workplace, "runs", "job, outcome, error, ended_at > started_at") == [
        ("ingest", "interrupted", None, True)
    ]


def test_runs_within_a_run_have_steps_of_their_own_and_a_discarded_one_leaves_no_row(live_workplace):
    settings = live_workplace.settings
    with the_only_job(settings, "watch") as outer:
        with pipeline_run(settings, "poll", new_run_id(), "watch", outer.lease) as inner:
            wrm.take_snapshot(settings)
        with pipeline_run(settings, "poll", new_run_id(), "watch", outer.lease) as idle:
            idle.discard()
        with (
            pytest.raises(KeyboardInterrupt),
            pipeline_run(settings, "export", new_run_id(), "watch", outer.lease) as stopped,
        ):
            raise KeyboardInterrupt
        assert current_run.get() is outer
    assert current_run.get() is None
    assert recorded(live_workplace, "runs", "run_id, job, outcome") == [
        (outer.id, "watch", "succeeded"),
        (inner.id, "poll", "succeeded"),
        (stopped.id, "export", "interrupted"),
    ]
    steps = recorded(live_workplace, "steps", "run_id, name")
    assert {run_id for run_id, _ in steps} == {inner.id}
    assert sorted(name for _, name in steps) == [
        *("failures", "fetch_attempts", "fetch_attempts", "station_snapshots")
    ]


def test_no_secret_reaches_the_rows(workplace):
    workplace.configure(
        AWS_ACCESS_KEY_ID="planted-id",
        AWS_SECRET_ACCESS_KEY="planted/key+'\\",
        AWS_SESSION_TOKEN="planted-token",
        POSTGRES_URL="postgresql://user:planted%2fp%40ss%27@127.0.0.1:9/db",
        ALERT_WEBHOOK_URL="https://hooks.example/planted/webhook",
    )
    settings = workplace.settings
    spellings = [
        *("planted-id", "planted/key+'\\", "planted/key+'\\\\", "planted%2Fkey%2B%27%5C", "planted/key+''\\"),
        *("planted-token", "planted/p@ss'", "planted%2fp%40ss%27", "planted%2Fp%40ss%27", "planted/p@ss''"),
        *(settings.postgres_url, settings.alert_webhook_url),
    ]
    told = " | ".join(spellings)
    long = "x" * 1995 + "planted-token"  # cut in the middle of it
    now = datetime.now(UTC)
    for text in (told, long):
        with pytest.raises(RuntimeError), the_only_job(workplace.settings, "run"):
            note(Step("dbt_node", "exports", "a", "model", "error", now, now, error=text, message=text))
            raise RuntimeError(text)
    rows = recorded(workplace, "runs", "error") + recorded(workplace, "steps", "concat(message, error)")
    assert len(rows) == 4
    assert [text for (text,) in rows if "plant" in text] == []
    assert rows[0] == (f"RuntimeError: {' | '.join(['***'] * len(spellings))}",)
    assert max(len(text) for (text,) in rows[:2]) == 2000


def test_days_on_which_a_run_was_merely_recorded_are_no_days_to_rebuild(workplace):
    job(workplace)
    today = datetime.now(UTC).date()
    with pytest.raises(DaysError, match="It holds nothing yet"):
        held_days(workplace.settings, [(today - timedelta(days=1), today)])
