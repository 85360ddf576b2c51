"""What a power cut or a lost machine leaves behind: the next job heals it, or says what to do."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from conftest import Workplace, moment, raw_name, small_snapshot

DAYS = ("2025-05-11", "2025-05-12", "2025-05-13")
DAY = DAYS[1]
HOURS = ("00", "06", "12", "18")
LAKE_QUERIES = [
    f"select * exclude (fetched_at) from (from {model}) order by all"
    for model in (
        "int_wrm__lines_parsed",
        "int_wrm__lines_quarantined",
        "int_wrm__station_readings_deduplicated",
        "int_wrm__free_bike_readings_deduplicated",
    )
] + [
    f"from {mart} order by all"
    for mart in ("dim_bike_stations", "fct_daily_network", "fct_free_bike_trips", "fct_coverage_gaps")
]
WAREHOUSE_QUERIES = [
    "select id::text, station_id, timestamp, name, bikes, spaces, date from bike_stations order by id",
    "select date, total_records, unique_stations, avg_bikes from stations_data_summary order by 1",
    "select date, snapshots, lines, station_readings, quarantined from processing_summary order by 1",
    "select id::text, bike_id, timestamp, latitude, battery_pct, date from free_bikes order by id",
    "select * from station_history order by station_id, valid_from",
    "select * from hourly_station_availability order by hour_started_at, station_id",
]

kept = {}  # by module: the place that the cases begin from, made once


def rows(place: Workplace) -> list[list[tuple]]:
    return [place.lake_rows(query) for query in LAKE_QUERIES] + [
        place.warehouse_rows(query) for query in WAREHOUSE_QUERIES
    ]


def run(place: Workplace, module: str, *arguments: str, status: int = 0) -> str:
    """A job to its end; what it printed."""
    with place.job(module, *arguments) as job:
        assert job.wait() == status, job.output
        return job.output


def copy_database(place: Workplace, source: str, target: str) -> None:
    parameters = place.settings.postgres_parameters() | {"dbname": "postgres"}
    with closing(psycopg2.connect(**parameters)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"drop database if exists {target}")
        connection.cursor().execute(f"create database {target} template {source}")


@pytest.fixture
def settled(live_workplace, archive, tmp_path_factory):
    """A place with three days imported and a snapshot taken, as it stands at the power cut; the archive has
    got one more file since, of the day in the middle. `kept["rows"]` is what comes of that undisturbed."""
    place = live_workplace
    if not kept:
        _settle(place, archive, tmp_path_factory.mktemp("settled"))
    place.configure(DATA_DIR=kept["data"], POSTGRES_URL=kept["url"])
    shutil.rmtree(kept["data"])
    shutil.copytree(kept["copy"], kept["data"], symlinks=True)
    copy_database(place, f"{kept['database']}_copy", kept["database"])
    return place


def _settle(place: Workplace, archive: Callable[..., Path], folder: Path) -> None:
    moments = [f"{day} {hour}:00:00" for day in DAYS for hour in HOURS]
    first = archive(
        str(folder / "first"),
        **{raw_name(text): small_snapshot(moment(text)) for text in moments},
        **{"content_2025-05-12_03-00-00.txt": "#id,name\n1,Rynek\n"},
    )
    place.configure(DATA_DIR=str(folder / "data"))
    run(place, "run_pipeline", "backfill", str(first))
    database = place.settings.postgres_parameters()["dbname"]
    shutil.copytree(folder / "data", folder / "copy", symlinks=True)
    copy_database(place, database, f"{database}_copy")
    grown = shutil.copytree(first, folder / "grown")
    late = f"{DAY} 21:00:00"
    (grown / raw_name(late)).write_text(small_snapshot(moment(late)))
    run(place, "run_pipeline", "backfill", str(grown))
    kept.update(
        data=str(folder / "data"),
        copy=folder / "copy",
        url=place.environment["POSTGRES_URL"],
        database=database,
        archive=str(grown),
        rows=rows(place),
    )


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
    run(settled, "run_pipeline", "backfill", kept["archive"])
    assert rows(settled) == kept["rows"]


@pytest.mark.sampled
@pytest.mark.parametrize("folder", ["dlt", "dbt", "lake/silver", "lake/gold", "lake/silver/int_wrm__lines_parsed"])
def test_lost_folder_is_healed_by_the_next_job(settled, folder):
    shutil.rmtree(settled.settings.data_dir / folder)
    run(settled, "run_pipeline", "backfill", kept["archive"])
    assert rows(settled) == kept["rows"]


@pytest.mark.sampled
def test_torn_bronze_object_is_named_and_other_days_go_on(settled):
    [path] = settled.lake_folder.glob(f"bronze/wrm/station_snapshots/dt={DAY}/*.parquet")
    whole = path.read_bytes()
    truncated(path)
    told = run(settled, "run_pipeline", "backfill", kept["archive"], status=1)
    assert f"A bronze object is not whole: {path}. Bring it back from a copy" in told
    assert "1 files were refused" in told and "Traceback" not in told
    path.write_bytes(whole)
    run(settled, "run_pipeline", "backfill", kept["archive"])
    assert rows(settled) == kept["rows"]


@pytest.mark.sampled
def test_torn_bronze_object_that_a_build_meets_is_named_and_stays(settled):
    [path] = settled.lake_folder.glob(f"bronze/wrm/station_snapshots/dt={DAY}/*.parquet")
    truncated(path)
    torn = path.read_bytes()
    told = run(settled, "run_pipeline", "backfill", "--from", DAY, "--to", DAY, status=1)
    assert f"An object of the lake is not whole: {path}. Bring it back from a copy" in told
    assert path.read_bytes() == torn
