"""What a power cut or a lost machine leaves behind: the next job heals it, or says what to do."""

import errno
import json
import os
import shutil
import stat
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from settled_place import DAY, DAYS, kept, rows, settled_place

from ingestion.lake import Lake, unfinished_path
from scripts import backfill_days
from scripts.torn_objects import give_up_torn
from transform.plugins.lake import Plugin


@pytest.fixture
def settled(live_workplace, archive, tmp_path_factory):
    return settled_place(live_workplace, archive, tmp_path_factory)


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


# what the next job makes anew or does without, whatever has become of it
PLACES = [
    f"lake/silver/int_wrm__lines_parsed/dt={DAY}/data.parquet",
    f"lake/gold/fct_daily_network/dt={DAY}/data.parquet",
    f"lake/gold/fct_daily_network/dt={DAYS[2]}/data.parquet",
    "lake/silver/int_wrm__lines_parsed/_state.parquet",
    "lake/gold/dim_bike_stations/_state.parquet",
    "lake/_backfill/journal.json",
    "lake/_lease.json",
    "pipeline.lock",
    "dlt/pipelines/wrm/state.json",
    "dlt/pipelines/pipeline/schemas/pipeline.schema.json",
    "dbt/transform/partial_parse.msgpack",
    "dbt/exports/partial_parse.msgpack",
]


@pytest.mark.sampled
@pytest.mark.parametrize("damage", [truncated, emptied])
@pytest.mark.parametrize("place", PLACES)
def test_torn_file_is_healed_by_the_next_job(settled, place, damage):
    path = settled.settings.data_dir / place
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"asked": "2025-05-12", "job": "watch"}')
    damage(path)
    settled.finish("run_pipeline", "backfill", kept["archive"])
    assert rows(settled) == kept["rows"]


@pytest.mark.sampled
@pytest.mark.parametrize(
    "folder", ["dlt", "dbt", "lake/silver", "lake/gold", "lake/silver/int_wrm__lines_parsed"]
)
def test_lost_folder_is_healed_by_the_next_job(settled, folder):
    shutil.rmtree(settled.settings.data_dir / folder)
    settled.finish("run_pipeline", "backfill", kept["archive"])
    assert rows(settled) == kept["rows"]


@pytest.mark.sampled
def test_torn_bronze_object_is_named_and_other_days_go_on(settled):
    [path] = settled.lake_folder.glob(f"bronze/wrm/station_snapshots/dt={DAY}/*.parquet")
    whole = path.read_bytes()
    truncated(path)
    told = settled.finish("run_pipeline", "backfill", kept["archive"], status=1)
    assert f"A bronze object is not whole: {path}. Bring it back from a copy" in told
    assert "1 files were refused" in told and "Traceback" not in told
    path.write_bytes(whole)
    settled.finish("run_pipeline", "backfill", kept["archive"])
    assert rows(settled) == kept["rows"]


@pytest.mark.sampled
def test_torn_bronze_object_that_a_build_meets_is_named_and_stays(settled):
    [path] = settled.lake_folder.glob(f"bronze/wrm/station_snapshots/dt={DAY}/*.parquet")
    truncated(path)
    torn = path.read_bytes()
    told = settled.finish("run_pipeline", "backfill", "--from", DAY, "--to", DAY, status=1)
    assert f"An object of the lake is not whole: {path}. Bring it back from a copy" in told
    assert path.read_bytes() == torn


def test_torn_object_is_given_up_after_its_day_is_to_be_rebuilt_and_other_days_stay_as_they_are(workplace):
    lake = Lake.of(workplace.settings)
    folder = Path(lake.root, "gold/fct_daily_network")
    days = [date.fromisoformat(day) for day in DAYS]
    state = pa.table(
        {"dt": pa.array(days, pa.date32()), "fingerprint": [None, "b", "c"], "row_count": [1, 1, 1]}
    )
    folder.mkdir(parents=True)
    pq.write_table(state, folder / "_state.parquet")
    paths = [folder / f"dt={day}/data.parquet" for day in DAYS]
    for path in paths:
        path.parent.mkdir()
        pq.write_table(pa.table({"rows": [1]}), path)
    truncated(paths[1])
    bronze = Path(lake.root, "bronze/wrm/station_snapshots/dt=2025-05-12/a.parquet")
    bronze.parent.mkdir(parents=True)
    bronze.write_bytes(b"torn")
    given_up = [give_up_torn(lake, str(path)) for path in (*paths, bronze)]
    assert given_up == [True, True, True, False]
    assert [path.exists() for path in (*paths, bronze)] == [True, False, True, True]
    assert pq.read_table(folder / "_state.parquet")["fingerprint"].to_pylist() == [None, None, "c"]
    around = f"{lake.root}/silver/../bronze/wrm/station_snapshots/dt=2025-05-12/a.parquet"
    assert not give_up_torn(lake, around) and bronze.exists()


