"""PostgreSQL as its readers meet it: comments, a role that may only read, the days held, and indexes."""

import threading
import time
import uuid
from contextlib import closing
from datetime import UTC, date, datetime, timedelta

import psycopg2
import pytest
import yaml
from conftest import FEW_STATIONS, moment, raw_name, small_snapshot
from dbt.adapters.duckdb.connections import DuckDBConnectionManager

from ingestion import wrm
from ingestion.settings import PROJECT_ROOT, SettingsError, load_settings
from scripts.run_dbt import run_dbt
from scripts.run_pipeline import export_marts, export_readings, transform
from transform.plugins.lake import first_exported_day

MODELS = {
    model["name"]: model
    for file in sorted((PROJECT_ROOT / "exports" / "models").glob("*/*.yml"))
    for model in yaml.safe_load(file.read_text()).get("models", [])
}
TODAY = datetime.now(UTC).date()
OLD, RECENT = TODAY - timedelta(days=9), TODAY - timedelta(days=1)


def snapshots(*moments):
    return {raw_name(each): small_snapshot(moment(each)) for each in moments}


def load_readings(workplace, folder):
    """As far as bike_stations, which takes a third of the time."""
    wrm.import_archive(workplace.settings, str(folder))
    export_readings(workplace.settings)


def export(workplace):
    export_readings(workplace.settings)
    transform(workplace.settings)
    export_marts(workplace.settings)


def load(workplace, folder):
    wrm.import_archive(workplace.settings, str(folder))
    export(workplace)


