"""A place with a little history that costs its building once: every case begins from a copy of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Workplace, copy_database, moment, raw_name, small_snapshot

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
    "select date, snapshots, lines, station_readings, quarantined from processing_summary "
    f"where date <= '{DAYS[-1]}' order by 1",
    "select id::text, bike_id, timestamp, latitude, battery_pct, date from free_bikes order by id",
    "select * from station_history order by station_id, valid_from",
    "select * from hourly_station_availability order by hour_started_at, station_id",
]

Archive = Callable[..., Path]

kept: dict[str, Any] = {}  # the place that cases begin from, made once by each worker


def rows(place: Workplace) -> list[list[tuple]]:
    return [place.lake_rows(query) for query in LAKE_QUERIES] + [
        place.warehouse_rows(query) for query in WAREHOUSE_QUERIES
    ]


def settled_place(place: Workplace, archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The place as it was settled: three days imported, built and exported. The archive has got one more file
    since, of the day in the middle; `kept["rows"]` is what comes of that undisturbed."""
    if not kept:
        _settle(place, archive, tmp_path_factory.mktemp("settled"))
    place.configure(DATA_DIR=kept["data"], POSTGRES_URL=kept["url"])
    shutil.rmtree(kept["data"])
    shutil.copytree(kept["copy"], kept["data"], symlinks=True)
    copy_database(place.settings, f"{kept['database']}_copy", kept["database"])
    return place


def _settle(place: Workplace, archive: Archive, folder: Path) -> None:
    moments = [f"{day} {hour}:00:00" for day in DAYS for hour in HOURS]
    first = archive(
        str(folder / "first"),
        **{raw_name(text): small_snapshot(moment(text)) for text in moments},
        **{"content_2025-05-12_03-00-00.txt": "#id,name\n1,Rynek\n"},
    )
    place.configure(DATA_DIR=str(folder / "data"))
    place.finish("run_pipeline", "backfill", str(first))
    database = place.settings.postgres_parameters()["dbname"]
    shutil.copytree(folder / "data", folder / "copy", symlinks=True)
    copy_database(place.settings, database, f"{database}_copy")
    grown = shutil.copytree(first, folder / "grown")
    late = f"{DAY} 21:00:00"
    (grown / raw_name(late)).write_text(small_snapshot(moment(late)))
    place.finish("run_pipeline", "backfill", str(grown))
    kept.update(
        data=str(folder / "data"),
        copy=folder / "copy",
        url=place.environment["POSTGRES_URL"],
        database=database,
        archive_before=str(first),
        archive=str(grown),
        rows=rows(place),
    )
