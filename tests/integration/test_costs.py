"""What the pipeline costs in counts, which no clock and no machine changes: a test fails where one grows.

Requests to S3 and statements to PostgreSQL are counted by proxies in front of the servers, rows and files by
the engines themselves. The lake's lease is left out: the clock renews it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from conftest import FEW_BIKES, FEW_STATIONS, Workplace, moment, raw_name, small_snapshot
from stages import Stage

from ingestion.settings import Settings
from scripts.lease import NAME as LEASE
from scripts.lease import Lease
from scripts.pipeline_run import Run, new_run_id, pipeline_run
from scripts.run_dbt import close_duckdb, run_dbt
from scripts.run_pipeline import Stages, build_and_export, import_archive
from scripts.server_proxies import Call, Script, postgres_proxy, s3_proxy
from scripts.simulate_feed import City, FeedServer
from scripts.start_s3 import S3Server
from scripts.watch_lake import Watch, note_round
from transform.plugins.lake import open_lake

# What each kind of work costs at most. Requests, statements, nodes and rows are the same whatever the
# history. Bytes grow a little with it, by a row a day in each model's state; these are of ten days. Where a
# test finds more, mend that; or raise the figure, and say why in the commit. Where it finds much less,
# lower the figure, so that it goes on to mean something.
#
# What varies: how well rows compress; and the hour, as the health of the last 24 hours reads one day more or
# less. Jobs have one thread here: of several that need an object at the same time each asks for it.
COSTS: dict[str, dict[str, int]] = {
    "a run with one new snapshot": {
        "GET": 126,
        "HEAD": 117,
        "LIST": 86,
        "PUT": 79,
        "bytes sent": 170_000,
        "bytes answered": 480_000,
        "bytes listed": 160_000,
        "statements": 934,
    },
    "a build and an export with nothing new": {
        "GET": 71,
        "HEAD": 51,
        "LIST": 99,
        "bytes answered": 400_000,
        "bytes listed": 240_000,
        "statements": 438,
    },
    "the first round of watch": {
        "GET": 123,
        "HEAD": 112,
        "LIST": 96,
        "PUT": 79,
        "bytes sent": 180_000,
        "bytes answered": 480_000,
        "bytes listed": 110_000,
        "statements": 939,
        "nodes": 56,
        "readings landed": 9,
    },
    "a round of watch with nothing due": {},
    "a round of watch with nothing new": {
        "GET": 47,
        "HEAD": 47,
        "LIST": 10,
        "bytes answered": 140_000,
        "bytes listed": 14_000,
        "statements": 5,
    },
    "a round of watch whose poll finds the feed unchanged": {
        "GET": 60,
        "HEAD": 61,
        "LIST": 109,
        "PUT": 21,
        "bytes sent": 42_000,
        "bytes answered": 320_000,
        "bytes listed": 150_000,
        "statements": 569,
        "nodes": 13,
    },
    "a round of watch with one new snapshot": {
        "GET": 103,
        "HEAD": 103,
        "LIST": 91,
        "PUT": 72,
        "bytes sent": 160_000,
        "bytes answered": 370_000,
        "bytes listed": 88_000,
        "statements": 882,
        "nodes": 50,
        "readings landed": 9,
    },
    "a query of one station's day": {
        "GET": 6,
        "LIST": 1,
        "bytes answered": 330_000,
        "bytes listed": 1_600,
    },
}
AT_LEAST = 0.85  # of the figure
RUN, NOTHING_NEW, FIRST, NOTHING_DUE, TICK, UNCHANGED, NEW, QUERY = COSTS

# the models of which a new snapshot has today alone rebuilt, by layer
OF_TODAY = {
    "silver": (
        "int_wrm__free_bike_readings_deduplicated",
        "int_wrm__lines_parsed",
        "int_wrm__lines_quarantined",
        "int_wrm__snapshots_received",
        "int_wrm__station_attributes_observed",
        "int_wrm__station_periods_accumulated",
        "int_wrm__station_readings_deduplicated",
    ),
    "gold": (
        "dim_bike_stations",
        "fct_coverage_gaps",
        "fct_daily_data_quality",
        "fct_daily_processing",
        "fct_daily_station_availability",
        "fct_daily_station_ranking",
        "fct_daily_station_readings",
        "fct_hourly_coverage",
    ),
}
# those by local days, of which a UTC day touches two
OF_TODAY_AND_TOMORROW = {
    "silver": ("int_wrm__free_bike_spells_carried",),
    "gold": (
        "fct_daily_network",
        "fct_free_bike_idle_spells",
        "fct_free_bike_trips",
        "fct_hourly_station_availability",
    ),
}

DAYS = 10  # of history
LANDED = ("landing_wrm__bike_stations", "landing_wrm__free_bikes")
READINGS = "int_wrm__station_readings_deduplicated"
LARGE_DAY, STATION = "2025-05-12", 15700

# so many that PostgreSQL finds it worth while to use an index
OLD_READINGS = """
    insert into bike_stations (id, station_id, "timestamp", date, processed_at)
    select gen_random_uuid(), number % 300, at, at::date, at
    from (
        select number, timestamp '2020-01-01' + number * interval '1 minute' as at
        from generate_series(1, 100000) as number
    ) as readings;
    insert into free_bikes (id, bike_id, "timestamp", date, processed_at)
    select id, 'fb' || station_id, "timestamp", date, processed_at from bike_stations
    where date < '2025-01-01';
    analyze bike_stations, free_bikes