def execute(workplace, *statements, **parameters):
    """Statements on the warehouse, as its owner unless another user is given."""
    given = workplace.settings.postgres_parameters() | parameters
    with closing(psycopg2.connect(**given)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


@pytest.fixture
def role(workplace):
    """The reader's role, of a name of its own: roles are the whole server's."""
    name = f"reader_{uuid.uuid4().hex[:12]}"
    workplace.configure(POSTGRES_READER_ROLE=name)
    return name


@pytest.fixture
def day_archive(archive):
    return archive(**snapshots("2025-05-12 12:00:00"))


def comments(workplace):
    return {
        (table, column): comment
        for table, column, comment in workplace.warehouse_rows(
            "select relname::text, coalesce(attname::text, ''), description "
            "from pg_description join pg_class on pg_class.oid = objoid "
            "left join pg_attribute on attrelid = objoid and attnum = objsubid and attnum > 0 "
            "where classoid = 'pg_class'::regclass and relnamespace = 'public'::regnamespace"
        )
    }


def test_tables_and_columns_carry_their_descriptions_which_are_written_once_and_mended(
    workplace, day_archive
):
    expected = {(name, ""): model["description"].strip() for name, model in MODELS.items()} | {
        (name, column["name"]): column["description"].strip()
        for name, model in MODELS.items()
        for column in model["columns"]
    }
    load(workplace, day_archive)
    assert comments(workplace) == expected

    # nothing is written where all stands
    written = (
        "select max(xmin::text::bigint), count(*) from pg_description where objoid >= 16384",
        "select oid, xmin, relacl::text from pg_class where relnamespace = 'public'::regnamespace order by 1",
        "select oid, xmin from pg_namespace where nspname = 'public'",
    )
    before = [workplace.warehouse_rows(sql) for sql in written]
    run_dbt(workplace.settings, "exports", "--quiet", "build")
    assert [workplace.warehouse_rows(sql) for sql in written] == before

    execute(
        workplace,
        "comment on table bike_stations is 'another'",
        "comment on column bike_stations.timestamp is null",
    )
    run_dbt(workplace.settings, "exports", "--quiet", "build", "--select", "bike_stations")
    assert comments(workplace) == expected


def test_readers_may_select_the_exported_tables_and_nothing_else(workplace, day_archive, role):
    load(workplace, day_archive)
    user = f"ana_of_{role}"
    execute(workplace, f"create user {user} in role {role}")
    for table in MODELS:
        execute(workplace, f"select * from {table}", user=user)
    for forbidden in (
        "insert into bike_stations select * from bike_stations",
        "update bike_stations set bikes = 0",
        "delete from processing_summary",
        "truncate top_stations_daily",
        "create table mine (id integer)",
        "create schema mine",
        "select * from landing.exported_objects",
        "select * from landing.landing_wrm__bike_stations",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            execute(workplace, forbidden, user=user)
    with pytest.raises(psycopg2.OperationalError, match="not permitted to log in"):
        execute(workplace, "select 1", user=role)


def test_readers_of_a_schema_of_ones_own_may_look_into_it(workplace, day_archive, role):
    workplace.configure(POSTGRES_SCHEMA="city")
    execute(workplace, "create table public.theirs (id integer)")
    load_readings(workplace, day_archive)
    user = f"ana_of_{role}"
    execute(workplace, f"create user {user} in role {role}")
    execute(workplace, "select * from city.bike_stations", user=user)
    for forbidden in ("select * from city_landing.exported_objects", "select * from public.theirs"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            execute(workplace, forbidden, user=user)


def test_a_user_who_may_not_make_roles_is_told_what_to_run_and_the_run_goes_on(
    workplace, day_archive, role, caplog
):
    owner = f"owner_of_{role}"
    database = workplace.settings.postgres_parameters()["dbname"]
    execute(
        workplace,
        f"create user {owner}",
        f"grant create on database {database} to {owner}",
        f"grant all on schema public to {owner}",
    )
    as_admin = workplace.settings.postgres_parameters()
    workplace.configure(POSTGRES_URL=workplace.settings.postgres_url.replace("//postgres:", f"//{owner}:"))
    load_readings(workplace, day_archive)
    assert workplace.warehouse_rows("select count(*) from bike_stations") == [(FEW_STATIONS,)]
    told = [text for text in caplog.messages if text.startswith("Readers cannot read all exported tables")]
    assert f"Have an administrator run in the database {database}: create role {role} nologin;" in told[-1]
    assert f"grant select on public.bike_stations to {role};" in told[-1]
    export_readings(workplace.settings)
    assert [text for text in caplog.messages if text.startswith("Readers cannot")] == told

    execute(workplace, told[-1].split(": ")[-1], **as_admin)  # as it says
    export_readings(workplace.settings)
    assert [text for text in caplog.messages if text.startswith("Readers cannot")] == told
    granted = f"select has_table_privilege('{role}', 'bike_stations', 'select')"
    assert workplace.warehouse_rows(granted) == [(True,)]


def test_a_role_that_another_database_makes_at_the_same_moment_is_no_error(workplace, day_archive, role):
    waiting = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%grant_reader%'"
    )
    given = workplace.settings.postgres_parameters()
    made_while_we_waited = threading.Event()
    with closing(psycopg2.connect(**given | {"dbname": "postgres"})) as other, other.cursor() as cursor:
        cursor.execute(f"create role {role} nologin")

        def commit_once_the_run_waits():
            until = time.monotonic() + 60
            while time.monotonic() < until and workplace.warehouse_rows(waiting) == [(0,)]:
                time.sleep(0.05)
            if time.monotonic() < until:
                made_while_we_waited.set()
            other.commit()

        thread = threading.Thread(target=commit_once_the_run_waits)
        thread.start()
        load_readings(workplace, day_archive)
        thread.join()
    assert made_while_we_waited.is_set()
    granted = f"select has_table_privilege('{role}', 'bike_stations', 'select')"
    assert workplace.warehouse_rows(granted) == [(True,)]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("POSTGRES_READER_ROLE", "Ana Maria", "Give lower-case letters"),
        ("POSTGRES_READER_ROLE", "pg_read_all_data", "PostgreSQL keeps this name for itself"),
        ("POSTGRES_READER_ROLE", "public", "PostgreSQL keeps this name for itself"),
        ("EXPORT_RETENTION_DAYS", "0", "Give a number above zero"),
        ("EXPORT_RETENTION_DAYS", "1.5", "Give a number"),
        ("EXPORT_RETENTION_DAYS", "a week", "Give a number"),
    ],
)
def test_settings_of_the_warehouse_are_checked(name, value, advice):
    with pytest.raises(SettingsError, match=f"{name} is malformed: .*{advice}"):
        load_settings({name: value})


def test_the_first_exported_day_counts_today_in():
    today = date(2025, 5, 12)
    assert first_exported_day(None, today) is None
    assert first_exported_day(1, today) == today
    assert first_exported_day(30, today) == date(2025, 4, 13)
    assert first_exported_day(10**9, today) == date(1, 1, 1)


def keep_days(workplace, days):
    workplace.configure(EXPORT_RETENTION_DAYS=days)
    DuckDBConnectionManager.close_all_connections()  # settings are read once in a process


def exported_days(workplace):
    return {
        table: [row[0] for row in workplace.warehouse_rows(f"select distinct date from {table} order by 1")]
        for table in MODELS
        if any(column["name"] == "date" for column in MODELS[table]["columns"])
    }


