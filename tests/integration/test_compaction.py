"""Compaction: many objects of bronze become one, no row is lost, doubled, built or exported anew.

COMPACTION_KILL_POINTS (default 2) says how often one is killed, at moments of its work drawn by a seed.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing
from datetime import UTC, date, datetime, timedelta

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FEW_STATIONS, bronze_rows, moment, raw_name, small_snapshot

from ingestion import bronze, compaction, run_history, wrm
from ingestion.compaction import CompactionError, Part
from ingestion.lake import AtomicLocalFileSystem, Lake
from ingestion.run_history import Step
from ingestion.schemas import BRONZE, FETCH_ATTEMPTS, STATION_SNAPSHOTS
from ingestion.settings import PROJECT_ROOT
from scripts.command import the_only_job
from scripts.compact_bronze import compact
from scripts.run_dbt import run_dbt
from scripts.run_pipeline import export_readings

KILL_POINTS = int(os.environ.get("COMPACTION_KILL_POINTS", "2"))
TABLES = ("station_snapshots", "fetch_attempts")
MODELS = ("int_wrm__lines_parsed", "int_wrm__snapshots_received", "fct_hourly_coverage")
LANDING = ("landing_wrm__bike_stations", "landing_wrm__free_bikes")
DAY = date(2025, 5, 12)


def import_snapshots(place, archive, *moments):
    """One load of a folder of its own, and so one object for each day."""
    folder = archive(
        f"archive_{moments[0]}", **{raw_name(each): small_snapshot(moment(each)) for each in moments}
    )
    return wrm.import_archive(place.settings, str(folder))


def write_objects(place, *moments, table="station_snapshots"):
    """Objects of one row each, named as dlt does that loads at the same moment."""
    lake = Lake.of(place.settings)
    for each in moments:
        at = moment(each)
        if table == "station_snapshots":
            row = wrm.payload_row(small_snapshot(at).encode(), "http://feed", None, at, at)
        else:
            row = {"resource": "station_snapshots", "attempted_at": at, "attempt_number": 1, "status": 200}
        written = place.settings.data_dir / "written.parquet"
        written.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row], schema=BRONZE["wrm"][table]), written, compression="zstd")
        name = f"bronze/wrm/{table}/dt={at:%Y-%m-%d}/{at.timestamp():.4f}.0123456789.parquet"
        lake.filesystem().put_file(str(written), f"{lake.root}/{name}")


def objects(place):
    """Every object of the bronze tables, by table and day."""
    lake = Lake.of(place.settings)
    found = {}
    for table in BRONZE["wrm"]:
        for path in lake.filesystem().find(f"{lake.root}/bronze/wrm/{table}"):
            *_, day, name = path.split("/")
            found.setdefault((table, day), []).append(name)
    return {key: sorted(names) for key, names in found.items()}


def rows(place):
    return {table: bronze_rows(place.settings, table) for table in BRONZE["wrm"]}


def is_compacted(name):
    return name.startswith("compacted-")


@pytest.fixture(params=["files", "s3"])
def any_place(request, workplace):
    """A workplace whose lake is on a disk, and one on S3."""
    if request.param == "s3":
        move_to_s3(workplace, request.getfixturevalue("s3_server"))
    return workplace


def move_to_s3(place, server):
    place.configure(**server.environment | {"LAKE_URL": f"s3://bike-data-flow/{uuid.uuid4().hex}"})


def test_a_closed_day_becomes_one_object_of_the_same_rows(any_place, archive):
    place = any_place
    days = ("2025-05-11", "2025-05-12")
    for hour in (12, 10, 11):
        import_snapshots(place, archive, *(f"{day} {hour}:00:00" for day in days))
    broken = archive("broken", **{raw_name("2025-05-12 09:00:00"): "#id,name\n1,Pętla\n".encode("cp1250")})
    wrm.import_archive(place.settings, str(broken))
    before = rows(place)
    folded = compact(place.settings)
    assert [(each.part.table, str(each.part.day), len(each.part.objects), each.rows) for each in folded] == [
        ("station_snapshots", "2025-05-11", 3, 3),
        ("station_snapshots", "2025-05-12", 4, 4),
    ]
    assert rows(place) == before
    found = objects(place)
    assert {key: [is_compacted(name) for name in names] for key, names in found.items()} == {
        ("station_snapshots", f"dt={day}"): [True] for day in days
    }
    lake = Lake.of(place.settings)
    [name] = found["station_snapshots", "dt=2025-05-12"]
    with lake.filesystem().open(f"{lake.root}/bronze/wrm/station_snapshots/dt=2025-05-12/{name}") as file:
        table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    assert table.schema.equals(STATION_SNAPSHOTS)
    observed = table.column("observed_at").to_pylist()
    assert observed == sorted(observed)

    assert compact(place.settings) == []
    assert objects(place) == found
    # every snapshot is known, whatever archive it comes in
    again = archive(
        "again", **{raw_name("2025-05-12 10:00:00"): small_snapshot(moment("2025-05-12 10:00:00"))}
    )
    assert wrm.import_archive(place.settings, str(again)).taken == 0
    # both kinds of object are read together
    import_snapshots(place, archive, "2025-05-12 13:00:00")
    assert len(bronze_rows(place.settings, "station_snapshots")) == len(before["station_snapshots"]) + 1
    [late] = compact(place.settings, [DAY])
    assert (late.rows, len(late.part.objects)) == (5, 2)


def test_the_history_of_runs_is_folded(any_place):
    place, started_at = any_place, moment("2025-05-12 10:00:00")
    for minutes in (1, 0, 2):
        begun = started_at + timedelta(minutes=minutes)
        run = {"run_id": str(minutes), "job": "run", "outcome": "succeeded", "started_at": begun}
        step = Step("dbt_node", "transform", "a model", "model", "success", begun, begun)
        run_history.record(place.settings, run, [step])

    def history():
        return [bronze_rows(place.settings, table, source="pipeline") for table in BRONZE["pipeline"]]

    before = history()
    assert [len(rows_found) for rows_found in before] == [3, 3]
    folded = compact(place.settings)
    assert {(each.part.table, each.rows) for each in folded} == {("runs", 3), ("steps", 3)}
    assert history() == before


def test_every_bronze_table_can_be_put_in_order():
    tables = {table: schema.names for tables in BRONZE.values() for table, schema in tables.items()}
    assert {
        table: [name for name in names if name in compaction.TIME_COLUMNS] for table, names in tables.items()
    } == {
        "station_snapshots": ["observed_at"],
        "fetch_attempts": ["attempted_at"],
        "failures": ["observed_at"],
        "runs": ["started_at"],
        "steps": ["started_at"],
    }


def test_hours_of_the_current_day_are_folded_once_they_have_ended(workplace):
    write_objects(
        workplace, *(f"2025-05-12 {time}:00" for time in ("10:10", "10:50", "11:00", "11:59", "12:05"))
    )
    before = rows(workplace)
    key = ("station_snapshots", "dt=2025-05-12")
    assert compact(workplace.settings, now=moment("2025-05-12 10:59:59")) == []
    counts = []
    for now in ("11:30:00", "11:59:59", "12:10:00", "23:00:00"):
        compact(workplace.settings, [DAY], moment(f"2025-05-12 {now}"))
        counts.append(len(objects(workplace)[key]))
        assert rows(workplace) == before
    assert counts == [4, 4, 2, 1]
    assert compact(workplace.settings, now=moment("2025-05-13 00:00:00")) == []


def test_days_that_are_not_listed_are_not_folded(workplace):
    for day in ("2025-05-11", "2025-05-12"):
        write_objects(workplace, f"{day} 10:00:00", f"{day} 11:00:00")
    assert [each.part.day for each in compact(workplace.settings, [DAY])] == [DAY]


def test_a_day_of_many_payloads_is_written_in_row_groups(workplace, monkeypatch):
    monkeypatch.setattr(compaction, "ROW_GROUP_BYTES", 2 * len(small_snapshot(moment("2025-05-12 10:00:00"))))
    monkeypatch.setattr(compaction, "FETCH_BYTES", 10_000)
    write_objects(workplace, *(f"2025-05-12 10:{minute}:00" for minute in range(10, 20)))
    before = rows(workplace)
    compact(workplace.settings)
    [path] = workplace.lake_folder.glob("bronze/wrm/station_snapshots/*/*.parquet")
    assert pq.ParquetFile(path).num_row_groups == 5
    assert rows(workplace) == before


def test_rows_that_came_out_otherwise_are_refused(workplace, monkeypatch):
    write_objects(workplace, "2025-05-12 10:00:00", "2025-05-12 11:00:00")
    before, found = rows(workplace), objects(workplace)
    put_file = AtomicLocalFileSystem.put_file

    def tamper(self, lpath, rpath, **options):
        if "compacted" in rpath:
            table = pq.read_table(lpath)
            payloads = [table["payload"][0].as_py()[:-1] + b"?", table["payload"][1].as_py()]
            changed = table.set_column(0, "payload", pa.array(payloads, pa.binary()))
            pq.write_table(changed, lpath)
        put_file(self, lpath, rpath, **options)

    monkeypatch.setattr(AtomicLocalFileSystem, "put_file", tamper)
    with pytest.raises(CompactionError, match=r"lost or changed rows: wrm.station_snapshots of 2025-05-12"):
        compact(workplace.settings)
    assert (rows(workplace), objects(workplace)) == (before, found)
    assert not journal_exists(workplace)


def test_an_object_that_is_no_bronze_is_named(workplace):
    write_objects(workplace, "2025-05-12 10:00:00", "2025-05-12 11:00:00")
    folder = workplace.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-12"
    pq.write_table(pa.table({"payload": [b"1"]}), folder / "theirs.parquet")
    with pytest.raises(CompactionError, match=r"Columns are not those of .*theirs\.parquet"):
        compact(workplace.settings)
    (folder / "theirs.parquet").write_bytes(b"torn")
    with pytest.raises(CompactionError, match=r"Not a whole Parquet file: .*theirs\.parquet"):
        compact(workplace.settings)


class Killed(BaseException):
    """As a SIGKILL does, nothing is cleaned up."""


def kill_before(monkeypatch, step, call, half=False):
    """Have the `call`th use of a step of a fold end the process, the step half done or not begun."""
    original, calls = getattr(compaction, step), []

    def dying(lake, names, *arguments):
        calls.append(names)
        if len(calls) == call:
            if half:
                original(lake, names[: len(names) // 2], *arguments)
            raise Killed
        original(lake, names, *arguments)

    monkeypatch.setattr(compaction, step, dying)


PHASES = {
    "before the new object": ("_publish", 2, False),
    "after the new object": ("_remove", 1, False),
    "half of the old objects removed": ("_remove", 1, True),
    "all of the old objects removed": ("_remove", 2, False),
}


def killed_compaction(place, monkeypatch, phase):
    """A day of four snapshots, its compaction killed in a phase; gives the rows of before."""
    for table in TABLES:
        write_objects(place, *(f"2025-05-12 10:0{minute}:00" for minute in range(4)), table=table)
    before = rows(place)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_before(patched, *PHASES[phase])
        compact(place.settings)
    assert journal_exists(place)
    return before


def journal_exists(place):
    lake = Lake.of(place.settings)
    return lake.filesystem().exists(f"{lake.root}/{compaction.JOURNAL}")


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_compaction_is_finished_or_taken_back_by_the_next_job(workplace, monkeypatch, phase):
    before = killed_compaction(workplace, monkeypatch, phase)
    with the_only_job(workplace.settings, "any"):
        assert rows(workplace) == before
        taken_back = phase == "before the new object"
        assert len(objects(workplace)["station_snapshots", "dt=2025-05-12"]) == (4 if taken_back else 1)
    assert not journal_exists(workplace)
    compact(workplace.settings)
    assert rows(workplace) == before
    assert {len(names) for names in objects(workplace).values()} == {1}


@pytest.mark.parametrize("phase", PHASES)
def test_a_compaction_that_failed_is_finished_by_the_next_one_of_the_same_process(
    workplace, monkeypatch, phase
):
    before = killed_compaction(workplace, monkeypatch, phase)
    compact(workplace.settings)
    assert rows(workplace) == before
    assert {len(names) for names in objects(workplace).values()} == {1}
    assert not journal_exists(workplace)


def test_an_object_that_came_back_after_it_was_folded_is_not_counted_twice(workplace):
    write_objects(workplace, "2025-05-12 10:00:00", "2025-05-12 10:01:00")
    before = rows(workplace)
    compact(workplace.settings)
    write_objects(workplace, "2025-05-12 10:01:00")  # by a machine that did not know that it had landed
    compact(workplace.settings)
    assert rows(workplace) == before


def test_a_killed_compaction_on_s3_is_finished_by_the_next_job(workplace, s3_server, monkeypatch):
    move_to_s3(workplace, s3_server)
    before = killed_compaction(workplace, monkeypatch, "half of the old objects removed")
    with the_only_job(workplace.settings, "any"):
        assert rows(workplace) == before
    assert not journal_exists(workplace)


def test_a_compacted_object_that_is_not_whole_is_taken_back(workplace, monkeypatch):
    before = killed_compaction(workplace, monkeypatch, "after the new object")
    [new] = workplace.lake_folder.glob("bronze/wrm/station_snapshots/*/compacted-*")
    new.write_bytes(new.read_bytes()[:100])
    unfinished = new.with_name(f"_{new.name}.unfinished")
    unfinished.write_bytes(b"")
    compaction.recover(Lake.of(workplace.settings))
    assert rows(workplace) == before
    assert not new.exists() and not unfinished.exists()


def test_a_compaction_that_cannot_be_finished_is_told_and_nothing_is_removed(workplace, monkeypatch):
    killed_compaction(workplace, monkeypatch, "half of the old objects removed")
    [new] = workplace.lake_folder.glob("bronze/wrm/station_snapshots/*/compacted-*")
    new.write_bytes(b"torn")
    found = objects(workplace)
    with pytest.raises(CompactionError, match=r"cannot be finished: .* is not whole"):
        compaction.recover(Lake.of(workplace.settings))
    assert objects(workplace) == found
    assert journal_exists(workplace)


def kill_compaction(place, folds, seconds):
    """Start a compaction in a process of its own and kill it in one of its folds, `seconds` after the journal
    of that one was written."""
    journal = place.lake_folder / compaction.JOURNAL
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.compact_bronze"],
        env=place.command_environment(),
        cwd=PROJECT_ROOT,
        stderr=subprocess.DEVNULL,
    )
    for is_written in [True, False] * folds + [True]:
        while journal.exists() != is_written and process.poll() is None:
            time.sleep(0.0005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_a_compaction_killed_at_any_moment_loses_and_doubles_nothing(workplace):
    for table in TABLES:
        for day in (11, 12):
            moments = (f"2025-05-{day} 10:{second // 60:02}:{second % 60:02}" for second in range(120))
            write_objects(workplace, *moments, table=table)
    bronze_folder = workplace.lake_folder / "bronze"
    original = workplace.settings.data_dir / "original"
    shutil.copytree(bronze_folder, original)
    before = rows(workplace)
    draw, kills = random.Random(4), 0
    for point in range(KILL_POINTS):
        shutil.rmtree(bronze_folder)
        shutil.copytree(original, bronze_folder)
        folds, seconds = point % 4, draw.uniform(0, 0.04)
        kills += kill_compaction(workplace, folds, seconds)
        with the_only_job(workplace.settings, "any"):
            assert rows(workplace) == before, f"killed after {folds} folds and {seconds:.4f} s"
        compact(workplace.settings)
        assert rows(workplace) == before, f"killed after {folds} folds and {seconds:.4f} s"
        assert {len(names) for names in objects(workplace).values()} == {1}
    assert kills > 0


def test_a_load_that_a_kill_left_pending_is_finished_before_its_objects_are_folded(workplace):
    """Its object is in the lake, and dlt does not know: it would bring it once more."""
    pipeline = bronze.open_pipeline("wrm", workplace.settings)
    attempts = [{"attempted_at": moment(f"2025-05-12 10:0{minute}:00")} for minute in range(2)]
    for attempt in attempts:
        table = pa.Table.from_pylist([attempt], schema=FETCH_ATTEMPTS)
        pipeline.extract(bronze._source("wrm", DAY, {"fetch_attempts": [table]}, {}))
        pipeline.normalize()
        working = workplace.settings.data_dir / "dlt"
        shutil.rmtree(killed := working.with_name("killed"), ignore_errors=True)
        shutil.copytree(working, killed)
        pipeline.load()
    before = rows(workplace)
    shutil.rmtree(working)
    killed.rename(working)
    [folded] = compact(workplace.settings)
    assert folded.rows == 2
    bronze.open_pipeline("wrm", workplace.settings)
    assert rows(workplace) == before


def test_records_of_loads_are_pruned_and_a_lost_working_directory_restores_itself(live_workplace, feed):
    for _ in range(3):
        wrm.take_snapshot(live_workplace.settings)
    state = bronze.source_state(bronze.open_pipeline("wrm", live_workplace.settings))
    before = rows(live_workplace)
    loads = live_workplace.lake_folder / "bronze/wrm/_dlt_loads"
    kept = sorted(loads.iterdir())
    days = live_workplace.settings.dlt_loads_retention_days
    compact(live_workplace.settings)
    assert sorted(loads.iterdir()) == kept
    compact(live_workplace.settings, now=datetime.now(UTC) + timedelta(days=days, hours=1))
    assert sorted(loads.iterdir()) == kept[-1:]
    shutil.rmtree(live_workplace.settings.data_dir / "dlt")
    pipeline = bronze.open_pipeline("wrm", live_workplace.settings)
    assert bronze.source_state(pipeline) == state
    feed.misbehave("unchanged")
    assert wrm.take_snapshot(live_workplace.settings).is_unchanged
    after = rows(live_workplace)
    assert after["station_snapshots"] == before["station_snapshots"]
    assert len(after["fetch_attempts"]) == len(before["fetch_attempts"]) + 1


def build(place, *models):
    """Build models of the lake and land what they say; gives dbt's messages."""
    return run_dbt(
        place.settings,
        "transform",
        "--quiet",
        "build",
        "--exclude-resource-type",
        "unit_test",
        "--select",
        *models,
    )


