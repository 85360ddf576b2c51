"""The workflows of GitHub Actions: their form, and what their steps do, run here in order as a runner does.

Expressions (`${{ … }}`) are evaluated from a table; what GitHub does besides (events, groups, caches) is not.
"""

import json
import os
import re
import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
import yaml
from conftest import FEW_STATIONS, SETTINGS, bronze_rows, moment, raw_name, small_snapshot

from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT
from scripts.run_pipeline import import_archive
from scripts.schedules import next_runs

FILES = sorted(PROJECT_ROOT.glob(".github/workflows/*.yml"))
WORKFLOWS = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
WRITERS = ["collect", "nightly", "reprocess"]
STORAGE = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
# the secrets of each recipe: whoever ends a job may have to tell of it
NEEDS = {
    "check": set(),
    "impact": set(),
    "test": set(),
    "torture": set(),
    "ingest": STORAGE | {"ALERT_WEBHOOK_URL"},
    "transform": STORAGE | {"ALERT_WEBHOOK_URL"},
    "compact": STORAGE | {"ALERT_WEBHOOK_URL"},
    "export": STORAGE | {"POSTGRES_URL", "ALERT_WEBHOOK_URL"},
    "verify": STORAGE | {"POSTGRES_URL", "ALERT_WEBHOOK_URL"},
    "rebuild": STORAGE | {"POSTGRES_URL", "ALERT_WEBHOOK_URL"},
    "status": STORAGE | {"POSTGRES_URL"},
    "docs": STORAGE | {"POSTGRES_URL"},
}


def triggers(workflow):
    return workflow[True]  # YAML takes `on` for a truth value


def jobs(name):
    return WORKFLOWS[name]["jobs"].values()


def runs(name):
    """The steps of a workflow that run something, in order."""
    return [step for job in jobs(name) for step in job["steps"] if "run" in step]


def recipe(step):
    return re.match(r"scripts/just ([a-z]+)", step["run"])[1]


def evaluate(expression, table):
    """The value of an expression's text: names of the table, literals, `==`, `!=` and `||`."""
    for alternative in expression.split("||"):
        if value := _compare(alternative.strip(), table):
            return value
    return ""


def _compare(text, table):
    for operator in ("==", "!="):
        if operator in text:
            left, right = (_compare(side.strip(), table) for side in text.split(operator))
            return (left == right) == (operator == "==")
    if text.startswith("'") or text.isdigit():
        return text.strip("'")
    assert re.fullmatch(r"(inputs|vars|secrets|github)\.\w+", text), text
    return table.get(text, "")


def filled_in(environment, table):
    """An `env:` block with its expressions evaluated."""
    return {
        name: re.sub(r"\$\{\{ (.+?) \}\}", lambda match: str(evaluate(match[1], table)), str(value))
        for name, value in environment.items()
    }


