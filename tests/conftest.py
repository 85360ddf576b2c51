"""Real parts for the tests: a PostgreSQL, an S3 server and the simulated feed, on loopback.

Each test has a DATA_DIR, a database and a lake of its own.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest
from jobs import Job

from ingestion.settings import PROJECT_ROOT, Settings, load_settings
from scripts.simulate_feed import City, FeedServer, running_feed
from scripts.start_postgres import running_postgres
from scripts.start_s3 import S3Server, running_s3
from transform.plugins.lake import open_lake

SETTINGS = re.findall(r"^#([A-Z0-9_]+)=", (PROJECT_ROOT / ".env.example").read_text(), re.MULTILINE)
FEW_STATIONS, FEW_BIKES = 6, 3
DATABASE = "test"  # of one name, anew for each test: dbt parses a project again for another


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The embedded PostgreSQL 18, in a folder of its own for the whole session."""
    settings = load_settings({"DATA_DIR": str(tmp_path_factory.mktemp("postgres"))})
    with running_postgres(settings):
        yield settings


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS S3 server for the whole session."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def feed() -> Iterator[FeedServer]:
    """The simulated feed of a small city."""
    with running_feed(city=City(stations=FEW_STATIONS, free_bikes=FEW_BIKES)) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torture", "how hard the tests of tests/torture try")
    group.addoption("--points", type=int, default=3, help="moments at which jobs are killed")
    group.addoption("--cases", type=int, default=4, help="faults that are tried, of all that are known")
    group.addoption("--payloads", type=int, default=300, help="payloads that are made up")
    group.addoption("--seed", type=int, default=1, help="what chooses the points, the cases and the payloads")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sampled: one of many cases, of which --cases are tried")


@dataclass(frozen=True)
class Torture:
    """How hard to try: counts, and the seed that chooses."""

    points: int
    cases: int
    payloads: int
    seed: int


