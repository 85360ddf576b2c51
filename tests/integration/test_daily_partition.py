"""The materialization `daily_partition`: which days it builds, and that a day appears whole or not at all."""

import shutil
from contextlib import closing
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from conftest import FEW_BIKES, FEW_STATIONS, moment, raw_name, small_snapshot
from dbt.adapters.duckdb.connections import DuckDBConnectionManager

from ingestion import bronze, wrm
from ingestion.schemas import FETCH_ATTEMPTS
from scripts.compact_bronze import compact
from scripts.run_dbt import DbtError, run_dbt
from scripts.watch_lake import Watch
from transform.plugins import lake as lake_plugin

DAYS = ("2025-05-11", "2025-05-12", "2025-05-13")
DAILY = (
    "int_wrm__lines_parsed",
    "int_wrm__lines_quarantined",
    "int_wrm__station_readings_deduplicated",
    "int_wrm__free_bike_readings_deduplicated",
    "int_wrm__snapshots_received",
    "int_wrm__station_attributes_observed",
    "fct_daily_processing",
    "fct_daily_station_readings",
)
LOCAL = "fct_hourly_station_availability"  # reads the day before, too
CARRYING = "int_wrm__station_periods_accumulated"  # reads its own day before
NEWEST = "dim_bike_stations"  # keeps the newest day
CLOSING = "fct_hourly_coverage"  # reads the day before and closes its days
MODELS = (*DAILY, LOCAL, CARRYING, NEWEST, CLOSING)


def days_built(daily, local, carrying, newest, closing):
    """How many days each model built."""
    others = {LOCAL: local, CARRYING: carrying, NEWEST: newest, CLOSING: closing}
    return dict.fromkeys(DAILY, daily) | others


NOTHING = days_built(0, 0, 0, 0, 0)
EVERYTHING = days_built(3, 4, 3, 1, 3)  # a UTC day is part of two local days


@pytest.fixture
def three_days(workplace, archive):
    """A lake with three days of one snapshot each, built."""
    names = {raw_name(f"{day} 12:00:00"): small_snapshot(moment(f"{day} 12:00:00")) for day in DAYS}
    workplace.archive = archive(**names)
    wrm.import_archive(workplace.settings, str(workplace.archive))
    build(workplace)
    return workplace


def build(workplace, *arguments, models=None):
    """Build some models of the lake; gives how many days each model built."""
    nodes = run_dbt(
        workplace.settings,
        "transform",
        "--quiet",
        "build",
        "--exclude-resource-type",
        "unit_test",
        "--select",
        *(models or MODELS),
        *arguments,
    )
    return {name: int(message.split()[-1]) for name, message in nodes.items() if name in MODELS}


def partitions(workplace, model="*"):
    """Every partition and when it was written."""
    return {
        str(path.relative_to(workplace.lake_folder)): path.stat().st_mtime_ns
        for path in sorted(workplace.lake_folder.glob(f"[sg]*/{model}/dt=*/*"))
    }


def test_every_model_has_one_object_per_day(three_days):
    days = dict.fromkeys(DAILY, DAYS) | {
        LOCAL: (*DAYS, "2025-05-14"),
        CARRYING: DAYS,
        NEWEST: DAYS[-1:],
        CLOSING: DAYS,
    }
    expected = {
        f"{'silver' if model.startswith('int') else 'gold'}/{model}/dt={day}/data.parquet"
        for model in MODELS
        for day in days[model]
    }
    assert set(partitions(three_days)) == expected


def test_a_second_build_touches_nothing(three_days):
    before = partitions(three_days)
    assert build(three_days) == NOTHING
    assert partitions(three_days) == before