"""


@dataclass
class Meter:
    """Counts what the jobs of a stage ask of its servers, by the kind of work they do."""

    stage: Stage
    servers: dict[str, str]  # settings that lead past the proxies
    proxies: Connection
    lease: Lease = field(default_factory=Lease)  # one for all, as `watch` has
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    rewritten: dict[str, set[str]] = field(default_factory=dict)  # Parquet objects, as `_place_of` tells them

    @contextmanager
    def straight(self) -> Iterator[None]:
        """Have jobs go past the proxies, which takes less time, for the length of a `with` block."""
        place = self.stage.place
        proxied = {name: place.environment[name] for name in self.servers}
        place.configure(**self.servers)
        yield
        place.configure(**proxied)

    @contextmanager
    def counting(self, case: str) -> Iterator[None]:
        """Count what happens in a `with` block."""
        self._take()
        yield
        calls, answered = self._take()
        calls = [call for call in calls if not call.what.endswith(LEASE)]
        requests = [call for call in calls if call.server == "s3"]
        self.counts[case] = Counter(call.verb for call in requests) + Counter(
            {
                "bytes sent": sum(call.size for call in requests),
                "bytes answered": answered.total(),
                "bytes listed": answered["LIST"],
                "statements": sum(call.verb in ("QUERY", "COMMIT") for call in calls),
            }
        )
        puts = {call.what for call in requests if call.verb == "PUT"}
        self.rewritten[case] = {_place_of(key) for key in puts if key.endswith(".parquet")}

    @contextmanager
    def counting_run(self, case: str) -> Iterator[Run]:
        """Count what a run does in a `with` block, and of dbt the nodes that did something."""
        settings = self.stage.place.settings
        with self.counting(case), pipeline_run(settings, case, new_run_id(), "watch", self.lease) as run:
            yield run
        assert run.outcome == "succeeded", run.error
        nodes = [step for step in run.steps if step.kind == "dbt_node"]
        landed = sum(step.rows_count or 0 for step in nodes if step.name in LANDED)
        self.counts[case] += Counter({"nodes": len(nodes), "readings landed": landed})

    def _take(self) -> tuple[list[Call], Counter[str]]:
        """The calls since this was last asked, and the bytes of S3's answers by verb."""
        self.proxies.send("take")
        taken: tuple[list[Call], Counter[str]] = self.proxies.recv()
        return taken

    def differences(self) -> list[str]:
        """Where the counts are not those of the table: one line each."""
        return [
            f"{case}: {name} {found[name]}, in the table of costs {most}"
            for case, found in self.counts.items()
            for name in sorted({*found, *COSTS[case]})
            if not AT_LEAST * (most := COSTS[case].get(name, 0)) <= found[name] <= most
        ]


def _place_of(key: str) -> str:
    """Where in the lake an object is; one of bronze has a new name each time."""
    _, _, name = key.partition("/")
    return re.sub(r"^(bronze/.*/)[^/]*$", r"\1*", name)


class CityBehindTime(City):
    """A city whose clocks have gone half as far since midnight (UTC), so that its readings are of the same
    local day whenever the tests run."""

    def snapshot(self, observed_at: datetime, rhythm_at: datetime | None = None) -> str:
        midnight = observed_at.replace(hour=0, minute=0, second=0, microsecond=0)
        return super().snapshot(midnight + (observed_at - midnight) / 2)


