"""Landing and exports: PostgreSQL gets deltas, the newest fetch wins, and both sides hold the same rows."""

import shutil
import uuid
from contextlib import closing
from datetime import date

import duckdb
import psycopg2
import pytest
from conftest import FEW_STATIONS, moment, raw_name, small_snapshot
from dbt.adapters.duckdb.connections import DuckDBConnectionManager

from ingestion import wrm
from scripts.run_dbt import DbtError, run_dbt
from scripts.run_pipeline import export_marts, export_readings, reconcile, transform
from transform.plugins.lake import listing_only

CONTRACT = [
    ("id", "uuid"),
    ("station_id", "integer"),
    ("timestamp", "timestamp without time zone"),
    ("name", "text"),
    ("bikes", "integer"),
    ("spaces", "integer"),
    ("date", "date"),
    ("processed_at", "timestamp without time zone"),
    ("timezone_1", "integer"),
    ("timezone_2", "integer"),
]


def load(workplace, folder):
    wrm.import_archive(workplace.settings, str(folder))
    export_readings(workplace.settings)
    transform(workplace.settings)
    export_marts(workplace.settings)


def assert_both_sides_hold_the_same_readings(workplace):
    """The reconciliation: every reading of the lake is in PostgreSQL with the same values, and no other."""
    in_lake = workplace.lake_rows(
        "select station_id, observed_at, name, bikes_count, spaces_count, dt, "
        "fetched_at, local_offset_seconds, server_offset_seconds "
        "from int_wrm__station_readings_deduplicated order by 1, 2"
    )
    in_postgres = workplace.warehouse_rows(
        "select station_id, timestamp, name, bikes, spaces, date, processed_at, timezone_1, timezone_2 "
        "from bike_stations order by 1, 2"
    )
    assert in_postgres == in_lake
    assert in_lake


def test_bike_stations_keeps_its_contract(workplace, archive):
    load(
        workplace, archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    )
    assert (
        workplace.warehouse_rows(
            "select column_name::text, data_type::text from information_schema.columns "
            "where table_schema = 'public' and table_name = 'bike_stations' order by ordinal_position"
        )[: len(CONTRACT)]
        == CONTRACT
    )
    indexed = {
        row[0].split(" USING ")[1]
        for row in workplace.warehouse_rows(
            "select indexdef from pg_indexes where tablename = 'bike_stations'"
        )
    }
    assert {
        "btree (id)",
        'btree (station_id, "timestamp")',
        "btree (station_id)",
        'btree ("timestamp")',
    } <= indexed
    assert_both_sides_hold_the_same_readings(workplace)


def test_ids_are_deterministic_version_8_uuids_that_sort_by_time(workplace, archive):
    texts = {
        raw_name(f"2025-05-12 12:0{minute}:00"): small_snapshot(moment(f"2025-05-12 12:0{minute}:00"))
        for minute in range(3)
    }
    load(workplace, archive(**texts))
    rows = workplace.warehouse_rows("select id::text, timestamp from bike_stations order by id")
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    parsed = [uuid.UUID(row[0]) for row in rows]
    assert {(each.version, each.variant) for each in parsed} == {(8, uuid.RFC_4122)}
    assert len(set(parsed)) == 3 * FEW_STATIONS
    # computed once by hand for station 15001: 2025-05-12 12:00:00.947606 is millisecond 1747051200947
    first = parsed[0]
    assert first.int >> 80 == 1747051200947
    assert (first.int >> 64 & 0xFFF) >> 2 == 606