def test_a_late_snapshot_rebuilds_its_day_alone(three_days, archive):
    before = partitions(three_days)
    archive(**{raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00"))})
    wrm.import_archive(three_days.settings, str(three_days.archive))
    assert build(three_days) == days_built(1, 2, 2, 1, 2)
    changed = {path for path, when in partitions(three_days).items() if before[path] != when}
    assert {path for path in changed if path.split("/")[1] in DAILY} == {
        path for path in before if path.split("/")[1] in DAILY and "dt=2025-05-12" in path
    }
    assert {path.split("/")[2] for path in changed} == {"dt=2025-05-12", "dt=2025-05-13"}


def test_a_day_that_vanished_from_bronze_loses_its_partitions(three_days):
    shutil.rmtree(three_days.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-11")
    build(three_days)
    left = {path.split("/")[2] for path in partitions(three_days)}
    assert left == {"dt=2025-05-12", "dt=2025-05-13", "dt=2025-05-14"}
    rows = three_days.lake_rows("select dt::varchar from fct_daily_station_readings order by 1")
    assert rows == [("2025-05-12",), ("2025-05-13",)]


def test_a_lake_whose_bronze_is_gone_is_an_error_and_loses_nothing(three_days):
    before = partitions(three_days)
    shutil.rmtree(three_days.lake_folder / "bronze")
    with pytest.raises(DbtError, match=r"shows no input at all for int_wrm__lines_parsed.*Check LAKE_URL"):
        build(three_days)
    assert partitions(three_days) == before


def test_a_folder_of_bronze_that_is_no_day_is_passed_over(three_days):
    day = three_days.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-11"
    shutil.copytree(day, day.with_name("dt=2025-05-11.bak"))
    assert build(three_days) == NOTHING


def add_snapshots(place, archive, *moments):
    archive(**{raw_name(each): small_snapshot(moment(each)) for each in moments})
    wrm.import_archive(place.settings, str(place.archive))


def test_days_of_bronze_that_are_not_listed_stay_as_they_are(three_days, archive):
    add_snapshots(three_days, archive, "2025-05-12 13:00:00", "2025-05-14 12:00:00")
    shutil.rmtree(three_days.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-11")
    before = partitions(three_days)
    with lake_plugin.listing_only([date(2025, 5, 14)]):
        # two local days, as ever; the day before is not closed
        assert build(three_days) == days_built(1, 2, 1, 1, 1)
        after = partitions(three_days)
        assert build(three_days) == NOTHING
    assert {path.split("/")[2] for path, when in after.items() if before.get(path) != when} == {
        "dt=2025-05-14",
        "dt=2025-05-15",
    }
    assert set(before) - set(after) == {f"gold/{NEWEST}/dt=2025-05-13/data.parquet"}
    assert build(three_days) == days_built(1, 2, 3, 1, 2)
    assert "dt=2025-05-11" not in {path.split("/")[2] for path in partitions(three_days)}


def test_a_listed_day_gets_the_fingerprint_that_it_has_among_all(three_days, archive):
    """Also where the newest day is another, known by its failed attempts alone."""
    failed = {
        "resource": "station_snapshots",
        "attempted_at": moment("2025-05-14 12:00:00"),
        "error": "refused",
    }
    pipeline = bronze.open_pipeline("wrm", three_days.settings)
    table = pa.Table.from_pylist([failed], schema=FETCH_ATTEMPTS)
    bronze.load_day(pipeline, date(2025, 5, 14), {"fetch_attempts": [table]})
    build(three_days)
    add_snapshots(three_days, archive, "2025-05-12 13:00:00", "2025-05-13 13:00:00")
    with lake_plugin.listing_only([date(2025, 5, 13), date(2025, 5, 12)]):
        assert build(three_days)[CLOSING] == 2
    assert build(three_days) == NOTHING | {CLOSING: 1}  # of the day after, which reads the one before


def test_a_listed_day_that_vanished_loses_its_partitions_unless_all_is_gone(three_days):
    days = [date(2025, 5, 11)]
    shutil.rmtree(three_days.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-11")
    with lake_plugin.listing_only(days):
        build(three_days)
    left = partitions(three_days)
    assert {path.split("/")[2] for path in left} == {"dt=2025-05-12", "dt=2025-05-13", "dt=2025-05-14"}
    shutil.rmtree(three_days.lake_folder / "bronze")
    with (
        lake_plugin.listing_only([date(2025, 5, 12)]),
        pytest.raises(DbtError, match=r"shows no input at all for int_wrm__lines_parsed"),
    ):
        build(three_days)
    assert partitions(three_days) == left


def test_a_list_without_days_is_refused():
    with pytest.raises(ValueError, match="No day to list"), lake_plugin.listing_only([]):
        pass


def test_full_refresh_rebuilds_every_day_to_the_same_rows(three_days):
    query = "from int_wrm__station_readings_deduplicated order by all"
    before = three_days.lake_rows(query)
    assert build(three_days, "--full-refresh") == EVERYTHING
    assert three_days.lake_rows(query) == before


def test_days_are_restricted_by_vars(three_days):
    variables = "{from_day: 2025-05-12, to_day: 2025-05-12}"
    # what carries over goes on to the end, and the newest is the newest
    assert build(three_days, "--full-refresh", "--vars", variables) == days_built(1, 2, 2, 1, 2)


def test_a_day_without_good_lines_is_an_empty_object_with_the_same_columns(workplace, archive):
    folder = archive(
        **{
            raw_name("2025-05-12 12:00:00"): "#id,name\nno,station\n",
            raw_name("2025-05-13 12:00:00"): small_snapshot(moment("2025-05-13 12:00:00")),
        }
    )
    wrm.import_archive(workplace.settings, str(folder))
    build(workplace)
    with closing(duckdb.connect()) as connection:
        described = [
            connection.execute(f"describe select * from '{workplace.lake_folder}/{path}'").fetchall()
            for path in partitions(workplace, "int_wrm__station_readings_deduplicated")
        ]
        model = "int_wrm__station_readings_deduplicated"
        empty = f"{workplace.lake_folder}/silver/{model}/dt=2025-05-12/data.parquet"
        assert connection.execute(f"select count(*) from '{empty}'").fetchone() == (0,)
    assert described[0] == described[1]


def test_a_day_of_an_upstream_without_rows_is_no_day_to_what_reads_it(workplace, archive):
    folder = archive(**{raw_name(f"{day} 12:00:00"): "#id,name\n" for day in DAYS})
    wrm.import_archive(workplace.settings, str(folder))
    assert build(workplace)["int_wrm__lines_parsed"] == 3
    assert partitions(workplace, "int_wrm__station_readings_deduplicated") == {}
    assert (
        workplace.lake_rows("select snapshots_count, lines_count from fct_daily_processing") == [(1, 0)] * 3
    )
    assert build(workplace) == NOTHING


def test_an_empty_lake_builds_to_empty_views(workplace):
    assert build(workplace) == NOTHING
    assert partitions(workplace) == {}
    assert workplace.lake_rows("from fct_daily_processing") == []


def test_a_lost_state_object_is_read_again_from_the_partitions(three_days):
    before = partitions(three_days)
    for state in three_days.lake_folder.glob("[sg]*/*/_state.parquet"):
        state.unlink()
    assert build(three_days) == NOTHING
    assert partitions(three_days) == before


def test_a_write_that_dies_leaves_the_old_day_and_is_made_good_by_the_next_run(
    three_days, archive, monkeypatch
):
    archive(**{raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00"))})
    wrm.import_archive(three_days.settings, str(three_days.archive))
    query = "select count(*) from int_wrm__lines_parsed where dt = '2025-05-12'"
    [(before,)] = three_days.lake_rows(query)

    def die(source, target):
        if "dt=" in str(target):
            Path(source).write_bytes(Path(source).read_bytes()[:100])
            raise OSError("the disk is gone")
        shutil.move(source, target)

    monkeypatch.setattr(lake_plugin.os, "replace", die)
    with pytest.raises(DbtError, match="the disk is gone"):
        build(three_days)
    monkeypatch.undo()
    three_days.configure(**three_days.environment)
    assert three_days.lake_rows(query) == [(before,)]
    assert build(three_days)["int_wrm__lines_parsed"] == 1
    assert three_days.lake_rows(query) == [(2 * before,)]


def test_a_first_build_that_died_after_its_state_was_written_is_made_good(three_days):
    for state in three_days.lake_folder.glob("[sg]*/*/_state.parquet"):
        with closing(duckdb.connect()) as connection:
            connection.execute(f"copy (from '{state}' limit 0) to '{state}' (format parquet)")
        for day in state.parent.glob("dt=*"):
            shutil.rmtree(day)
    DuckDBConnectionManager.close_all_connections()  # as in another process
    assert build(three_days) == EVERYTHING


def test_a_day_is_built_from_its_own_objects_alone(three_days, archive):
    """Another day's objects are made unreadable, and the build does not notice."""
    archive(**{raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00"))})
    wrm.import_archive(three_days.settings, str(three_days.archive))
    unreadable = list(three_days.lake_folder.glob("**/dt=2025-05-11/*.parquet"))
    assert len(unreadable) == len(MODELS)  # the newest day of NEWEST is another, bronze has one object
    for path in unreadable:
        path.write_bytes(b"unreadable")
    assert build(three_days, models=DAILY) == dict.fromkeys(DAILY, 1)


def test_dbt_test_looks_at_every_day_and_finds_a_broken_one(three_days):
    processing = three_days.lake_folder / "gold/fct_daily_processing/dt=2025-05-11/data.parquet"
    with closing(duckdb.connect()) as connection:
        connection.execute(
            f"copy (select * replace (lines_count + 1 as lines_count) from '{processing}') "
            f"to '{processing}.new' (format parquet)"
        )
    Path(f"{processing}.new").replace(processing)
    build(three_days)  # tests what it builds: nothing
    with pytest.raises(DbtError, match="every_line_received_is_kept_or_a_duplicate_or_quarantined"):
        run_dbt(three_days.settings, "transform", "--quiet", "test", "--exclude-resource-type", "unit_test")


def test_the_project_passes_its_own_unit_tests(three_days):
    nodes = run_dbt(three_days.settings, "transform", "--quiet", "test", "--select", "test_type:unit")
    assert len(nodes) >= 22


def test_shifted_columns_are_read_by_name_and_a_missing_one_quarantines_the_snapshot(live_workplace, feed):
    for kind in ("shifted_columns", "missing_column"):
        feed.misbehave(kind)
        wrm.take_snapshot(live_workplace.settings)
    build(live_workplace)
    unquoted = [station for station in feed.city.stations if "," not in station.name]
    assert live_workplace.lake_rows(
        "select station_id, name, docks_count from int_wrm__station_readings_deduplicated"
    ) == [(station.id, station.name, station.docks) for station in unquoted]
    assert live_workplace.lake_rows(
        "select distinct rejection_reasons, count(*) from int_wrm__lines_quarantined group by all"
    ) == [(["missing_required_column"], len(unquoted) + len(feed.city.free_bike_ids))]


def lines_of(place, text):
    """A day of parsed lines, in order of all columns."""
    return place.lake_rows(f"from int_wrm__lines_parsed where dt = '{text}' order by all")


def grow(place, archive, *moments):
    """One snapshot after the other, and what was built of the newest day after each by one process."""
    grown = []
    for each in moments:
        add_snapshots(place, archive, each)
        with lake_plugin.listing_only([moment(each).date()]):
            assert build(place, models=["int_wrm__lines_parsed"]) == {"int_wrm__lines_parsed": 1}
        grown.append(lines_of(place, each[:10]))
    return grown


def built_anew(place, text):
    """The same day as another process builds it."""
    DuckDBConnectionManager.close_all_connections()
    build(place, "--full-refresh", models=["int_wrm__lines_parsed"])
    return lines_of(place, text)


def test_a_day_that_grows_has_the_rows_that_it_has_when_built_at_once(three_days, archive):
    moments = [f"2025-05-13 {hour}:00:00" for hour in (13, 14, 15)]
    grown = grow(three_days, archive, *moments)
    assert [len(rows) // (FEW_STATIONS + FEW_BIKES) for rows in grown] == [2, 3, 4]
    assert built_anew(three_days, "2025-05-13") == grown[-1]


def test_a_day_that_grows_reads_only_objects_that_it_has_not_met(three_days, archive):
    grow(three_days, archive, "2025-05-13 13:00:00")
    met = list(three_days.lake_folder.glob("bronze/wrm/station_snapshots/dt=2025-05-13/*.parquet"))
    add_snapshots(three_days, archive, "2025-05-13 14:00:00")
    for path in met:
        path.write_bytes(b"unreadable")
    with lake_plugin.listing_only([date(2025, 5, 13)]):
        build(three_days, models=["int_wrm__lines_parsed"])
    assert len(lines_of(three_days, "2025-05-13")) == 3 * (FEW_STATIONS + FEW_BIKES)


def test_a_day_that_grows_starts_anew_when_its_objects_were_folded(three_days, archive):
    grow(three_days, archive, "2025-05-13 13:00:00", "2025-05-13 14:00:00")
    assert compact(three_days.settings)
    [rows] = grow(three_days, archive, "2025-05-13 15:00:00")
    assert len(rows) == 4 * (FEW_STATIONS + FEW_BIKES)
    assert built_anew(three_days, "2025-05-13") == rows


def test_watch_opens_duckdb_anew_when_objects_were_folded(three_days, archive):
    grow(three_days, archive, "2025-05-13 13:00:00", "2025-05-13 14:00:00")
    before = DuckDBConnectionManager.env()
    watch = Watch(three_days.settings, unchecked={"compact"})
    watch.compact()
    [rows] = grow(three_days, archive, "2025-05-13 15:00:00")
    assert len(rows) == 4 * (FEW_STATIONS + FEW_BIKES)
    after = DuckDBConnectionManager.env()
    assert after is not before
    watch.compact()  # recent days have nothing to fold
    grow(three_days, archive, "2025-05-13 16:00:00")
    assert DuckDBConnectionManager.env() is after


def test_the_next_day_grows_by_itself(three_days, archive):
    grow(three_days, archive, "2025-05-13 13:00:00")
    first, second = grow(three_days, archive, "2025-05-14 00:00:00", "2025-05-14 01:00:00")
    assert [len(first), len(second)] == [FEW_STATIONS + FEW_BIKES, 2 * (FEW_STATIONS + FEW_BIKES)]
    # an earlier day is built as a whole, beside what is kept of the newest
    [rows] = grow(three_days, archive, "2025-05-13 14:00:00")
    assert len(rows) == 3 * (FEW_STATIONS + FEW_BIKES)
    assert built_anew(three_days, "2025-05-14") == second