@pytest.mark.parametrize("write", ["put_file", "write_text", "plugin"])
def test_file_is_on_the_disk_before_its_name_and_the_name_before_the_next_step(
    workplace, tmp_path, monkeypatch, write
):
    """What dlt loads, dlt's records of it, and what dbt builds."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("name"), replace(old, new)))
    lake = Lake.of(workplace.settings)
    target = Path(lake.root, "silver/model/dt=2025-05-12/data.parquet")
    (tmp_path / "finished").write_text("content")
    if write == "put_file":
        lake.filesystem().put_file(str(tmp_path / "finished"), str(target))
    elif write == "write_text":
        lake.filesystem().write_text(str(target), "content", encoding="utf-8")
    else:
        plugin = Plugin("lake", {"environment": workplace.settings.environment})
        for operation in ("prepare", "publish"):
            config = SimpleNamespace(
                location=SimpleNamespace(path=str(target)), config={"operation": operation}
            )
            plugin.store(config)
            if operation == "prepare":
                shutil.copyfile(tmp_path / "finished", unfinished_path(str(target)))
    assert target.read_text() == "content"
    assert calls == [
        target.stat().st_ino,
        "name",
        target.parent.stat().st_ino,
        target.parent.parent.stat().st_ino,
    ]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.EIO])
def test_folder_that_cannot_be_synced_is_no_failure_but_a_failing_disk_is(
    workplace, tmp_path, monkeypatch, code
):
    fsync = os.fsync

    def refuse_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    target = tmp_path / "silver/model/data.parquet"
    failure = None
    try:
        Lake.of(workplace.settings).filesystem().write_text(str(target), "content")
    except OSError as error:
        failure = error.errno
    assert failure == (errno.EIO if code == errno.EIO else None)
    assert target.read_text() == "content"


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"asked": "2025-05-12..", "days": 1}'])
def test_journal_of_something_else_is_no_journal(workplace, content):
    journal = workplace.lake_folder / "_backfill/journal.json"
    journal.parent.mkdir(parents=True)
    journal.write_text(content)
    assert backfill_days._read_journal(Lake.of(workplace.settings), "2025-05-12..") is None


@pytest.mark.sampled
def test_days_of_a_model_with_a_torn_state_are_rebuilt_all_the_same(settled):
    model = settled.lake_folder / "silver/int_wrm__lines_parsed"
    truncated(model / "_state.parquet")
    # of the same command, cut short when the day was rebuilt in all models but this one
    record = {"asked": DAY, "days": [DAY], "began_at": "now", "before": {}, "is_marked": True}
    journal = settled.lake_folder / "_backfill/journal.json"
    journal.parent.mkdir()
    journal.write_text(json.dumps(record | {"marked": {model.name: [DAY]}}))
    built = model / f"dt={DAY}/data.parquet"
    before = built.stat().st_mtime_ns
    told = settled.finish("run_pipeline", "backfill", "--from", DAY, "--to", DAY)
    assert f"made anew before any day is rebuilt: {model}/_state.parquet." in told
    assert built.stat().st_mtime_ns > before
    assert "rebuilt, as before" in told


@pytest.mark.sampled
def test_upload_that_was_never_finished_is_no_object_and_in_nobodys_way(settled, s3_server):
    place = settled
    place.configure(**s3_server.environment | {"LAKE_URL": f"s3://bike-data-flow/uploads-{time.time_ns()}"})
    lake = Lake.of(place.settings)
    client = lake.s3_client()
    names = [
        f"bronze/wrm/station_snapshots/dt={DAY}/1.a.parquet",
        f"silver/int_wrm__lines_parsed/dt={DAY}/data.parquet",
        "silver/int_wrm__lines_parsed/_state.parquet",
        "_compaction.json",
    ]
    for name in names:
        bucket, key = lake.bucket_and_key(name)
        begun = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.upload_part(
            Bucket=bucket, Key=key, PartNumber=1, UploadId=begun["UploadId"], Body=b"half an object"
        )
    assert lake.filesystem().find(lake.root) == []
    place.finish("run_pipeline", "backfill", kept["archive"])
    assert rows(place) == kept["rows"]
