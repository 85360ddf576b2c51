"""Jobs that meet, and readers that never stop asking while days are built, exported and removed."""

import threading
import time
from contextlib import closing, contextmanager

import duckdb
import psycopg2
import pytest
from settled_place import DAY, DAYS, kept, rows, settled_place

from ingestion.lake import Lake
from scripts.lake_reader import read_again_where_objects_go
from scripts.lease import lease_holder
from transform.plugins.lake import open_lake, storage_statements

MODELS = {
    "int_wrm__station_readings_deduplicated": "silver",
    "fct_daily_network": "gold",
    "fct_hourly_station_availability": "gold",
}
TABLES = ("bike_stations", "stations_data_summary", "hourly_station_availability", "processing_summary")
LAKE_DAYS = "select dt::varchar, count(*), sum(hash(days)::hugeint)::varchar"
BACKFILL = ("run_pipeline", "backfill")
PAUSE_SECONDS = 1  # between two looks of a reader: without, readers take the machine from the jobs


@pytest.fixture
def settled(workplace, archive, tmp_path_factory):
    return settled_place(workplace, archive, tmp_path_factory)


@pytest.fixture(params=["files", "s3"])
def lake_of_three_days(request, settled):
    """A settled place, its lake on a disk or on S3."""
    if request.param == "s3":
        server = request.getfixturevalue("s3_server")
        settled.configure(**server.environment | {"LAKE_URL": f"s3://bike-data-flow/t{time.time_ns()}"})
        settled.finish(*BACKFILL, kept["archive_before"])
    return settled


def job_of(name):
    """A job's module and arguments: those of the archive are known only once it is there."""
    commands = {
        "backfill": (*BACKFILL, kept.get("archive", "")),
        "rebuild": (*BACKFILL, "--from", DAY, "--to", DAY),
        "compact": ("compact_bronze",),
        "watch": ("watch_lake",),
        "dbt transform": ("run_dbt", "transform", "--quiet", "build", "--exclude-resource-type", "unit_test"),
        "dbt exports": ("run_dbt", "exports", "--quiet", "build", "--full-refresh"),
    }
    return commands.get(name, ("run_pipeline", name))


@contextmanager
def job_at_work(place, name):
    """A job that holds the lake; gives it and what the lease tells of it."""
    lake = Lake.of(place.settings)
    with place.job(*job_of(name)) as job:
        deadline = time.monotonic() + 60
        while (holder := lease_holder(lake)) is None and job.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        assert holder is not None and holder.process == job.process.pid, job.output
        yield job, holder


MEETINGS = [
    ("backfill", "backfill"),
    ("watch", "transform"),
    ("watch", "export"),
    ("watch", "backfill"),
    ("compact", "transform"),
    ("transform", "compact"),
    ("export", "export"),
    ("dbt transform", "dbt transform"),
    ("dbt exports", "dbt exports"),
]


@pytest.mark.sampled
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same machine", "another machine"])
@pytest.mark.parametrize(("first", "second"), MEETINGS)
def test_second_job_is_told_who_is_at_work_and_nothing_is_doubled(
    settled, tmp_path, first, second, elsewhere
):
    lake, data = settled.settings.lake_url, str(settled.settings.data_dir)
    settled.configure(WATCH_ARCHIVE=kept["archive"], LAKE_URL=lake)
    settled.finish(*BACKFILL, kept["archive"])
    with job_at_work(settled, first) as (job, holder):
        settled.configure(DATA_DIR=str(tmp_path / "elsewhere") if elsewhere else data)
        told = settled.finish(*job_of(second), status=1)
        settled.configure(DATA_DIR=data)
        if first == "watch":
            job.terminate()
        assert job.wait() == 0, job.output
    assert f"Failed. Another job is at work: {holder}. Wait until it has ended and run again." in told
    settled.finish(*job_of(second))
    assert rows(settled) == kept["rows"]