def ledger(place, model=LANDING[0]):
    """Names of the objects that PostgreSQL is known to hold."""
    found = place.warehouse_rows(
        f"select dt::text, object from landing.exported_objects where model = '{model}' order by object"
    )
    return [("station_snapshots", f"dt={day}", name.split("/")[-1]) for day, name in found]


def present(place):
    return sorted((*key, name) for key, names in objects(place).items() for name in names)


def pending(place):
    return place.warehouse_rows(
        "select distinct dt::text, is_whole_day, is_gone from landing.pending_objects "
        f"where model = '{LANDING[0]}' order by 1, 2, 3"
    )


def built(place):
    return [place.lake_rows(f"from {model} order by all") for model in MODELS]


def exported(place):
    return place.warehouse_rows("select id::text, name, processed_at from bike_stations order by id")


def execute(place, sql):
    with closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql)


NOTHING_BUILT = dict.fromkeys(MODELS, "built days: 0")
NOTHING_LANDED = dict.fromkeys(LANDING, "landed days: 0")


def nothing_of(messages):
    return {name: message for name, message in messages.items() if name in (*MODELS, *LANDING)}


def test_a_compaction_builds_and_exports_nothing_anew(workplace, archive):
    for hour in (10, 11, 12):
        import_snapshots(workplace, archive, *(f"2025-05-{day} {hour}:00:00" for day in (11, 12)))
    export_readings(workplace.settings)
    # one day by the way of another compacted object, which no export has seen
    lake, scratch = Lake.of(workplace.settings), workplace.settings.data_dir
    [day, _] = compaction.find_parts(lake, datetime.now(UTC))
    earlier = dict(sorted(day.objects.items())[:2])
    compaction.fold(lake, Part(day.source, day.table, day.day, earlier), scratch)
    build(workplace, *MODELS)
    in_lake, in_postgres = built(workplace), exported(workplace)
    exported_at = workplace.warehouse_rows("select max(exported_at) from landing.exported_objects")
    assert [len(each.part.objects) for each in compact(workplace.settings)] == [2, 3]

    assert nothing_of(build(workplace, *MODELS, *LANDING)) == NOTHING_BUILT | NOTHING_LANDED
    assert ledger(workplace) == present(workplace) and len(ledger(workplace)) == 2
    assert ledger(workplace, LANDING[1]) == present(workplace)
    assert workplace.warehouse_rows("select max(exported_at) from landing.exported_objects") == exported_at
    assert pending(workplace) == []
    assert (built(workplace), exported(workplace)) == (in_lake, in_postgres)

    import_snapshots(workplace, archive, "2025-05-12 13:00:00")
    messages = build(workplace, *MODELS, *LANDING)
    assert [messages[name] for name in (MODELS[0], LANDING[0])] == ["built days: 1", "landed days: 1"]
    assert pending(workplace) == [("2025-05-12", False, False)]
    export_readings(workplace.settings)
    assert len(exported(workplace)) == 7 * FEW_STATIONS
    compact(workplace.settings)
    assert nothing_of(build(workplace, *MODELS, *LANDING)) == NOTHING_BUILT | NOTHING_LANDED
    assert ledger(workplace) == present(workplace)


