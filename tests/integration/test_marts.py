"""The marts against a reference that works them out once more from the raw texts: see tests/reference.py."""

from __future__ import annotations

import json
import math
import os
import random
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import reference
from conftest import Workplace, moment
from reference import Row, Snapshot

from ingestion import wrm
from ingestion.archive import observed_at_of
from ingestion.settings import PROJECT_ROOT
from scripts.run_pipeline import export_marts, export_readings, transform
from scripts.simulate_feed import DEPOT, HEADER, City, break_encoding
from transform.plugins.lake import open_lake

# each mart's reference, its grain, and its table in PostgreSQL
MARTS = {
    "dim_bike_stations": (reference.bike_stations, ("station_id", "valid_from"), "station_history"),
    "fct_coverage_gaps": (reference.coverage_gaps, ("started_at",), "coverage_gaps"),
    "fct_daily_data_quality": (reference.daily_data_quality, ("dt",), "daily_data_quality"),
    "fct_daily_network": (reference.daily_network, ("dt",), "daily_network"),
    "fct_daily_processing": (reference.daily_processing, ("dt",), "processing_summary"),
    "fct_daily_station_availability": (
        reference.daily_station_availability,
        ("dt", "station_id"),
        "daily_station_availability",
    ),
    "fct_daily_station_ranking": (
        reference.daily_station_ranking,
        ("dt", "measure", "direction", "station_rank"),
        "daily_station_ranking",
    ),
    "fct_daily_station_readings": (reference.daily_station_readings, ("dt",), "stations_data_summary"),
    "fct_free_bike_idle_spells": (
        reference.free_bike_idle_spells,
        ("dt", "bike_id", "started_at"),
        "free_bike_idle_spells",
    ),
    "fct_free_bike_trips": (reference.free_bike_trips, ("bike_id", "departed_at"), "free_bike_trips"),
    "fct_hourly_coverage": (reference.hourly_coverage, ("hour_started_at",), "hourly_coverage"),
    "fct_hourly_station_availability": (
        reference.hourly_station_availability,
        ("station_id", "hour_started_at"),
        "hourly_station_availability",
    ),
}
BY_THE_CLOCK = ("last_fetched_at", "fetch_seconds", "silver_seconds")
AS_JSON = ("hour_profile", "frozen_station_ids", "quarantined_by_reason")
REAL_SNAPSHOTS = Path(
    os.environ.get("WRM_REAL_SNAPSHOTS") or PROJECT_ROOT.parent / "shared" / "data" / "wrm" / "raw"
)
Texts = list[tuple[datetime, str]]
METER = 1 / 111_195  # of latitude, in degrees


# ---------------------------------------------------------------------------------------- a made-up feed


@dataclass(frozen=True)
class Place:
    """A station, or a free bike with its battery, as a line of the feed tells it."""

    id: int | str
    name: str
    latitude: float
    longitude: float
    bikes: int = 1
    spaces: int = 0
    docks: int = 1
    battery: int = -1

    def line(self, seconds: float) -> str:
        is_bike = isinstance(self.id, str)
        name = f'"{self.name}"' if "," in self.name else self.name
        return (
            f"{self.id},{seconds:.6f}|-7200|-3600,{name},{self.latitude:.6f},{self.longitude:.6f},{self.bikes},"
            f"{self.spaces},true,false,{str(is_bike).lower()},{self.docks},"
            f"{self.battery if is_bike else 'false'},0"
        )


def text_of(observed_at: datetime, places: list[Place]) -> str:
    """The feed's text; readings are taken up to a second after the snapshot's moment."""
    start = observed_at.timestamp() + 0.25
    lines = [place.line(start + number * 0.000131) for number, place in enumerate(places)]
    return "\n".join([HEADER, *lines]) + "\n"


def walk(draw: random.Random, station: Place) -> Place:
    """Some bikes come or go; now and then more of them than there are docks."""
    bikes = max(0, min(station.docks + 1, station.bikes + draw.choice((-3, -1, -1, 0, 0, 0, 1, 1, 2))))
    return replace(station, bikes=bikes, spaces=max(0, station.docks - bikes))


