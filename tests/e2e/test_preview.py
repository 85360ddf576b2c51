"""What a change does to rows: the recipe `preview`, on a repository of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from itertools import pairwise

import pytest
from repositories import commit, edit, git, make_repository

from ingestion.settings import PROJECT_ROOT, load_settings
from scripts.fixture_lake import DAYS, polls
from scripts.preview_change import PreviewError, Side, read_keys, run_code

MARTS = "transform/models/marts/wrm"
MARTS_AND_TABLES = {
    *(f"gold.{path.stem}" for path in PROJECT_ROOT.glob("transform/models/marts/wrm/*.sql")),
    *(f"public.{path.stem}" for path in PROJECT_ROOT.glob("exports/models/wrm/*.sql")),
}
PREVIEW = [sys.executable, "-m", "scripts.preview_change"]


@pytest.fixture
def project(tmp_path):
    return make_repository(tmp_path / "project")


@pytest.fixture
def elsewhere(tmp_path):
    """An environment whose every place belongs to somebody, and whose scratch folder is empty."""
    for place in ("scratch", "mine"):
        (tmp_path / place).mkdir()
    mine = {"DATA_DIR": str(tmp_path / "mine"), "LAKE_URL": str(tmp_path / "mine"), "LOG_LEVEL": "INFO"}
    out_of_reach = {
        "POSTGRES_URL": "postgresql://me:secret@127.0.0.1:9/mine",
        "DLT_DATA_DIR": mine["DATA_DIR"],
    }
    return dict(os.environ) | mine | out_of_reach | {"TMPDIR": str(tmp_path / "scratch")}


def add_a_column(project):
    edit(
        project,
        f"{MARTS}/fct_daily_station_readings.sql",
        "as last_fetched_at,",
        "as last_fetched_at,\n        42 as answer,",
    )
    next_model = "\n  - name: fct_daily_processing\n"
    column = "      - {name: answer, data_type: integer, description: Always 42.}\n"
    edit(project, f"{MARTS}/_wrm__marts.yml", next_model, f"{column}{next_model}")


def change_a_filter(project):
    edit(project, f"{MARTS}/fct_coverage_gaps.sql", ">= 2", ">= 1")


def change_an_expression(project):
    counted = "received.snapshots_count"
    edit(project, f"{MARTS}/fct_daily_processing.sql", f"{counted},", f"{counted} + 1 as snapshots_count,")


def snapshots_of(day):
    """Payloads of a day that do not repeat the one before."""
    texts = [text for _, text in polls(day) if text is not None]
    return len(texts) - sum(before == text for before, text in pairwise(texts))


def expected_differences():
    """What the three edits do to the rows, told from the polls that the raw data is made of."""
    days, counts = [str(day) for day in DAYS], [snapshots_of(day) for day in DAYS]
    moments = [moment for day in DAYS for moment, text in polls(day) if text is not None]
    steps = [after - before for before, after in pairwise(moments)]
    gaps = sum(step >= timedelta(minutes=15) for step in steps)
    others = sum(timedelta(minutes=5) <= step < timedelta(minutes=15) for step in steps)
    assert gaps and others
    held = {"rows_before": len(days), "rows_after": len(days)}

    def added(**key):
        first = {"started_at": f"{moments[0]:%Y-%m-%d %H:%M:%S}"} | key
        rows = {"rows_before": gaps, "rows_after": gaps + others, "added": others}
        return rows | {"examples": [{"kind": "added", "key": first, "values": {}}]}

    def changed(key, column):
        values = {column: [str(counts[0]), str(counts[0] + 1)]}
        first = {"kind": "changed", "key": {key: days[0]}, "values": values}
        return held | {"changed": len(days), "columns_changed": {column: len(days)}, "examples": [first]}

    return {
        "gold.fct_daily_station_readings": held | {"columns_added": {"answer": "INTEGER"}},
        "gold.fct_coverage_gaps": added(),
        "public.coverage_gaps": added(date=days[0]),
        "gold.fct_daily_processing": changed("dt", "snapshots_count"),
        "public.processing_summary": changed("date", "snapshots"),
    }


def without_blanks(table):
    return {name: value for name, value in table.items() if value and name not in ("table", "key")}


def test_preview_tells_what_a_change_does_to_rows_and_nothing_else(project, elsewhere, tmp_path):
    git(project, "checkout", "--quiet", "-b", "change")
    add_a_column(project)
    commit(project)
    change_a_filter(project)
    change_an_expression(project)
    with open(project / "ingestion/schemas.py", "a") as file:
        file.write("# edited\n")
    command = [*PREVIEW, "--json", "--examples", "1"]
    done = subprocess.run(command, cwd=project, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    note = "ingestion/schemas.py differs: the raw data that both sides read has the change's schemas."
    assert found["notes"] == [note]
    tables = {table["table"]: without_blanks(table) for table in found["tables"]}
    differences = expected_differences()
    assert {name: tables[name] for name in differences} == differences
    assert set(tables) == MARTS_AND_TABLES
    # every other table has rows on both sides, the same
    others = {name: table for name, table in tables.items() if name not in differences}
    rows = {name: table.get("rows_after") for name, table in others.items()}
    assert None not in rows.values()
    assert others == {name: {"rows_before": count, "rows_after": count} for name, count in rows.items()}
    assert [*(tmp_path / "mine").iterdir(), *(tmp_path / "scratch").iterdir()] == []
    assert not (project / "data").exists()
    assert "preview: building base " in done.stderr and "secret" not in done.stderr


def test_an_interrupted_preview_leaves_nothing_behind(project, elsewhere, tmp_path):
    under_way = subprocess.Popen(PREVIEW, cwd=project, env=elsewhere, stderr=subprocess.PIPE, text=True)
    assert under_way.stderr is not None
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("scratch/*/base/data/lake/silver")):
        assert under_way.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    places = [load_settings({"DATA_DIR": str(path)}) for path in tmp_path.glob("scratch/*/*/data")]
    assert [place.postgres_socket_dir.exists() for place in places] == [True, True]
    under_way.send_signal(signal.SIGINT)
    _, said = under_way.communicate(timeout=60)
    assert under_way.returncode == 130 and "Interrupted." in said and "Traceback" not in said
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [place.postgres_socket_dir.exists() for place in places] == [False, False]
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "scratch") not in processes


def small_side(tmp_path, name, revision, files):
    """A side whose tree holds a few files."""
    side = Side(name, revision, tmp_path / name)
    side.tree.mkdir(parents=True)
    for path, text in files.items():
        (side.tree / path).parent.mkdir(exist_ok=True)
        (side.tree / path).write_text(text)
    return side


def test_a_side_that_does_not_build_is_named_with_its_error(tmp_path):
    code = {"ingestion/__init__.py": ""}
    base = small_side(tmp_path, "before", "0123456789abcdef", code | {"built.py": ""})
    change = small_side(
        tmp_path, "after", None, code | {"built.py": "raise SystemExit('Failed. No such column.')"}
    )
    run_code([base], "import built")
    expected = (
        "This does not build: working tree. Mend what it says, or name another BASE.\n--- working tree\n"
    )
    with pytest.raises(PreviewError, match=f"^{re.escape(expected)}Failed. No such column.$"):
        run_code([base, change], "import built")


def test_no_side_builds_with_the_code_of_another_tree(tmp_path):
    empty = small_side(tmp_path, "before", "0123456789abcdef", {})
    message = f"base 0123456789\nThe code is not that of the side: {PROJECT_ROOT}. Look for"
    with pytest.raises(PreviewError, match=re.escape(message)):
        run_code([empty], "")


def test_keys_are_those_that_the_models_are_tested_for():
    keys = read_keys(PROJECT_ROOT)
    assert set(keys) >= MARTS_AND_TABLES
    assert keys["gold.fct_daily_station_ranking"] == ("dt", "measure", "direction", "station_rank")
    assert keys["public.free_bike_trips"] == ("bike_id", "departed_at", "date")