def lake_objects(workplace):
    return {path: path.stat().st_mtime_ns for path in workplace.lake_folder.rglob("*.parquet")}


def test_days_older_than_the_retention_leave_postgres_and_return_without_it(workplace, archive):
    load(workplace, archive(**snapshots(f"{OLD} 12:00:00", f"{OLD} 12:01:00", f"{RECENT} 12:00:00")))
    everything = workplace.warehouse_rows("select * from bike_stations order by id")
    in_lake = lake_objects(workplace)
    both = exported_days(workplace)
    assert both["bike_stations"] == both["free_bikes"] == both["daily_network"] == [OLD, RECENT]

    keep_days(workplace, "5")
    export(workplace)
    assert exported_days(workplace) == {
        table: [day for day in days if day >= RECENT] for table, days in both.items()
    }
    assert workplace.warehouse_rows("select min(dt) from landing.exported_objects") == [(RECENT,)]
    assert workplace.warehouse_rows("select * from landing.pending_objects") == []
    nodes = run_dbt(workplace.settings, "transform", "--quiet", "build", "--select", "tag:landing")
    assert {text for name, text in nodes.items() if name.startswith("landing")} == {"landed days: 0"}
    assert lake_objects(workplace) == in_lake

    keep_days(workplace, "")
    export(workplace)
    assert exported_days(workplace) == both
    assert workplace.warehouse_rows("select * from bike_stations order by id") == everything
    assert lake_objects(workplace) == in_lake


def test_an_archive_older_than_the_retention_is_kept_in_the_lake_alone(workplace, archive):
    keep_days(workplace, "5")
    load(workplace, archive(**snapshots(f"{OLD} 12:00:00")))
    held = {table for table, days in exported_days(workplace).items() if days}
    assert held == {"station_history"}  # what stations are does not expire
    assert workplace.lake_rows("select count(*) from int_wrm__station_readings_deduplicated") == [
        (FEW_STATIONS,)
    ]


def test_postgres_may_be_emptied_by_its_retention(workplace, archive):
    load_readings(workplace, archive(**snapshots(f"{OLD} 12:00:00")))
    keep_days(workplace, "5")
    export_readings(workplace.settings)
    assert workplace.warehouse_rows("select * from bike_stations") == []


def test_a_backfill_lies_in_postgres_in_the_order_of_time(workplace, archive):
    moments = [f"2025-05-{day} {hour}:00:00" for day in (11, 12) for hour in (10, 11)]
    load_readings(workplace, archive(**snapshots(*moments)))
    rows = workplace.warehouse_rows("select timestamp, station_id from bike_stations order by ctid")
    assert len(rows) == 4 * FEW_STATIONS
    assert rows == sorted(rows)


def scans(plan):
    """(kind of scan, its index) of every table or index that a plan reads."""
    if plan["Node Type"].endswith("Scan") and plan["Node Type"] != "Bitmap Heap Scan":
        return [(plan["Node Type"], plan.get("Index Name"))]
    return [scan for below in plan.get("Plans", []) for scan in scans(below)]


def test_the_obvious_queries_use_indexes(workplace, day_archive):
    load_readings(workplace, day_archive)
    execute(
        workplace,
        # every half hour of 18 days, 235 stations
        "insert into bike_stations "
        "select gen_random_uuid(), 20000 + station, moment + station * interval '200 us', "
        "'Station ' || station, 5, 10, moment::date, moment + interval '20 s', -7200, -3600 "
        "from generate_series(timestamp '2025-06-01', '2025-06-18 23:30', '30 min') as moments (moment) "
        "cross join generate_series(1, 235) as stations (station) order by moments.moment, station",
        "analyze bike_stations",
    )
    definitions = dict(
        workplace.warehouse_rows(
            "select indexname::text, split_part(indexdef, ' USING ', 2) from pg_indexes "
            "where tablename = 'bike_stations'"
        )
    )
    history = "station_id = 20100 and timestamp >= '2025-06-10' and timestamp < '2025-06-12'"
    one_moment = "timestamp >= '2025-06-10 12:00' and timestamp < '2025-06-10 12:30'"
    used = {}
    for condition in (history, one_moment, "date = '2025-06-10'"):
        [[[explained]]] = workplace.warehouse_rows(
            f"explain (format json) select * from bike_stations where {condition}"
        )
        used[condition] = {definitions.get(index, kind) for kind, index in scans(explained["Plan"])}
    assert used == {
        history: {'btree (station_id, "timestamp")'},
        one_moment: {'btree ("timestamp")'},
        "date = '2025-06-10'": {"btree (date)"},
    }