class Readers:
    """Readers that ask again and again until the `with` block ends; what they saw, and what went wrong."""

    def __init__(self, place):
        self.settings = place.settings
        self.lake = Lake.of(place.settings)
        self.seen = {}  # by reader: each state of a day that was seen, as (what, dt, rows, checksum)
        self.counts = []  # rows of bike_stations, in the order in which they were asked for
        self.errors = []
        self.asked = {}
        self.ended = threading.Event()

    def __enter__(self):
        asks = (self.glob, self.views, self.autocommit, self.repeatable_read)
        self.threads = [threading.Thread(target=self.repeat, args=[ask]) for ask in asks]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def repeat(self, ask):
        name = ask.__name__
        while not self.ended.is_set():
            self.asked[name] = self.asked.get(name, 0) + 1
            try:
                self.seen.setdefault(name, set()).update(ask())
            except Exception as error:
                self.errors.append((name, f"{type(error).__name__}: {error}"))
            time.sleep(PAUSE_SECONDS)

    def glob(self):
        """As an analyst reads the lake's days, who knows nothing of this project but that an object may be
        replaced while it is read: then DuckDB says so, and one asks again."""

        def read():
            with closing(duckdb.connect(config={"threads": 1})) as connection:
                for statement in storage_statements(self.lake):
                    connection.execute(statement)
                return [
                    (model, *row)
                    for model, layer in MODELS.items()
                    for row in connection.execute(
                        f"{LAKE_DAYS} from read_parquet("
                        f"'{self.lake.root}/{layer}/{model}/dt=*/data.parquet') as days group by 1"
                    ).fetchall()
                ]

        return read_again_where_objects_go(read)

    def views(self):
        """As this project's own tools read it."""

        def read():
            with closing(open_lake(self.settings)) as connection:
                return [
                    (model, *row)
                    for model in (*MODELS, "dim_bike_stations")
                    for row in connection.execute(f"{LAKE_DAYS} from {model} as days group by 1").fetchall()
                ]

        return read_again_where_objects_go(read)

    def autocommit(self):
        with closing(psycopg2.connect(**self.settings.postgres_parameters())) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("select count(*) from bike_stations")
            self.counts.append(cursor.fetchone()[0])
            return [row for table in TABLES for row in table_days(cursor, table)]

    def repeatable_read(self):
        """Two looks within one transaction, at readings and at the summary that counts them."""
        joined = (
            "select date, count(*) >= min(total_records) from bike_stations join stations_data_summary "
            "using (date) group by date order by date"
        )
        with closing(psycopg2.connect(**self.settings.postgres_parameters())) as connection:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            cursor = connection.cursor()
            looks = []
            for _ in range(2):
                cursor.execute(joined)
                looks.append(cursor.fetchall())
                time.sleep(0.05)
        assert looks[0] == looks[1] and all(is_whole for _, is_whole in looks[0]), looks
        return []


def table_days(cursor, table):
    cursor.execute(
        f"select '{table}', date::text, count(*), sum(hashtext(each::text)::bigint)::text "
        f"from {table} as each group by date"
    )
    return cursor.fetchall()


def states(place):
    """What readers see of a place at rest."""
    readers = Readers(place)
    return set(readers.glob()) | set(readers.views()) | set(readers.autocommit())


WORK = {
    "a late file": [(*BACKFILL, "archive")],
    "a rebuild": [job_of("rebuild")],
    "compaction and a build": [job_of("compact"), job_of("transform")],
    "dbt by hand": [job_of("dbt transform"), job_of("dbt exports")],
}


@pytest.mark.sampled
@pytest.mark.parametrize("work", WORK)
def test_readers_see_each_day_as_before_or_as_after(lake_of_three_days, work, record_property):
    place = lake_of_three_days
    before = states(place)
    with Readers(place) as readers:
        for module, *arguments in WORK[work]:
            place.finish(module, *(kept.get(argument, argument) for argument in arguments))
    after = states(place)
    seen = set().union(*readers.seen.values())
    assert readers.errors == []
    assert seen - before - after == set()
    assert readers.counts == sorted(readers.counts)
    record_property("reads", sum(readers.asked.values()))


@pytest.mark.sampled
def test_day_that_is_removed_is_there_whole_or_not_at_all(lake_of_three_days):
    place = lake_of_three_days
    before = states(place)
    for table in ("station_snapshots", "fetch_attempts"):
        lake = Lake.of(place.settings)
        filesystem, folder = lake.filesystem(), f"{lake.root}/bronze/wrm/{table}/dt={DAYS[0]}"
        if filesystem.exists(folder):
            filesystem.rm(folder, recursive=True)
    with Readers(place) as readers:
        place.finish(*job_of("transform"))
        place.finish(*job_of("export"))
    after = states(place)
    seen = set().union(*readers.seen.values())
    assert seen - before - after == set()
    assert DAYS[0] not in {day for _, day, *_ in after}
    assert readers.errors == []