@pytest.fixture(scope="session")
def torture(pytestconfig: pytest.Config) -> Torture:
    """What the options of the command line say."""
    return Torture(*(pytestconfig.getoption(name) for name in ("points", "cases", "payloads", "seed")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a sample of the sampled tests, then deal all out to the workers, each of which takes a run of
    neighbours: the long ones of `e2e` would else be one worker's, and the others wait for it at the end."""
    sampled = [item for item in items if item.get_closest_marker("sampled")]
    left_out = sampled[:]
    draw = random.Random(config.getoption("seed"))
    for item in draw.sample(sampled, min(config.getoption("cases"), len(sampled))):
        left_out.remove(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = [item for first in range(workers) for item in items[first::workers]]


@dataclass
class Workplace:
    """A project with settings of its own, for calls in this process and for the command line."""

    environment: dict[str, str]
    monkeypatch: pytest.MonkeyPatch

    def configure(self, **values: str) -> None:
        """Change settings; they hold in this process and for commands."""
        for name, value in values.items():
            self.environment[name] = value
            self.monkeypatch.setenv(name, value)

    @property
    def settings(self) -> Settings:
        return load_settings()

    @property
    def lake_folder(self) -> Path:
        return self.settings.data_dir / "lake"

    def lake_objects(self) -> dict[str, int]:
        """Every object of the lake and when it was written, but for the lease and the history of runs, which
        every job writes to."""
        every_job = ("_lease.json", "bronze/pipeline/", "gold/fct_pipeline_")
        return {
            name: path.stat().st_mtime_ns
            for path in self.lake_folder.rglob("*")
            if path.is_file() and not (name := str(path.relative_to(self.lake_folder))).startswith(every_job)
        }

    def just(
        self, *arguments: str, check: bool = True, project: Path = PROJECT_ROOT
    ) -> subprocess.CompletedProcess[str]:
        """A recipe, as people call it; fails the test on a bad exit status unless told not to."""
        done = subprocess.run(
            ["just", "--justfile", PROJECT_ROOT / "justfile", "--working-directory", project, *arguments],
            env=self.command_environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def command(self, *arguments: str, folder: Path = PROJECT_ROOT) -> str:
        """A program of the environment in a folder, as dlt's and dbt's users call it; what it printed."""
        done = subprocess.run(
            arguments, env=self.command_environment(), cwd=folder, capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            pytest.fail(f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def command_environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # cold starts cost seconds without byte code
        return environment | self.environment

    def job(self, module: str, *arguments: str) -> Job:
        """Start a script of the project in a process of its own: job("run_pipeline", "run")."""
        log = self.settings.data_dir / "jobs" / f"{time.time_ns()}.log"
        return Job(self.command_environment(), log, module, *arguments)

    def finish(self, module: str, *arguments: str, status: int = 0) -> str:
        """Run a script of the project to its end; what it printed. It takes seconds less than a recipe."""
        with self.job(module, *arguments) as job:
            assert job.wait() == status, job.output
            return job.output

    def lake_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query on the lake's views."""
        with closing(open_lake(self.settings)) as connection:
            return connection.execute(sql).fetchall()

    def warehouse_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query on PostgreSQL."""
        with (
            closing(psycopg2.connect(**self.settings.postgres_parameters())) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return cursor.fetchall()


@pytest.fixture(scope="session")
def parsed_projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where dbt's parsed projects are kept from test to test: parsing anew costs seconds each time."""
    return tmp_path_factory.mktemp("parsed")


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_server: Settings, parsed_projects: Path
) -> Iterator[Workplace]:
    """An empty file lake and an empty database; the feed is out of reach."""
    for name in [*SETTINGS, *(name for name in os.environ if name.startswith("DLT_"))]:
        monkeypatch.setenv(name, "")  # whatever .env and the environment say
    monkeypatch.delenv("AWS_CA_BUNDLE")  # botocore takes an empty one for a mistake
    copy_database(postgres_server, "template1", DATABASE)
    host = str(postgres_server.postgres_socket_dir).replace("/", "%2F")
    place = Workplace({}, monkeypatch)
    place.configure(
        DATA_DIR=str(tmp_path / "data"),
        POSTGRES_URL=f"postgresql://postgres:@{host}:5432/{DATABASE}",
        WRM_FEED_URL="http://127.0.0.1:9/wrm",
        WRM_FAILURES_URL="http://127.0.0.1:9/failures",
        FETCH_ATTEMPTS="1",
        FETCH_TIMEOUT_SECONDS="5",
        METRICS_ADDRESS="127.0.0.1:0",  # tests that watch run side by side
    )
    for known in parsed_projects.glob("*/partial_parse.msgpack"):
        target = tmp_path / "data" / "dbt" / known.parent.name
        target.mkdir(parents=True)
        shutil.copy(known, target)
    yield place
    for parsed in tmp_path.glob("data/dbt/*/partial_parse.msgpack"):
        (parsed_projects / parsed.parent.name).mkdir(exist_ok=True)
        shutil.copy(parsed, parsed_projects / parsed.parent.name)
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    DuckDBConnectionManager.close_all_connections()  # the next test has another lake


@pytest.fixture
def live_workplace(workplace: Workplace, feed: FeedServer) -> Workplace:
    """A workplace whose feed answers."""
    workplace.configure(WRM_FEED_URL=f"{feed.url}/wrm", WRM_FAILURES_URL=f"{feed.url}/failures")
    return workplace


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Writes raw files, by name, into an archive's folder."""

    def write(folder: str = "archive", **files: str | bytes) -> Path:
        target = tmp_path / folder
        for name, content in files.items():
            path = target / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    return write


def copy_database(server: Settings, source: str, target: str) -> None:
    """Make a database, anew where it is there, as a copy of another one of the server."""
    with closing(psycopg2.connect(**server.postgres_parameters() | {"dbname": "postgres"})) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name in (source, target):  # a killed job's sessions may still be closing
                cursor.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
                )
            cursor.execute(f"drop database if exists {target} (force)")
            cursor.execute(f"create database {target} template {source}")


def small_snapshot(observed_at: datetime, stations: int = FEW_STATIONS) -> str:
    """The text of one made-up snapshot: `stations` stations and three free bikes."""
    return City(stations=stations, free_bikes=FEW_BIKES).snapshot(observed_at)


def moment(text: str) -> datetime:
    """A UTC moment written as 2025-05-12 18:10:07."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def raw_name(text: str) -> str:
    """The archive's name for a moment written as 2025-05-12 18:10:07."""
    return f"wrm_stations_{moment(text):%Y-%m-%d_%H-%M-%S}.txt"


def bronze_rows(
    settings: Settings, table: str, columns: str = "*", source: str = "wrm"
) -> list[tuple[Any, ...]]:
    """Rows of a bronze table, in order of all columns."""
    with closing(open_lake(settings)) as connection:
        pattern = f"{settings.lake_url}/bronze/{source}/{table}/dt=*/*.parquet"
        try:
            return connection.execute(
                f"select {columns} from read_parquet('{pattern}', hive_partitioning = true) order by all"
            ).fetchall()
        except duckdb.IOException:
            return []