def test_days_that_were_exported_in_part_or_by_other_code_land_as_they_have_to(workplace, archive):
    for hour in (10, 11):
        import_snapshots(workplace, archive, *(f"2025-05-{day} {hour}:00:00" for day in (11, 12, 13)))
    export_readings(workplace.settings)
    import_snapshots(workplace, archive, "2025-05-11 12:00:00")
    execute(
        workplace,
        "update landing.exported_objects set fingerprint = 'of other code' where object = "
        "(select min(object) from landing.exported_objects where dt = '2025-05-12')",
    )
    compact(workplace.settings)
    # the new object lands, those that it replaced are forgotten; the day of other code lands whole
    build(workplace, *LANDING)
    in_part, whole = ("2025-05-11", False), ("2025-05-12", True)
    assert pending(workplace) == [(*in_part, False), (*in_part, True), (*whole, False)]
    landed = "select count(*) from landing.landing_wrm__bike_stations where date = '2025-05-11'"
    assert workplace.warehouse_rows(landed) == [(3 * FEW_STATIONS,)]
    export_readings(workplace.settings)
    assert ledger(workplace) == present(workplace) and len(present(workplace)) == 3
    assert len(exported(workplace)) == 7 * FEW_STATIONS
    assert nothing_of(build(workplace, *LANDING)) == NOTHING_LANDED


def test_an_object_withdrawn_before_a_compaction_leaves_postgres(workplace, archive):
    for hour in (10, 11, 12):
        import_snapshots(workplace, archive, f"2025-05-12 {hour}:00:00")
    export_readings(workplace.settings)
    folder = workplace.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-12"
    max(folder.iterdir()).unlink()
    compact(workplace.settings)
    export_readings(workplace.settings)
    assert ledger(workplace) == present(workplace)
    assert len(exported(workplace)) == 2 * FEW_STATIONS