@pytest.fixture
def meter(live_workplace: Workplace, postgres_server: Settings, s3_server: S3Server) -> Iterator[Meter]:
    """A meter at a stage on S3, whose proxies have a process of their own: DuckDB keeps Python's lock while
    it waits for PostgreSQL, so that in one process both would wait for each other."""
    stage = Stage(live_workplace, postgres_server, s3=s3_server.filesystem())
    url = live_workplace.environment["POSTGRES_URL"]
    servers = {"AWS_ENDPOINT_URL_S3": s3_server.endpoint_url, "POSTGRES_URL": url}
    ours, theirs = multiprocessing.Pipe()
    socket = f"{postgres_server.postgres_socket_dir}/.s.PGSQL.5432"
    process = multiprocessing.get_context("forkserver").Process(
        target=_keep_proxies, args=[s3_server.endpoint_url, socket, theirs], daemon=True
    )
    process.start()
    endpoint_url, port = ours.recv()
    lake = {"LAKE_URL": f"s3://bike-data-flow/costs-{time.time_ns()}"}
    proxied = {
        "AWS_ENDPOINT_URL_S3": endpoint_url,
        "POSTGRES_URL": f"postgresql://postgres:@127.0.0.1:{port}/{stage.database}",
    }
    threads = {"DUCKDB_THREADS": "1", "DBT_THREADS": "1"}
    live_workplace.configure(**s3_server.environment | lake | proxied | threads)
    yield Meter(stage, servers, ours)
    ours.send("end")
    process.join()


def _keep_proxies(s3_url: str, postgres_socket: str, pipe: Connection) -> None:
    """Proxies of both servers, and what was called whenever that is asked for."""
    script = Script()
    with s3_proxy(s3_url, script) as s3, postgres_proxy(postgres_socket, script) as postgres:
        pipe.send((s3.endpoint_url, postgres.port))
        while pipe.recv() == "take":
            with script.lock:
                taken = [*script.calls], Counter(script.answered)
                script.calls.clear()
                script.answered.clear()
            pipe.send(taken)


def test_work_costs_what_the_table_says(meter: Meter, feed: FeedServer, tmp_path: Path) -> None:
    feed.city = CityBehindTime(stations=FEW_STATIONS, free_bikes=FEW_BIKES)
    meter.stage.save()
    while True:
        hour = _this_hour()
        today = hour.date()
        with meter.straight():
            _make_history(meter.stage, today, tmp_path / f"archive of {hour}")
        _measure_runs(meter)
        _measure_rounds(meter, feed)
        if _this_hour() == hour:
            break
        close_duckdb()
        meter.stage.restore()  # the next hour has begun, or the next day, which is work of its own
    assert meter.rewritten[NOTHING_NEW] == meter.rewritten[TICK] == set()
    assert meter.rewritten[RUN] == _objects_of(today, with_history=True)
    assert meter.rewritten[NEW] == _objects_of(today, with_history=False)
    assert not (wrong := meter.differences()), "\n".join(wrong)


def _this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def _make_history(stage: Stage, today: date, archive: Path) -> None:
    """A snapshot of each day before today, and one of today."""
    archive.mkdir()
    for days_ago in range(1, DAYS + 1):
        noon = datetime(today.year, today.month, today.day, 12, tzinfo=UTC) - timedelta(days=days_ago)
        (archive / raw_name(f"{noon:%Y-%m-%d %H:%M:%S}")).write_text(small_snapshot(noon))
    stage.finish("run_pipeline", "backfill", str(archive))
    stage.finish("run_pipeline", "run")


def _measure_runs(meter: Meter) -> None:
    """A run with a new snapshot, in a process of its own, and one with nothing new, in a new DuckDB."""
    settings = meter.stage.place.settings
    with meter.counting(RUN):
        meter.stage.finish("run_pipeline", "run")
    build_and_export(settings, Stages())  # the record of the run itself is new
    close_duckdb()
    with meter.counting_run(NOTHING_NEW) as run:
        build_and_export(settings, Stages())
        run.discard()


def _measure_rounds(meter: Meter, feed: FeedServer) -> None:
    """Rounds of one `watch`, of which the first looks at the whole lake."""
    state = Watch(meter.stage.place.settings)
    at_home = [state.archive, state.export, state.build, state.health]
    every = [state.raw, *at_home]
    rounds = {FIRST: every, NOTHING_DUE: [], TICK: at_home, UNCHANGED: every, NEW: every}
    for case, due in rounds.items():
        if case == UNCHANGED:
            feed.misbehave("unchanged")
        for sensor in state.sensors:
            sensor.due_at = 0 if sensor in due else math.inf
        with meter.counting_run(case) as run:
            note_round(run, state.run_round(threading.Event()), state.is_idle)


def _objects_of(today: date, with_history: bool) -> set[str]:
    """The Parquet objects that one new snapshot has written: of bronze new ones, of models today's, and their
    states."""
    yesterday, tomorrow = today - timedelta(days=1), today + timedelta(days=1)
    tables = ("wrm/station_snapshots", "wrm/fetch_attempts", "pipeline/runs", "pipeline/steps")
    days_of = {
        **{f"{layer}/{model}": [today] for layer, models in OF_TODAY.items() for model in models},
        **{
            f"{layer}/{model}": [today, tomorrow]
            for layer, models in OF_TODAY_AND_TOMORROW.items()
            for model in models
        },
    }
    if with_history:  # a run of yesterday may have steps of today
        days_of |= {"gold/fct_pipeline_runs": [yesterday, today], "gold/fct_pipeline_steps": [today]}
    return {
        *(f"bronze/{table}/dt={today}/*" for table in tables),
        *(f"{model}/_state.parquet" for model in days_of),
        *(f"{model}/dt={day}/data.parquet" for model, days in days_of.items() for day in days),
    }