def test_every_workflow_is_valid_by_githubs_schema_and_a_broken_one_is_found(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(FILES[0].read_text().replace("runs-on:", "run-on:"))
    command = ["check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert subprocess.run([*command, *FILES], capture_output=True).returncode == 0
    assert subprocess.run([*command, broken], capture_output=True).returncode == 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_says_what_why_and_when_and_may_do_little(name):
    workflow, text = WORKFLOWS[name], (PROJECT_ROOT / f".github/workflows/{name}.yml").read_text()
    assert workflow["name"] == name
    header = re.match(r"((?:#.*\n)+)name:", text)[1]
    assert [word for word in ("What", "Why", "When") if f"# {word}: " not in header] == []
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 180 and "permissions" not in job for job in jobs(name))
    used = [step["uses"] for job in jobs(name) for step in job["steps"] if "uses" in step]
    assert [action for action in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_step_is_one_recipe_and_has_only_the_secrets_that_it_needs(name):
    dumped = subprocess.run(
        ["just", "--dump", "--dump-format", "json"], cwd=PROJECT_ROOT, capture_output=True
    )
    recipes = json.loads(dumped.stdout)["recipes"]
    one = r'scripts/just ([a-z]+)( [a-z-]+| "[^"]+")*( >>"\$GITHUB_STEP_SUMMARY")?'
    assert [step["run"] for step in runs(name) if not re.fullmatch(one, step["run"])] == []
    assert [recipe(step) for step in runs(name) if recipe(step) not in recipes] == []
    assert [step["name"] for step in runs(name) if "env" in step] == [
        step["name"] for step in runs(name) if NEEDS[recipe(step)]
    ]
    for step in runs(name):
        named = {
            variable: re.findall(r"secrets\.(\w+)", str(value))
            for variable, value in step.get("env", {}).items()
        }
        assert {variable for variable, secrets in named.items() if secrets} == NEEDS[recipe(step)]
        assert all(secrets in ([], [variable]) for variable, secrets in named.items())
        assert set(named) <= {*SETTINGS, "MINUTES", "FROM", "TO"}
    in_steps = sum(str(step.get("env")).count("secrets.") for step in runs(name))
    assert str(WORKFLOWS[name]).count("secrets.") == in_steps


@pytest.mark.parametrize("name", WRITERS)
def test_writers_of_a_lake_wait_for_each_other_and_schedules_are_off_until_switched_on(name):
    workflow, [job] = WORKFLOWS[name], jobs(name)
    group = "lake-${{ inputs.environment || 'prod' }}"
    assert workflow["concurrency"] == {"group": group, "cancel-in-progress": False}
    assert job["environment"] == job["env"]["ENVIRONMENT"] == "${{ inputs.environment || 'prod' }}"
    chosen = triggers(workflow)["workflow_dispatch"]["inputs"]["environment"]
    assert (chosen["options"], chosen["default"]) == (["dev", "prod"], "dev")
    scheduled = {"github.event_name": "schedule"}
    assert not evaluate(job["if"], scheduled)
    assert evaluate(job["if"], scheduled | {"vars.SCHEDULES": "on"})
    assert evaluate(job["if"], {"github.event_name": "workflow_dispatch"})
    assert filled_in(job["env"], {"vars.LAKE_URL": "s3://bucket/lake"}) == {
        "ENVIRONMENT": "prod",
        "LAKE_URL": "s3://bucket/lake",
        "AWS_REGION": "",
        "AWS_ENDPOINT_URL_S3": "",
    }
    assert set(re.findall(r"vars\.(\w+)", str(workflow))) <= {*SETTINGS, "SCHEDULES"}


def test_schedules_are_off_the_hour_except_where_the_hour_is_asked_for():
    crons = {
        name: [entry["cron"] for entry in triggers(WORKFLOWS[name]).get("schedule", [])] for name in WORKFLOWS
    }
    assert crons.pop("reprocess") == ["0 3 * * 0"]
    collect = ["7 0,1,3-23 * * 1-6", "7 0,1,4-23 * * 0"]
    assert crons == {"ci": [], "collect": collect, "nightly": ["55 1 * * *"], "torture": ["23 4 * * *"]}


def test_no_collect_is_due_while_a_nightly_or_reprocess_may_wait_for_the_job_before_it():
    after, due = moment("2025-05-12 00:00:00"), []
    while after < moment("2025-05-26 00:00:00"):
        name, after = next(iter(next_runs(after).items()))
        due.append((name, after))
    assert {name for name, _ in due} == {*WRITERS}
    for (before, began_at), (name, at), (_, follows_at) in zip(due, due[1:], due[2:], strict=False):
        [job] = jobs(before)
        is_over_at = began_at + timedelta(minutes=job["timeout-minutes"])
        assert name == "collect" or follows_at >= is_over_at, (name, at)


@pytest.mark.parametrize(("name", "recipes"), [("ci", ["check", "impact", "test"]), ("torture", ["torture"])])
def test_what_tests_the_project_never_meets_a_lake(name, recipes):
    assert [recipe(step) for step in runs(name)] == recipes
    assert not WORKFLOWS[name]["concurrency"]["group"].startswith("lake-")


class Runner:
    """A fresh machine for each workflow: it has the project, the workflow's environment and nothing else."""

    def __init__(self, place, s3_server, feed, folder):
        self.folder = folder
        self.summary = folder / "summary.md"
        self.outside = place.command_environment() | {
            **dict.fromkeys(("LAKE_URL", "POSTGRES_URL"), ""),
            "WRM_FEED_URL": f"{feed.url}/wrm",
            "WRM_FAILURES_URL": f"{feed.url}/failures",
            "WATCH_POLL_SECONDS": "1",
            "GITHUB_EVENT_NAME": "workflow_dispatch",
            "GITHUB_STEP_SUMMARY": str(self.summary),
        }
        storage = s3_server.environment
        self.table = {
            "github.event_name": "workflow_dispatch",
            "vars.LAKE_URL": "s3://bike-data-flow/scheduled",
            "vars.AWS_REGION": storage["AWS_REGION"],
            "vars.AWS_ENDPOINT_URL_S3": storage["AWS_ENDPOINT_URL_S3"],
            "secrets.AWS_ACCESS_KEY_ID": storage["AWS_ACCESS_KEY_ID"],
            "secrets.AWS_SECRET_ACCESS_KEY": storage["AWS_SECRET_ACCESS_KEY"],
            "secrets.POSTGRES_URL": place.environment["POSTGRES_URL"],
            "inputs.environment": "dev",
        }

    def data_dir(self, name):
        return self.folder / name

    def run(self, name, **inputs):
        """Run a workflow's steps in order; fails the test on a bad exit status. Gives what each said."""
        table = self.table | {f"inputs.{key}": value for key, value in inputs.items()}
        [job] = jobs(name)
        assert evaluate(job["if"], table)
        self._keep_parsed(name)
        said = {}
        for step in runs(name):
            place = self.outside | {"DATA_DIR": str(self.data_dir(name))} | filled_in(job["env"], table)
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]],
                cwd=PROJECT_ROOT,
                env=place | filled_in(step["env"], table),
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"{name}: {step['name']}\n{done.stdout}\n{done.stderr}"
            said[recipe(step)] = done.stdout + done.stderr
        return said

    def _keep_parsed(self, name):
        """Parsing dbt's projects anew costs seconds each time, and proves nothing here."""
        for parsed in self.folder.glob("*/dbt/*/partial_parse.msgpack"):
            target = self.data_dir(name) / "dbt" / parsed.parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(parsed, target)


