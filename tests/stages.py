"""Where jobs are disturbed: a workplace whose servers stand behind proxies, and the rows that it holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import s3fs
from conftest import Workplace, copy_database, moment, raw_name, small_snapshot

from ingestion.settings import Settings
from scripts.server_proxies import Script, postgres_proxy, s3_proxy
from scripts.start_s3 import S3Server
from transform.plugins.lake import open_lake

# columns that tell when a job was at work, and what dlt numbers its loads by
VOLATILE = ("fetched_at", "last_fetched_at", "silver_seconds", "processed_at", "_dlt_load_id", "_dlt_id")
DAYS = ("2025-05-11", "2025-05-12")

Rows = dict[str, list[tuple[Any, ...]]]


@dataclass
class Stage:
    """Where jobs run: a workplace whose servers stand behind proxies, and what brings it back to a state."""

    place: Workplace
    postgres_settings: Settings  # of the server past the proxy
    script: Script = field(default_factory=Script)
    s3: s3fs.S3FileSystem | None = None
    saved: Path | None = None

    def finish(self, *job: str) -> float:
        """Run a job to its good end; its seconds."""
        started = time.monotonic()
        self.place.finish(*job)
        return time.monotonic() - started

    def save(self) -> None:
        """Keep everything as it is now."""
        self.saved = self.place.settings.data_dir.with_name("saved")
        self.place.settings.data_dir.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.place.settings.data_dir, self.saved, ignore=shutil.ignore_patterns("jobs"))
        copy_database(self.postgres_settings, self.database, f"{self.database}_saved")
        if self.s3:
            self.s3.pipe_file(f"{self.lake}-saved/.saved", b"")  # an empty lake is no folder on S3
            self._copy_objects(self.lake, f"{self.lake}-saved")

    def restore(self) -> None:
        """Bring everything back to how it was kept."""
        assert self.saved
        shutil.rmtree(self.place.settings.data_dir)
        shutil.copytree(self.saved, self.place.settings.data_dir)
        copy_database(self.postgres_settings, f"{self.database}_saved", self.database)
        if self.s3:
            self.s3.rm(self.s3.find(self.lake))
            self._copy_objects(f"{self.lake}-saved", self.lake)

    @property
    def folder(self) -> Path:
        return self.place.settings.data_dir.parent

    def connect(self, database: str) -> Any:
        """A connection to PostgreSQL past the proxy."""
        return psycopg2.connect(**self.postgres_settings.postgres_parameters() | {"dbname": database})

    @property
    def lake(self) -> str:
        return self.place.settings.lake_url.removeprefix("s3://")

    @property
    def database(self) -> str:
        return str(self.place.settings.postgres_parameters()["dbname"])

    def _copy_objects(self, source: str, target: str) -> None:
        assert self.s3
        for key in self.s3.find(source):
            self.s3.copy(key, target + key.removeprefix(source))


@contextmanager
def open_stage(place: Workplace, postgres_server: Settings, s3_server: S3Server | None) -> Iterator[Stage]:
    """A stage for the length of a `with` block, on files where there is no S3 server."""
    stage = Stage(place, postgres_server)
    with ExitStack() as stack:
        database = stage.database
        socket = f"{postgres_server.postgres_socket_dir}/.s.PGSQL.5432"
        postgres = stack.enter_context(postgres_proxy(socket, stage.script))
        url = f"postgresql://postgres:@127.0.0.1:{postgres.port}/{database}"
        place.configure(POSTGRES_URL=url)
        if s3_server:
            s3 = stack.enter_context(s3_proxy(s3_server.endpoint_url, stage.script))
            lake = f"s3://bike-data-flow/stage-{time.time_ns()}"
            place.configure(
                **s3_server.environment | {"LAKE_URL": lake, "AWS_ENDPOINT_URL_S3": s3.endpoint_url}
            )
            stage.s3 = s3_server.filesystem()
        yield stage


def write_archive(folder: Path, hours: tuple[int, ...]) -> str:
    """Two days' snapshots of some hours, and a broken one; where they are."""
    folder.mkdir()
    for text in (f"{day} {hour:02}:00:00" for day in DAYS for hour in hours):
        (folder / raw_name(text)).write_text(small_snapshot(moment(text)))
    (folder / f"content_{DAYS[1]}_{hours[0]:02}-30-00.txt").write_text("#id,name\n1,Rynek\n")
    return str(folder)


def rows_of(stage: Stage) -> Rows:
    """Every row of every table of lake and PostgreSQL, sorted, but for the history of runs and what tells
    when a job was at work."""
    return rows_of_lake(stage) | rows_of_postgres(stage)


def rows_of_lake(stage: Stage) -> Rows:
    """Those of bronze and of every model."""
    with closing(open_lake(stage.place.settings)) as connection:
        views = connection.execute("select view_name from duckdb_views() where not internal").fetchall()
        found = {}
        for (view,) in views:
            columns = [name for name, *_ in connection.execute(f"describe {view}").fetchall()]
            kept = ", ".join(f'"{name}"' for name in columns if name not in VOLATILE)
            found[f"lake {view}"] = connection.execute(f"select {kept} from {view} order by all").fetchall()
    return {name: rows for name, rows in found.items() if "pipeline" not in name}


def rows_of_postgres(stage: Stage) -> Rows:
    """Those of the public tables."""
    with (
        closing(stage.connect(stage.database)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "select table_name, string_agg(format('%%I', column_name), ', ' order by ordinal_position) "
            "from information_schema.columns "
            "where table_schema = 'public' and column_name <> all(%s) group by 1",
            [list(VOLATILE)],
        )
        tables = [row for row in cursor.fetchall() if not row[0].startswith("pipeline")]
        found = {}
        for table, columns in tables:
            cursor.execute(f"select t::text from (select {columns} from {table}) as t order by 1")
            found[f"postgres {table}"] = cursor.fetchall()
    return found


def differences(expected: Rows, found: Rows) -> str:
    """The tables whose rows are not the expected ones, a line each; empty where all are."""
    wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    return "\n".join(_difference(name, expected.get(name, []), found.get(name, [])) for name in sorted(wrong))


def _difference(table: str, expected: list[tuple[Any, ...]], found: list[tuple[Any, ...]]) -> str:
    lost = [row for row in expected if row not in found]
    new = [row for row in found if row not in expected]
    return f"{table}: rows {len(expected)} → {len(found)}, lost {lost[:3]}, new {new[:3]}"