def test_query_of_a_stations_day_reads_one_file_and_one_row_group_of_it(meter: Meter, tmp_path: Path) -> None:
    settings = meter.stage.place.settings
    with meter.straight():
        _make_large_day(meter.stage.place.settings, tmp_path / "archive")
    with closing(open_lake(settings)) as lake:
        query = (
            f"select observed_at, bikes_count from {READINGS} "
            f"where dt = '{LARGE_DAY}' and station_id = {STATION}"
        )
        with meter.counting(QUERY):
            [(_, plan)] = lake.execute(f"explain (analyze, format json) {query}").fetchall()
        row_groups = lake.execute(
            "select count(*) filter (? between stats_min::integer and stats_max::integer), count(*) "
            f"from parquet_metadata('{settings.lake_url}/silver/{READINGS}/dt={LARGE_DAY}/data.parquet') "
            "where path_in_schema = 'station_id'",
            [STATION],
        ).fetchone()
    scan = _scan_of(json.loads(plan))
    assert (scan["Scanning Files"], scan["Total Files Read"]) == ("1/4", "1")
    assert row_groups == (1, 2), "readings are sorted by station, so that others are passed over"
    assert not (wrong := meter.differences()), "\n".join(wrong)


def _make_large_day(settings: Settings, archive: Path) -> None:
    """Readings of small days and of a large one among them, which takes two row groups."""
    archive.mkdir()
    for text in ("2025-05-10 12:00:00", "2025-05-11 12:00:00", "2025-05-13 12:00:00"):
        (archive / raw_name(text)).write_text(small_snapshot(moment(text)))
    city = City(stations=1500, free_bikes=0)
    for quarter in range(24 * 4):
        at = moment(f"{LARGE_DAY} 00:00:00") + quarter * timedelta(minutes=15)
        (archive / raw_name(f"{at:%Y-%m-%d %H:%M:%S}")).write_text(city.snapshot(at))
    import_archive(settings, str(archive))
    run_dbt(settings, "transform", "--quiet", "run", "--select", f"+{READINGS}")
    close_duckdb()


def _scan_of(plan: dict[str, Any]) -> dict[str, str]:
    """What DuckDB tells of the scan at the bottom of a plan without branches."""
    while plan["children"]:
        [plan] = plan["children"]
    scan: dict[str, str] = plan["extra_info"]
    return scan


def test_run_lands_its_own_rows_and_finds_the_readings_by_their_keys(live_workplace: Workplace) -> None:
    live_workplace.finish("run_pipeline", "run")
    with closing(psycopg2.connect(**live_workplace.settings.postgres_parameters())) as connection:
        connection.cursor().execute(OLD_READINGS)
        connection.commit()
    before = _statistics(live_workplace)
    live_workplace.finish("run_pipeline", "run")
    after = _statistics(live_workplace)
    assert {table: dict(after[table] - before[table]) for table in after} == {
        "bike_stations": {"rows inserted": FEW_STATIONS, "looked up by key": FEW_STATIONS},
        "free_bikes": {"rows inserted": FEW_BIKES, "looked up by key": FEW_BIKES},
        "landing_wrm__bike_stations": {"rows inserted": FEW_STATIONS, "rows read one by one": FEW_STATIONS},
        "landing_wrm__free_bikes": {"rows inserted": FEW_BIKES, "rows read one by one": FEW_BIKES},
    }


def _statistics(place: Workplace) -> dict[str, Counter[str]]:
    """What PostgreSQL has done to the tables of readings, by its own account, to which a session adds its
    part at its end."""
    others = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    while place.warehouse_rows(f"select 1 {others}"):
        time.sleep(0.05)
    found = place.warehouse_rows(
        "select relname, seq_tup_read, n_tup_ins, n_tup_upd + n_tup_del, key.idx_scan "
        "from pg_stat_user_tables "
        "left join (select relname, idx_scan from pg_stat_user_indexes "
        "where indexrelname like '%timestamp_key') as key using (relname) "
        "where relname similar to '(landing_wrm__)?(bike_stations|free_bikes)'"
    )
    names = ("rows read one by one", "rows inserted", "rows changed", "looked up by key")
    return {
        table: Counter(dict(zip(names, (figure or 0 for figure in figures), strict=True)))
        for table, *figures in found
    }