def readings_agree(place):
    """The readings of lake and PostgreSQL, which are the same."""
    columns = "station_id, {}, {} as bikes"
    model = columns.format("observed_at", "bikes_count") + " from int_wrm__station_readings_deduplicated"
    in_lake = place.lake_rows(f"select {model} order by 1, 2")
    table = columns.format("timestamp", "bikes") + " from dev.bike_stations"
    assert place.warehouse_rows(f"select {table} order by 1, 2") == in_lake
    return in_lake


def objects(place, pattern):
    lake = Lake.of(place.settings)
    return lake.filesystem().glob(f"{lake.root}/{pattern}")


def test_the_workflows_collect_verify_compact_and_reprocess_on_fresh_machines(
    workplace, s3_server, feed, archive, tmp_path
):
    runner = Runner(workplace, s3_server, feed, tmp_path)
    workplace.configure(**s3_server.environment | {"LAKE_URL": runner.table["vars.LAKE_URL"]})
    workplace.configure(ENVIRONMENT="dev")
    assert workplace.settings.lake_url == "s3://bike-data-flow/scheduled-dev"

    said = runner.run("collect", minutes="0.03")
    attempts = bronze_rows(workplace.settings, "fetch_attempts", "error")
    assert len(attempts) == 3 and set(attempts) == {(None,)}  # two polls and the defects
    assert "2 of 2 polls succeeded" in said["ingest"]
    assert len(readings_agree(workplace)) == 2 * FEW_STATIONS

    day = str(datetime.now(UTC).date() - timedelta(days=1))
    for text in (f"{day} 12:00:00", f"{day} 12:10:00"):  # in two objects
        files = archive(**{raw_name(text): small_snapshot(moment(text))})
        assert import_archive(workplace.settings, str(files)).refused == []
    raw_day = f"bronze/wrm/station_snapshots/dt={day}/*.parquet"
    assert len(objects(workplace, raw_day)) == 2
    said = runner.run("nightly")
    assert said["verify"].count(": passed, ") == 6
    assert len(objects(workplace, raw_day)) == 1
    assert len(readings_agree(workplace)) == 4 * FEW_STATIONS
    assert "|" in runner.summary.read_text()
    [artifact] = [step["with"] for job in jobs("nightly") for step in job["steps"] if "artifact" in str(step)]
    assert artifact["path"] == "data/docs"
    assert (runner.data_dir("nightly") / "docs" / "index.html").exists()

    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"update dev.bike_stations set bikes = 999 where date = '{day}'")
    said = runner.run("reprocess", **{"from": day, "to": day})
    assert "lake and PostgreSQL agree" in said["rebuild"]
    assert len(readings_agree(workplace)) == 4 * FEW_STATIONS
    assert workplace.warehouse_rows("select to_regclass('public.bike_stations')") == [(None,)]


def test_a_workflow_whose_places_are_not_set_fails_and_leaves_nothing_on_the_runner(workplace, s3_server):
    [job] = jobs("collect")
    [export] = [step for step in runs("collect") if recipe(step) == "export"]
    environment = filled_in(job["env"], {}) | filled_in(export["env"], {})
    assert environment["LAKE_URL"] == "s3://LAKE_URL-is-not-set"
    assert environment["POSTGRES_URL"].split("@")[1] == "POSTGRES_URL.is.not.set/none"
    reachable = s3_server.environment | {"LAKE_URL": environment["LAKE_URL"]}
    done = subprocess.run(
        ["bash", "-e", "-c", export["run"]],
        cwd=PROJECT_ROOT,
        env=workplace.command_environment() | environment | reachable,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "Check LAKE_URL, POSTGRES_URL" in done.stderr
    assert "Bucket" in done.stderr and not workplace.lake_folder.exists()


def test_the_week_that_is_reprocessed_by_default_ends_yesterday():
    [step] = runs("reprocess")
    days = step["run"].removeprefix("scripts/just rebuild ")
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {days}"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d)\.\.(\d{4}-\d\d-\d\d)", shown.stdout)
    first, last = (moment(f"{day} 00:00:00") for day in shown.stdout.split(".."))
    assert (last - first).days == 6