def irregular_moments(draw: random.Random) -> list[datetime]:
    """Between 1 and 40 minutes apart, for six UTC days, the fourth of which is missing wholly."""
    at, moments = moment("2025-05-11 00:03:20"), []
    while at < moment("2025-05-16 23:59:00"):
        if not moment("2025-05-13 20:30:00") < at < moment("2025-05-15 01:00:00"):
            moments.append(at)
        at += timedelta(seconds=draw.randint(60, 2400))
    return moments


def irregular_stations(hours: float, draw: random.Random, stations: dict[int, Place]) -> list[Place]:
    """What the feed tells of the stations `hours` after its beginning; `stations` keeps their state."""
    for number, station in stations.items():
        if number != 3:  # stands still
            stations[number] = walk(draw, station)
    if hours > 20:
        stations[9] = replace(stations[9], docks=15 if hours < 110 else 0)
    if hours > 50:
        stations[7] = replace(stations[7], latitude=51.07 + 300 * METER)
    stations[8] = replace(stations[8], name="Osiem, nowa" if 60 < hours < 62 else "Osiem")
    stations[12] = replace(stations[12], latitude=51.12 + (hours // 10) * 20 * METER)
    away = {
        4: hours < 30,
        5: hours > 40,
        6: 40 < hours < 130,
        10: 68 < hours < 120,
        13: draw.random() < 0.3,
        14: 12 < hours < 32,
        15: 12 < hours < 49,
    }
    told = [station for number, station in stations.items() if not away.get(number)]
    return [replace(each, name="Sześć inaczej") if each.id == 6 and hours > 130 else each for each in told]


def irregular_bikes(hours: float, draw: random.Random, bikes: dict[str, Place]) -> list[Place]:
    """What the feed tells of the free bikes; `bikes` keeps where they are."""

    def jump(bike: str) -> Place:
        return replace(
            bikes[bike], latitude=51.1 + draw.uniform(-0.05, 0.05), longitude=17 + draw.uniform(-0.1, 0.1)
        )

    for bike in bikes:
        bikes[bike] = replace(bikes[bike], battery=draw.choice((-1, 20, 50, 90)))
    bikes["fb600002"] = replace(bikes["fb600002"], latitude=bikes["fb600002"].latitude + 30 * METER)
    if draw.random() < 0.1:
        bikes["fb600003"] = jump("fb600003")
    if 60 < hours < 60.7 or draw.random() < 0.02:
        bikes["fb600004"] = replace(bikes["fb600004"], latitude=DEPOT[0], longitude=DEPOT[1])
    elif bikes["fb600004"].latitude == DEPOT[0]:
        bikes["fb600004"] = jump("fb600004")
    if hours > 45 and bikes["fb600006"].longitude == 17.01:
        bikes["fb600006"] = jump("fb600006")
    if hours > 35 and bikes["fb600007"].longitude == 17.01:
        bikes["fb600007"] = jump("fb600007")
    if hours > 80 and bikes["fb600009"].longitude == 17.01:
        bikes["fb600009"] = jump("fb600009")
    away = {
        "fb600005": draw.random() < 0.4,
        "fb600006": 30 < hours < 45,
        "fb600007": 10 < hours < 35,
        "fb600008": not 20 < hours < 20.8,
        "fb600010": 21.5 < hours < 22.4,
    }
    return [place for bike, place in bikes.items() if not away.get(bike)]


def irregular_texts() -> Texts:
    """Six days of everything that changes a station or a bike, a feed that stands still, and damage."""
    draw = random.Random(20250511)
    stations = {
        number: Place(number, f"Stacja {number}", 51.05 + number / 100, 17.0, bikes=5, spaces=5, docks=10)
        for number in range(1, 16)
    }
    stations[2] = replace(stations[2], name="Dworzec, północ, Żabia")
    stations[11] = replace(stations[11], latitude=DEPOT[0], longitude=DEPOT[1])
    stations[12] = replace(stations[12], latitude=51.12)
    bikes = {
        f"fb{600000 + n}": Place(f"fb{600000 + n}", f"BIKE {600000 + n}", 51.1, 17.01) for n in range(1, 11)
    }
    texts: Texts = []
    moments = irregular_moments(draw)
    for number, at in enumerate(moments):
        hours = (at - moments[0]) / timedelta(hours=1)
        told = irregular_stations(hours, draw, stations) + irregular_bikes(hours, draw, bikes)
        text = text_of(at, told)
        if any(begins < hours < begins + 1.3 for begins in (23.2, 45.2, 69.4, 105)):
            text = texts[-1][1]  # the feed stands still
        elif number % 40 == 7:
            text = damaged(text)
        elif number % 40 == 8:
            texts.append((at, text + "\n"))  # once more, under another name
        elif number % 40 == 9:
            text += text.split("\n", 1)[1]  # every line twice
        texts.append((at, text))
    return texts


def damaged(text: str) -> str:
    """A name in a broken encoding, a torn line and a flag that is none."""
    lines = text.split("\n")
    lines[2] = break_encoding(lines[2])
    lines[4] = lines[4][: len(lines[4]) // 2]
    lines[-2] = lines[-2].replace("true", "maybe")
    return "\n".join(lines)


def clock_change_texts() -> Texts:
    """Every ten minutes around both clock changes of 2025, two UTC days each."""
    draw = random.Random(20251026)
    stations = [Place(number, f"Stacja {number}", 51.1, 17 + number / 100, 5, 5, 10) for number in (1, 2, 3)]
    bike = Place("fb600001", "BIKE 600001", 51.1, 17.0)
    texts = []
    for first in ("2025-03-29", "2025-10-25"):
        for number in range(2 * 24 * 6):
            at = moment(f"{first} 00:00:00") + timedelta(minutes=10 * number)
            stations = [walk(draw, station) for station in stations]
            texts.append((at, text_of(at, [*stations, bike])))
    return texts


# ---------------------------------------------------------------------------------- lakes and comparison


def write_archive(folder: Path, texts: Texts) -> Path:
    folder.mkdir(exist_ok=True)
    for observed_at, text in texts:
        kind = "content" if text.endswith("\n\n") else "wrm_stations"
        (folder / f"{kind}_{observed_at:%Y-%m-%d_%H-%M-%S}.txt").write_text(text)
    return folder


def build(place: Workplace, folder: Path) -> dict[str, list[Row]]:
    """The marts' rows after the archive's new files were taken in."""
    wrm.import_archive(place.settings, str(folder))
    transform(place.settings)
    return read_marts(place)


def read_marts(place: Workplace) -> dict[str, list[Row]]:
    marts = {}
    with closing(open_lake(place.settings)) as connection:
        for mart in MARTS:
            cursor = connection.execute(f"select * from {mart}")
            columns = [column[0] for column in cursor.description]
            marts[mart] = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
    return marts


def expected_marts(snapshots: list[Snapshot]) -> dict[str, list[Row]]:
    return {mart: work_out(snapshots) for mart, (work_out, _, _) in MARTS.items()}


def differences(marts: dict[str, list[Row]], expected: dict[str, list[Row]]) -> list[str]:
    """What is not as expected, one line each; floats may differ in the tenth digit."""
    lines = []
    for mart, (_, grain, _) in MARTS.items():
        found, wanted = keyed(marts[mart], grain), keyed(expected[mart], grain)
        lines += [f"{mart} {key}: unexpected {found[key]}" for key in found.keys() - wanted.keys()]
        lines += [f"{mart} {key}: missing {wanted[key]}" for key in wanted.keys() - found.keys()]
        for key in found.keys() & wanted.keys():
            got, want = found[key], wanted[key]
            for column in got.keys() | want.keys():
                if column not in got or column not in want or not equal(got[column], want[column]):
                    pair = f"{got.get(column, 'no column')!r} instead of {want.get(column, 'no column')!r}"
                    lines.append(f"{mart} {key} {column}: {pair}")
    return sorted(lines)


def equal(got: Any, want: Any) -> bool:
    if isinstance(want, dict) and isinstance(got, dict):
        return got.keys() == want.keys() and all(equal(got[key], want[key]) for key in want)
    if isinstance(want, list) and isinstance(got, list):
        return len(got) == len(want) and all(map(equal, got, want))
    if isinstance(want, float) and isinstance(got, int | float):
        return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9)
    return bool(got == want)


def keyed(rows: list[Row], grain: tuple[str, ...]) -> dict[str, Row]:
    plain = [
        {
            column: json.loads(value) if column in AS_JSON and isinstance(value, str) else value
            for column, value in row.items()
            if column not in BY_THE_CLOCK
        }
        for row in rows
    ]
    found = {" ".join(str(row[column]) for column in grain): row for row in plain}
    assert len(found) == len(rows), f"{grain} is not unique"
    return found


# ------------------------------------------------------------------------------------------------- tests


def test_the_reference_knows_every_mart():
    assert sorted(MARTS) == sorted(
        path.stem for path in (PROJECT_ROOT / "transform/models/marts/wrm").glob("*.sql")
    )


def test_a_month_reaches_postgres_whole_and_a_second_time_does_nothing(workplace, tmp_path):
    city = City(stations=4, free_bikes=2)
    moments = [moment("2025-05-01 00:00:00") + timedelta(hours=number) for number in range(30 * 24)]
    texts = [(at, city.snapshot(at)) for at in moments]
    wrm.import_archive(workplace.settings, str(write_archive(tmp_path / "archive", texts)))
    every_stage(workplace)
    marts = read_marts(workplace)
    assert differences(marts, expected_marts(reference.read_texts(texts))) == []
    for mart, (_, grain, table) in MARTS.items():
        columns = ", ".join("date" if column == "dt" else column for column in grain)
        columns = {"stations_data_summary": "date", "processing_summary": "date"}.get(table, columns)
        counts = workplace.warehouse_rows(f"select count(*), count(distinct ({columns})) from {table}")
        assert (mart, counts) == (mart, [(len(marts[mart]), len(marts[mart]))])
        assert marts[mart]
        assert public_rows(workplace, table, mart) == lake_rows(workplace, table, mart)
    for table, lake_table in (
        ("bike_stations", "int_wrm__station_readings_deduplicated"),
        ("free_bikes", "int_wrm__free_bike_readings_deduplicated"),
    ):
        count = "select count(*) from {}"
        assert workplace.warehouse_rows(count.format(table)) == workplace.lake_rows(count.format(lake_table))
    assert workplace.warehouse_rows("select count(*) from top_stations_daily") == [(31 * 4,)]

    before = everything_written(workplace)
    every_stage(workplace)
    assert everything_written(workplace) == before


def shared_columns(place: Workplace, table: str, mart: str) -> str:
    """The columns that a public table has from its mart, in order, JSON left out."""
    known = {
        row[0]
        for row in place.lake_rows(f"select column_name from (describe {mart}) where column_name <> 'dt'")
    }
    columns = place.warehouse_rows(
        "select column_name::text from information_schema.columns where table_schema = 'public' "
        f"and table_name = '{table}' and data_type <> 'jsonb' order by ordinal_position"
    )
    return ", ".join(name for (name,) in columns if name in known)


def public_rows(place: Workplace, table: str, mart: str) -> list[tuple[Any, ...]]:
    columns = ", ".join(filter(None, ["date", shared_columns(place, table, mart)]))
    return sorted(place.warehouse_rows(f"select {columns} from {table}"), key=str)


def lake_rows(place: Workplace, table: str, mart: str) -> list[tuple[Any, ...]]:
    columns = ", ".join(filter(None, ["dt", shared_columns(place, table, mart)]))
    return sorted(place.lake_rows(f"select {columns} from {mart}"), key=str)


def every_stage(place: Workplace) -> None:
    export_readings(place.settings)
    transform(place.settings)
    export_marts(place.settings)


def everything_written(place: Workplace) -> dict[str, Any]:
    """Every object of the lake and when it was written; every public table and by which transactions."""
    written: dict[str, Any] = {
        str(path.relative_to(place.lake_folder)): path.stat().st_mtime_ns
        for path in place.lake_folder.rglob("*")
        if path.is_file()
    }
    tables = place.warehouse_rows("select tablename::text from pg_tables where schemaname = 'public'")
    assert {table for (table,) in tables} >= {table for _, _, table in MARTS.values()}
    for (table,) in tables:
        written[table] = place.warehouse_rows(
            f"select xmin::text, count(*) from {table} group by xmin::text order by 1"
        )
        # defects are a feed of their own, and nothing here is a run: see test_failures, test_run_history
        others = ("bike_failures", "pipeline_runs", "pipeline_steps")
        assert written[table] or table in others, f"{table} is empty"
    return written


def test_irregular_days_are_as_the_reference_says(workplace, tmp_path):
    texts = irregular_texts()
    expected = expected_marts(reference.read_texts(texts))
    assert_everything_happens(expected)
    assert differences(build(workplace, write_archive(tmp_path / "archive", texts)), expected) == []


def assert_everything_happens(expected):
    """The made-up days hold what they are made up for."""
    periods = expected["dim_bike_stations"]
    assert {period["change_kinds"] for period in periods} == {
        *("appeared", "renamed", "moved", "docks_changed", "reappeared", "reappeared,renamed")
    }
    assert [period["has_vanished"] for period in periods].count(True) == 4
    hours = expected["fct_hourly_station_availability"]
    assert min(hour["observed_minutes"] for hour in hours) < 5
    assert max(hour["observed_minutes"] for hour in hours) > 55
    assert any(hour["readings_count"] == 0 for hour in hours)
    assert any(hour["turnover"] is None for hour in hours)
    assert any(hour["empty_minutes"] for hour in hours)
    assert any(hour["full_minutes"] for hour in hours)
    spells = expected["fct_free_bike_idle_spells"]
    assert any(spell["idle_minutes"] > 3 * 24 * 60 for spell in spells)
    assert {spell["has_ended"] for spell in spells} == {True, False}
    trips = expected["fct_free_bike_trips"]
    assert {trip["is_outside_service_area"] for trip in trips} == {True, False}
    assert max(trip["duration_minutes"] for trip in trips) > 12 * 60
    quality = expected["fct_daily_data_quality"]
    assert any(day["frozen_station_ids"] for day in quality)
    assert any(day["stale_feed_minutes"] for day in quality)
    processing = expected["fct_daily_processing"]
    assert all(day["duplicates_count"] and day["mended_names_count"] for day in processing)
    assert {reason for day in processing for reason in day["quarantined_by_reason"]} == {
        *("wrong_field_count", "unknown_boolean")
    }


def test_an_old_day_dropped_in_late_gives_the_same_rows_everywhere(workplace, tmp_path):
    """As `test_irregular_days_are_as_the_reference_says` finds them where all came at once."""
    texts = irregular_texts()
    expected = expected_marts(reference.read_texts(texts))
    late = [(at, text) for at, text in texts if at.date() == moment("2025-05-12 00:00:00").date()]
    in_time = [each for each in texts if each not in late]
    before = build(workplace, write_archive(tmp_path / "archive", in_time))
    assert differences(before, expected_marts(reference.read_texts(in_time))) == []
    assert differences(build(workplace, write_archive(tmp_path / "archive", late)), expected) == []


def test_clock_changes_make_days_of_25_and_23_hours(workplace, tmp_path):
    texts = clock_change_texts()
    marts = build(workplace, write_archive(tmp_path / "archive", texts))
    assert differences(marts, expected_marts(reference.read_texts(texts))) == []
    for day, hours, repeated in (("2025-10-26", 25, ["02:00"]), ("2025-03-30", 23, [])):
        for station in (1, 2, 3):
            of_day = [
                row
                for row in marts["fct_hourly_station_availability"]
                if str(row["dt"]) == day and row["station_id"] == station
            ]
            labels = [f"{row['hour_started_at_warsaw']:%H:%M}" for row in of_day]
            assert len({row["hour_started_at"] for row in of_day}) == hours
            assert sorted(label for label in set(labels) if labels.count(label) > 1) == repeated
            assert ("02:00" in labels) == bool(repeated)
            [whole] = [
                row
                for row in marts["fct_daily_station_availability"]
                if str(row["dt"]) == day and row["station_id"] == station
            ]
            assert whole["observed_minutes"] == pytest.approx(hours * 60)
    assert max(row["observed_minutes"] for row in marts["fct_daily_station_availability"]) <= 25 * 60 + 1e-9


@pytest.mark.skipif(not REAL_SNAPSHOTS.exists(), reason="real snapshots are not here: set WRM_REAL_SNAPSHOTS")
def test_the_real_snapshots_are_as_the_reference_says(workplace):
    texts = [
        (named[0], path.read_text())
        for path in REAL_SNAPSHOTS.rglob("*")
        if (named := observed_at_of(path.name))
    ]
    marts = build(workplace, REAL_SNAPSHOTS)
    assert differences(marts, expected_marts(reference.read_texts(texts))) == []
