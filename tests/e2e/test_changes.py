"""What a change does to every table and column: the recipes `impact` and `lineage`, on repositories."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from repositories import edit, make_repository

from ingestion.settings import PROJECT_ROOT

MARTS = "transform/models/marts/wrm"
INTERMEDIATE = "transform/models/intermediate/wrm"
UNCHANGED = {
    "reasons": [],
    "columns_added": [],
    "columns_removed": [],
    "columns_changed": [],
    "rows_may_change": False,
    "reaches": {},
    "public_tables": [],
    "is_acknowledged": False,
}


@pytest.fixture
def project(tmp_path):
    return make_repository(tmp_path / "project")


def call(project, module, *arguments):
    """A command of the repository, in an environment whose every place belongs to somebody."""
    scratch, mine = project.parent / "scratch", project.parent / "mine"
    for place in (scratch, mine):
        place.mkdir(exist_ok=True)
    environment = os.environ | {
        "TMPDIR": str(scratch),
        "DATA_DIR": str(mine),
        "LAKE_URL": str(mine / "lake"),
        "POSTGRES_URL": "postgresql://me:secret@127.0.0.1:9/mine",
    }
    command = [sys.executable, "-m", f"scripts.{module}", *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert [*scratch.iterdir(), *mine.iterdir()] == []
    return done


def test_each_kind_of_change_is_told_with_its_category_columns_rows_and_reach(project):
    readings, trips = f"{MARTS}/fct_daily_station_readings.sql", f"{MARTS}/fct_free_bike_trips.sql"
    edit(project, readings, "as last_fetched_at,", "as last_fetched_at, 42 as answer,")
    edit(project, trips, "/ 1000 / (", "/ 999 / (")
    edit(project, f"{MARTS}/fct_coverage_gaps.sql", "/ minutes) >= 2", "/ minutes) >= 3")
    edit(project, "exports/models/wrm/hourly_coverage.sql", "    failed_attempts_count,\n", "")
    processing = project / f"{MARTS}/fct_daily_processing.sql"
    processing.write_text(re.sub(r"\breceived\b", "taken_in", processing.read_text()))
    edit(project, f"{MARTS}/_wrm__marts.yml", 'the whole city."', 'all of it."')
    message = "~ model.name ~ ' reads '"
    edit(project, "transform/macros/landing_table.sql", message, message.replace("reads", "now reads"))
    edit(project, "transform/macros/distance_meters.sql", "6371008.8", "6371000.0")
    (project / "CHANGELOG.md").write_text(
        "# Changes\n\n## Unreleased\n\n- **Breaking** `fct_coverage_gaps`: long ones only.\n"
        "- **Breaking** `transform/macros/distance_meters.sql`: of a rounder Earth.\n"
    )
    done = call(project, "assess_impact", "HEAD", "--json")
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    changes = {each.pop("name"): each for each in told["changes"]}
    assert [each["category"] for each in changes.values()] == ["breaking"] * 6 + ["additive"] + [
        "cosmetic"
    ] * 2

    assert changes["fct_daily_station_readings"] == UNCHANGED | {
        "path": readings,
        "category": "additive",
        "columns_added": ["answer"],
    }
    assert changes["fct_coverage_gaps"] == UNCHANGED | {
        "path": f"{MARTS}/fct_coverage_gaps.sql",
        "category": "breaking",
        "reasons": ["other rows may be chosen"],
        "rows_may_change": True,
        "reaches": {"coverage_gaps": ["*"], "landing_wrm__coverage_gaps": ["*"]},
        "public_tables": ["coverage_gaps"],
        "is_acknowledged": True,
    }
    assert changes["hourly_coverage"] == UNCHANGED | {
        "path": "exports/models/wrm/hourly_coverage.sql",
        "category": "breaking",
        "reasons": ["columns are gone"],
        "columns_removed": ["failed_attempts_count"],
        "public_tables": ["hourly_coverage"],
    }
    # one expression here; whether a bike is at the same place decides on rows upstream
    reached = ["*", "distance_meters", "speed_kmh"]
    assert changes["fct_free_bike_trips"] == UNCHANGED | {
        "path": trips,
        "category": "breaking",
        "reasons": [
            "columns are computed differently",
            "other rows may be chosen",
            "through macros: distance_meters",
        ],
        "columns_changed": ["distance_meters", "speed_kmh"],
        "rows_may_change": True,
        "reaches": {"free_bike_trips": reached, "landing_wrm__free_bike_trips": reached},
        "public_tables": ["free_bike_trips"],
    }
    same = {
        "category": "cosmetic",
        "reasons": ["it is described or written differently and computes the same"],
    }
    assert changes["fct_daily_processing"] == UNCHANGED | same | {"path": f"{MARTS}/fct_daily_processing.sql"}
    assert changes["fct_daily_network"] == UNCHANGED | same | {"path": f"{MARTS}/fct_daily_network.sql"}
    assert changes["transform/macros/landing_table.sql"] == UNCHANGED | {
        "path": "transform/macros/landing_table.sql",
        "category": "breaking",
        "reasons": ["macros that build models: landing_table"],
        "rows_may_change": True,
        "public_tables": sorted(path.stem for path in PROJECT_ROOT.glob("exports/models/*/*.sql")),
    }
    # through a macro in their SQL
    periods = changes["int_wrm__station_periods_accumulated"]
    assert (periods["category"], periods["public_tables"]) == ("breaking", ["station_history"])
    assert periods["is_acknowledged"]
    assert {"valid_from", "moved_meters"} <= set(periods["reaches"]["station_history"])
    spells = changes["int_wrm__free_bike_spells_carried"]
    assert spells["public_tables"] == ["free_bike_idle_spells", "free_bike_trips"]
    models = [
        "fct_free_bike_trips",
        "int_wrm__free_bike_spells_carried",
        "int_wrm__station_periods_accumulated",
    ]
    assert told["warnings"] == [
        f"{model}: days that are built stay as they are although distance_meters changed. "
        "Raise its code_version, or write down why not."
        for model in models
    ]


def test_what_stands_in_no_query_is_told_as_well(project):
    sources = "transform/models/staging/wrm/_wrm__sources.yml"
    edit(project, sources, "hive_partitioning = true)", "hive_partitioning = true) where dt > '2025-01-01'")
    configured = "\n    config: {full_refresh: true}\n"
    edit(
        project,
        "exports/models/wrm/_wrm__models.yml",
        "- name: coverage_gaps\n",
        f"- name: coverage_gaps{configured}",
    )
    types = "\n    config: {column_types: {min_latitude: integer}}\n"
    edit(project, "transform/seeds/_seeds.yml", "- name: service_areas\n", f"- name: service_areas{types}")
    moved = f"{INTERMEDIATE}/int_wrm__station_attributes_observed.sql"
    (project / moved).rename(project / MARTS / "int_wrm__station_attributes_observed.sql")
    with open(project / "exports/models/wrm/processing_summary.sql", "a") as file:
        file.write("{% if is_incremental() %}where date > '2025-01-01'{% endif %}\n")
    windows = f"{MARTS}/fct_hourly_station_availability.sql"
    edit(
        project, windows, "window station as (partition by station_id", "window station as (partition by name"
    )
    (project / "transform/plugins/lake.py").write_text("broken = (\n")
    done = call(project, "assess_impact", "HEAD", "--json")
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    configured_differently = ["it is configured differently: built in another way, or read from elsewhere"]
    reasons = {each["name"]: each["reasons"] for each in told["changes"]}
    assert reasons.pop("fct_hourly_station_availability")[0] == "columns are computed differently"
    assert reasons == {
        **dict.fromkeys(
            (
                "coverage_gaps",
                "int_wrm__station_attributes_observed",
                "service_areas",
                "wrm.failures",
                "wrm.fetch_attempts",
                "wrm.station_snapshots",
            ),
            configured_differently,
        ),
        "processing_summary": ["its SQL has branches that only a run takes: what is in them is not compared"],
        "transform/plugins/lake.py": ["code that dbt runs in"],
    }
    assert {each["category"] for each in told["changes"]} == {"breaking"}
    assert "fct_daily_network" in told["rebuilt"] and "fct_coverage_gaps" not in told["rebuilt"]


def test_a_column_that_staging_lost_and_a_model_still_uses_is_an_error_with_its_line(project, tmp_path):
    staging = "transform/models/staging/wrm/stg_wrm__snapshots.sql"
    sql = (project / staging).read_text()
    (project / staging).write_text(
        re.sub(r"(        payload_bytes,\n)(?!.*payload_bytes)", "", sql, flags=re.DOTALL)
    )
    reader = f"{INTERMEDIATE}/int_wrm__snapshots_received.sql"
    line = 1 + (project / reader).read_text().split("sum(payload_bytes)")[0].count("\n")
    error = (
        "\nFailed. SQL reads columns that are not there.\n"
        f"{reader}:{line}: Column 'payload_bytes' could not be resolved. "
        "Give it back to the model it was read from, or take it out here and downstream.\n"
    )
    done = run_step_of_ci(project, tmp_path / "summary.md")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", error)
    assert (tmp_path / "summary.md").read_text() == ""


def run_step_of_ci(project, summary):
    """The step of ci.yml that tells the impact, but for the environment that its recipe makes."""
    workflow = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())
    [step] = [each for each in workflow["jobs"]["impact"]["steps"] if "run" in each]
    command = step["run"].replace("scripts/just impact", f"{sys.executable} -m scripts.assess_impact")
    environment = os.environ | {"BASE": "HEAD", "GITHUB_STEP_SUMMARY": str(summary)}
    return subprocess.run(
        ["bash", "-e", "-c", command], cwd=project, env=environment, capture_output=True, text=True
    )


def test_every_public_column_comes_from_bronze_or_is_a_word_of_its_own(project):
    code = (
        "import json, sys\n"
        "from scripts.impact import read_and_graph\n"
        "from scripts.trace_lineage import trace_column\n"
        "reading, graph = read_and_graph(None)\n"
        "public = [name for name, project in reading.projects.items() if project == 'exports']\n"
        "json.dump([trace_column(reading, graph, (model, column))\n"
        "           for model in public for column in graph.made[model].columns], sys.stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    traced = {each["column"]: each for each in json.loads(done.stdout)}
    assert leaves(traced["bike_stations.bikes"]) == {
        "wrm.station_snapshots.payload",
        "wrm.station_snapshots.payload_text",
    }
    bikes = traced["bike_stations.bikes"]["made_from"][0]["made_from"][0]
    assert bikes == {
        "column": "stg_wrm__station_lines.bikes_count",
        "path": "transform/models/staging/wrm/stg_wrm__station_lines.sql",
        "description": "Bikes available.",
        "rows_of": [],
        "chosen_by": [],
        "made_from": bikes["made_from"],
    }
    of_readings = {"bike_stations.date", "free_bikes.date"}
    # another day is the one being built, the others are words or how long that took
    assert {column for column, each in traced.items() if not looks_at_data(each)} == {
        *({column for column in traced if column.endswith(".date")} - of_readings),
        "daily_station_ranking.direction",
        "daily_station_ranking.measure",
        "free_bike_trips.is_inferred",
        "processing_summary.silver_seconds",
    }


def looks_at_data(traced):
    """Whether a column is made from bronze, or from how many rows of something there are."""
    is_bronze = traced["path"] == "ingestion/schemas.py"
    return is_bronze or bool(traced["rows_of"]) or any(map(looks_at_data, traced["made_from"] or []))


def leaves(traced):
    """What a column is made from at last."""
    if not traced["made_from"]:
        return {traced["column"]}
    return {leaf for each in traced["made_from"] for leaf in leaves(each)}