def test_exporting_again_lands_nothing_and_new_snapshots_land_alone(workplace, archive):
    folder = archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    load(workplace, folder)
    export_readings(workplace.settings)
    landed = "select count(*) from landing.landing_wrm__bike_stations"
    assert workplace.warehouse_rows(landed) == [(0,)]
    archive(**{raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00"))})
    wrm.import_archive(workplace.settings, str(folder))
    export_readings(workplace.settings)
    assert workplace.warehouse_rows(landed) == [(FEW_STATIONS,)]
    transform(workplace.settings)
    assert_both_sides_hold_the_same_readings(workplace)


def test_the_newest_fetch_wins_and_an_older_one_never_overwrites(workplace, archive):
    text = small_snapshot(moment("2025-05-12 12:00:00"))
    folder = archive(**{raw_name("2025-05-12 12:00:00"): text})
    load(workplace, folder)
    corrected = text.replace(",true,false,false,", ",false,false,false,").replace("Różana", "Nowa")
    archive(**{"content_2025-05-12_12-00-00.txt": corrected})
    load(workplace, folder)
    assert workplace.warehouse_rows("select count(*) from bike_stations where name like '%Nowa%'")[0][0] > 0
    assert workplace.warehouse_rows("select count(*) from bike_stations where name like '%Różana%'") == [(0,)]
    assert_both_sides_hold_the_same_readings(workplace)

    # the older object lands once more, as after a lost ledger
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "delete from landing.exported_objects where object = (select min(object) "
                "from landing.exported_objects where model = 'landing_wrm__bike_stations')"
            )
    export_readings(workplace.settings)
    assert_both_sides_hold_the_same_readings(workplace)


def test_a_day_that_vanished_leaves_postgres_too(workplace, archive):
    folder = archive(
        **{
            raw_name(f"2025-05-{day} 12:00:00"): small_snapshot(moment(f"2025-05-{day} 12:00:00"))
            for day in (11, 12)
        }
    )
    load(workplace, folder)
    shutil.rmtree(workplace.lake_folder / "bronze/wrm/station_snapshots/dt=2025-05-11")
    export_readings(workplace.settings)
    transform(workplace.settings)
    export_marts(workplace.settings)
    for table in ("bike_stations", "stations_data_summary", "top_stations_daily", "processing_summary"):
        days = workplace.warehouse_rows(f"select distinct date::text from {table}")
        assert (table, days) == (table, [("2025-05-12",)])
    assert_both_sides_hold_the_same_readings(workplace)


def test_a_lake_that_shows_nothing_is_an_error_and_postgres_keeps_its_rows(workplace, archive):
    load(
        workplace, archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    )
    shutil.rmtree(workplace.lake_folder / "bronze")
    with pytest.raises(DbtError, match="Check LAKE_URL"):
        export_readings(workplace.settings)
    assert workplace.warehouse_rows("select count(*) from bike_stations") == [(FEW_STATIONS,)]


def test_days_of_bronze_that_are_not_listed_do_not_land(workplace, archive):
    def snapshots(*moments):
        folder = archive(**{raw_name(each): small_snapshot(moment(each)) for each in moments})
        wrm.import_archive(workplace.settings, str(folder))

    def readings():
        return workplace.warehouse_rows(
            "select date::text, count(*) from bike_stations group by 1 order by 1"
        )

    snapshots("2025-05-11 12:00:00", "2025-05-12 12:00:00")
    export_readings(workplace.settings)
    bronze_folder = workplace.lake_folder / "bronze/wrm/station_snapshots"
    snapshots("2025-05-12 13:00:00", "2025-05-13 12:00:00")
    shutil.rmtree(bronze_folder / "dt=2025-05-11")
    with listing_only([date(2025, 5, 13)]):
        export_readings(workplace.settings)
        assert readings() == [(f"2025-05-{day}", FEW_STATIONS) for day in (11, 12, 13)]
    export_readings(workplace.settings)
    held = [("2025-05-12", 2 * FEW_STATIONS), ("2025-05-13", FEW_STATIONS)]
    assert readings() == held

    (hidden := workplace.lake_folder / "hidden").mkdir()
    bronze_folder.rename(hidden / "station_snapshots")
    with listing_only([date(2025, 5, 13)]), pytest.raises(DbtError, match="The lake shows nothing"):
        export_readings(workplace.settings)
    assert readings() == held


def test_summaries_say_what_the_lake_says(workplace, archive):
    texts = {
        raw_name(f"2025-05-12 12:0{minute}:00"): small_snapshot(moment(f"2025-05-12 12:0{minute}:00"))
        for minute in range(3)
    }
    load(workplace, archive(**texts, **{"content_2025-05-12_12-05-00.txt": "#id,name\nbroken\n"}))
    lines = 3 * (FEW_STATIONS + 3) + 1
    assert workplace.warehouse_rows(
        "select date::text, snapshots, lines, station_readings, free_bike_readings, duplicates, quarantined, "
        "quarantined_by_reason from processing_summary"
    ) == [
        ("2025-05-12", 4, lines, 3 * FEW_STATIONS, 9, 0, 1, '{"missing_required_column":1}'),
    ]
    assert workplace.warehouse_rows(
        "select total_records, unique_stations, round(avg_bikes::numeric, 9) from stations_data_summary"
    ) == workplace.warehouse_rows(
        "select count(*), count(distinct station_id), round(avg(bikes), 9) from bike_stations group by date"
    )
    assert workplace.warehouse_rows("select activity_rank from top_stations_daily order by 1") == [
        (rank,) for rank in range(1, FEW_STATIONS + 1)
    ]


def test_a_schema_of_ones_own_holds_everything_and_others_stay(workplace, archive):
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("create table public.bike_stations (mine text)")
    workplace.configure(POSTGRES_SCHEMA="city")
    load(
        workplace, archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    )
    assert workplace.warehouse_rows("select count(*) from city.bike_stations") == [(FEW_STATIONS,)]
    schemas = workplace.warehouse_rows(
        "select distinct table_schema::text from information_schema.tables "
        "where table_schema !~ '^(pg_|information)' order by 1"
    )
    assert schemas == [("city",), ("city_landing",), ("public",)]
    assert workplace.warehouse_rows("select * from public.bike_stations") == []


def test_full_refresh_never_drops_a_public_table(workplace, archive):
    load(
        workplace, archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    )
    run_dbt(workplace.settings, "exports", "--quiet", "build", "--full-refresh")
    assert workplace.warehouse_rows("select count(*) from bike_stations") == [(FEW_STATIONS,)]


def test_exports_say_what_to_do_before_anything_has_landed(workplace):
    with pytest.raises(DbtError, match=r"Nothing has landed yet: .* Run: scripts/just export"):
        run_dbt(workplace.settings, "exports", "--quiet", "build")


def test_landing_says_what_to_do_before_anything_is_built(workplace):
    with pytest.raises(DbtError, match=r"Not built yet: .* Run: scripts/just transform"):
        export_marts(workplace.settings)


def test_a_summary_that_counts_readings_that_are_gone_fails_its_test(workplace, archive):
    load(
        workplace, archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    )
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute("delete from bike_stations where station_id = 15001")
    with pytest.raises(DbtError, match="no_summary_counts_more_readings_than_stand"):
        run_dbt(workplace.settings, "exports", "--quiet", "test")


def test_a_feed_that_stands_still_over_midnight_is_exported_once(workplace, archive):
    text = small_snapshot(moment("2025-05-11 23:59:00"))
    folder = archive(**{raw_name("2025-05-11 23:59:00"): text, raw_name("2025-05-12 00:00:00"): text})
    load(workplace, folder)
    assert workplace.warehouse_rows("select count(*), max(date)::text from bike_stations") == [
        (FEW_STATIONS, "2025-05-12")
    ]


def test_a_correction_that_is_withdrawn_leaves_postgres_too(workplace, archive):
    text = small_snapshot(moment("2025-05-12 12:00:00"))
    folder = archive(**{raw_name("2025-05-12 12:00:00"): text})
    load(workplace, folder)
    before = set(workplace.lake_folder.glob("bronze/wrm/station_snapshots/*/*"))
    archive(**{"content_2025-05-12_12-00-00.txt": text.replace("Różana", "Wrong")})
    load(workplace, folder)
    assert workplace.warehouse_rows("select count(*) from bike_stations where name like '%Wrong%'") != [(0,)]
    [wrong] = set(workplace.lake_folder.glob("bronze/wrm/station_snapshots/*/*")) - before
    wrong.unlink()
    export_readings(workplace.settings)
    transform(workplace.settings)
    assert workplace.warehouse_rows("select count(*) from bike_stations where name like '%Wrong%'") == [(0,)]
    assert_both_sides_hold_the_same_readings(workplace)


def test_days_that_wait_to_be_rebuilt_stay_in_postgres(workplace, archive):
    texts = {
        raw_name(f"2025-05-{day} 12:00:00"): small_snapshot(moment(f"2025-05-{day} 12:00:00"))
        for day in (11, 12)
    }
    load(workplace, archive(**texts))
    state = workplace.lake_folder / "gold/fct_daily_station_readings/_state.parquet"
    with closing(duckdb.connect()) as connection:  # as a kill in the middle of a build leaves it
        connection.execute(
            f"copy (select * replace (case when dt <> '2025-05-12' then fingerprint end as fingerprint) "
            f"from '{state}') to '{state}' (format parquet)"
        )
    DuckDBConnectionManager.close_all_connections()
    export_marts(workplace.settings)
    days = "select date::text from stations_data_summary order by 1"
    assert workplace.warehouse_rows(days) == [("2025-05-11",), ("2025-05-12",)]
    transform(workplace.settings)
    export_marts(workplace.settings)
    assert workplace.warehouse_rows(days) == [("2025-05-11",), ("2025-05-12",)]


def test_full_refresh_of_the_landing_lands_every_day(workplace, archive):
    load(
        workplace, archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    )
    arguments = ("--quiet", "build", "--full-refresh", "--select", "landing_wrm__bike_stations")
    nodes = run_dbt(workplace.settings, "transform", *arguments)
    assert nodes["landing_wrm__bike_stations"] == "landed days: 1"


def test_landing_goes_by_the_names_of_columns_not_by_their_order(workplace, archive):
    folder = archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    load(workplace, folder)
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:  # as an earlier version of the model would have left it
            cursor.execute(
                "create table landing.reordered as select avg_spaces, avg_bikes, processed_at, "
                "latest_reading, earliest_reading, unique_stations, total_records, date "
                "from landing.landing_wrm__stations_data_summary limit 0; "
                "drop table landing.landing_wrm__stations_data_summary; "
                "alter table landing.reordered rename to landing_wrm__stations_data_summary"
            )
    DuckDBConnectionManager.close_all_connections()  # as in another process
    archive(**{raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00"))})
    load(workplace, folder)
    expected = "date, count(*), count(distinct station_id), avg(bikes)::float8, avg(spaces)::float8"
    assert workplace.warehouse_rows(
        "select date, total_records, unique_stations, avg_bikes, avg_spaces from stations_data_summary"
    ) == workplace.warehouse_rows(f"select {expected} from bike_stations group by date")


def test_a_reconciliation_names_the_day_until_both_sides_agree_again(workplace, archive, caplog):
    texts = {
        raw_name(f"2025-05-{day} 12:00:00"): small_snapshot(moment(f"2025-05-{day} 12:00:00"))
        for day in (11, 12)
    }
    load(workplace, archive(**texts))
    reconcile(workplace.settings)
    damages = {
        "bike_stations": "update bike_stations set is_over_capacity = true where date = '2025-05-12'",
        "free_bikes": "delete from free_bikes where date = '2025-05-11'",
        "daily_network": "update daily_network set empty_pct = -1 where date = '2025-05-12'",
    }
    for damage in damages.values():
        execute(workplace, damage)
    reconcile(workplace.settings)  # looks at what was exported since: nothing
    execute(workplace, "update landing.exported_objects set exported_at = now()")
    for _ in range(2):
        with pytest.raises(DbtError, match="postgres_holds_the_readings_of_the_lake"):
            reconcile(workplace.settings)
    told = " ".join(caplog.messages)
    for table, day in (("bike_stations", 12), ("free_bikes", 11), ("daily_network", 12)):
        assert f"table_name {table}, date 2025-05-{day}," in told
    execute(workplace, "update landing.exported_objects set fingerprint = ''")
    export_readings(workplace.settings)
    export_marts(workplace.settings)
    reconcile(workplace.settings)


def execute(workplace, sql):
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql)
