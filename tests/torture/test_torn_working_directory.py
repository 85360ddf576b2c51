"""dlt's working directory after a power cut: whatever became of a file, what waited lands once."""

import logging
import shutil
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import bronze_rows, moment, small_snapshot

from ingestion import bronze, wrm
from ingestion.schemas import STATION_SNAPSHOTS

DAY = moment("2025-05-12 00:00:00").date()
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


def snapshot(hour):
    observed_at = moment(f"2025-05-12 {hour:02}:00:00")
    payload = small_snapshot(observed_at).encode()
    row = wrm.payload_row(payload, "feed", None, observed_at, observed_at + timedelta(seconds=1))
    return {"station_snapshots": [pa.Table.from_pylist([row], schema=STATION_SNAPSHOTS)]}


def cut(stage, place):
    """Load a snapshot, and leave a second one where a power cut may find it; gives the working directory."""
    pipeline = start(place)
    bronze.load_day(pipeline, DAY, snapshot(6), {"archives": {"here": "2025-05-12"}})
    if stage != "loaded":
        pipeline.extract(bronze._source("wrm", DAY, snapshot(12), {"archives": {"here": "2025-05-13"}}))
    if stage == "normalized":
        bronze._normalize(pipeline)
    return Path(pipeline.working_dir)


def start(place):
    """The pipeline as a process opens it that has just begun."""
    bronze._synced.clear()
    bronze._mended.clear()
    return bronze.open_pipeline("wrm", place.settings)


def hours(place):
    return [at.hour for (at,) in bronze_rows(place.settings, "station_snapshots", "observed_at")]


@pytest.mark.sampled
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stage", ["loaded", "extracted", "normalized"])
def test_torn_file_of_dlt_costs_no_snapshot_and_doubles_none(
    workplace, tmp_path, stage, damage, record_property
):
    folder = cut(stage, workplace)
    shutil.copytree(workplace.settings.data_dir, tmp_path / "copy")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "loaded" not in path.parts]
    for path in files:
        shutil.rmtree(workplace.settings.data_dir)
        shutil.copytree(tmp_path / "copy", workplace.settings.data_dir)
        DAMAGES[damage](path)
        pipeline = start(workplace)
        bronze.load_day(pipeline, DAY, snapshot(18))
        # the payload itself is lost with its file
        waited = [] if stage == "loaded" or path.suffix == ".parquet" else [12]
        assert hours(workplace) == [6, *waited, 18], path
        assert bronze.source_state(pipeline)["archives"]["here"] in ("2025-05-12", "2025-05-13"), path
        left = list(folder.parent.glob("wrm.torn-*"))
        assert bool(left) == (path.suffix == ".parquet" and damage != "missing"), path
    record_property("torn_files", len(files))


def test_snapshots_that_waited_for_the_lake_outlive_a_torn_state(workplace, caplog):
    folder = cut("normalized", workplace)
    (folder / "state.json").write_bytes(b"")
    lake = workplace.lake_folder
    lake.rename(lake.with_name("away"))
    lake.write_text("no folder")
    with caplog.at_level(logging.WARNING), pytest.raises(Exception):  # noqa: B017 - dlt's own
        start(workplace)
    assert f"as a power cut leaves it: {folder / 'state.json'}." in caplog.text
    assert "What was set aside waits for the lake: " in caplog.text
    lake.unlink()
    lake.with_name("away").rename(lake)
    start(workplace)
    assert hours(workplace) == [6, 12]
    assert [path.name for path in folder.parent.iterdir()] == ["wrm"]


def test_whole_payload_beside_a_torn_one_lands_once_whatever_becomes_of_its_object(workplace, caplog):
    folder = cut("extracted", workplace)
    pipeline = bronze._pipeline("wrm", workplace.settings)
    pipeline.extract(bronze._source("wrm", DAY, snapshot(15), {}))
    torn, _ = sorted(folder.glob("normalize/extracted/*/new_jobs/station_snapshots.*.parquet"))
    DAMAGES["truncated"](torn)
    start(workplace)
    assert hours(workplace) == [6, 15]
    [aside] = folder.parent.glob("wrm.torn-*")
    assert [path.name for path in aside.rglob("station_snapshots.*") if "loaded" not in path.parts] == [
        torn.name
    ]
    for path in workplace.lake_folder.glob("bronze/wrm/station_snapshots/dt=*/*.parquet"):
        path.rename(path.with_name(f"compacted-{path.name}"))
    with caplog.at_level(logging.WARNING):
        start(workplace)
    assert hours(workplace) == [6, 15]
    assert f"Lost to a power cut before it landed: {aside / torn.relative_to(folder)}." in caplog.text


def test_torn_normalized_payload_lands_from_what_it_was_made_from(workplace, tmp_path):
    folder = cut("extracted", workplace)
    shutil.copytree(folder / "normalize", tmp_path / "before")
    bronze._normalize(bronze._pipeline("wrm", workplace.settings))
    shutil.copytree(tmp_path / "before", folder / "normalize", dirs_exist_ok=True)  # not deleted yet
    [torn] = folder.glob("load/normalized/*/new_jobs/station_snapshots.*.parquet")
    DAMAGES["truncated"](torn)
    start(workplace)
    assert hours(workplace) == [6, 12]
    assert [path.name for path in folder.parent.iterdir()] == ["wrm"]


@pytest.mark.parametrize("stage", ["normalize/0123456789abcdef", "load/new"])
def test_package_that_a_kill_left_half_made_costs_no_directory(workplace, caplog, stage):
    folder = cut("extracted", workplace)
    half = folder / stage / "1747051200.0/new_jobs/station_snapshots.0123456789.0.parquet"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"PAR1")
    with caplog.at_level(logging.WARNING):
        start(workplace)
    assert "is not whole" not in caplog.text
    assert hours(workplace) == [6, 12]
    assert [path.name for path in folder.parent.iterdir()] == ["wrm"]
