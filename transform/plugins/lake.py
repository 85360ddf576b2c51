"""dbt-duckdb plugin: what dbt's DuckDB needs to work on the lake, and what SQL cannot do to its files.

It loads the pinned extensions, holds the credentials, names the lake to SQL (`getvariable('lake')`), makes
views of every model that is built, and publishes and removes partitions.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import TargetConfig
from dbt_common.exceptions import DbtRuntimeError

from ingestion.lake import Lake, publish_file, quoted, unfinished_path
from ingestion.schemas import BRONZE
from ingestion.settings import Settings, load_settings

LAYERS = ("silver", "gold")
SEEDS = Path(__file__).resolve().parent.parent / "seeds"

# how long libpq waits for a server that went away without a word
PATIENCE = ("connect_timeout=10", "keepalives_idle=30", "keepalives_interval=10", "keepalives_count=3")

logger = logging.getLogger("bike-data-flow")

_listed_days: list[date] | None = None
_scratch: str | None = None


@contextmanager
def listing_only(days: Collection[date]) -> Iterator[None]:
    """Have every dbt run of this process list bronze of these UTC days alone, one or more, for the length of
    a `with` block.

    What reads bronze leaves every other day as it is, whatever became of its objects. So a process that runs
    dbt every minute does not list the whole history each time; it has to now and then.
    """
    if not days:
        raise ValueError("No day to list: an empty list of days. Give one or more.")
    global _listed_days  # of the process: dbt builds models in threads of its own
    before, _listed_days = _listed_days, sorted(days)
    try:
        yield
    finally:
        _listed_days = before


class Plugin(BasePlugin):
    """Known to dbt as the plugin `lake`."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self.settings = load_settings()
        if plugin_config["environment"] != self.settings.environment:
            raise DbtRuntimeError(
                f"dbt's target is not of this environment: {plugin_config['environment']}. The settings say "
                f"ENVIRONMENT={self.settings.environment}: export the one you mean and leave --target out."
            )
        self.lake = Lake.of(self.settings)
        self.warehouse_lock = threading.Lock()
        self.scratch = _new_scratch()
        _write_empty_bronze(Path(self.scratch))

    def update_connection_config(self, creds: Any, config: dict[str, Any]) -> None:
        config.update(
            {
                "memory_limit": self.settings.duckdb_memory_limit,
                "threads": self.settings.duckdb_threads,
                "temp_directory": os.path.join(self.scratch, "spill"),
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        self.conn = conn
        prepare_connection(conn, self.settings, self.lake)
        # PostgreSQL is attached for one call of dbt at a time: a connection that broke meanwhile fails that
        # call, asked for before each statement or not
        conn.execute("set global pg_pool_health_check_query = ''")
        if self.lake.is_local:
            # the system keeps files in memory by itself; a copy in DuckDB's grows with every day that is read
            conn.execute("set global enable_external_file_cache = false")
        else:
            # size and tag of an object, asked for once until this process writes it anew; nobody else may,
            # and no statement may read what it writes: the tag of the old object would stay
            conn.execute("set global enable_http_metadata_cache = true")
        # what a call of dbt built, so that its tests can look at that alone; each begins with an empty one
        conn.execute("create table built_days (model varchar, object varchar)")
        self.configure_cursor(conn)
        create_seeds(conn)
        try:
            for layer in LAYERS:
                create_views(conn, self.lake, layer)
        except duckdb.Error as error:
            raise DbtRuntimeError(
                f"The lake is out of reach: {self.lake.url}. Check LAKE_URL and the AWS settings.\n{error}"
            ) from error

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        # Variables live as long as a cursor, and dbt opens one for each node: one call for all of them
        first = first_exported_day(self.settings.export_retention_days, datetime.now(UTC).date())
        listed = None if _listed_days is None else f"[{', '.join(map(str, _listed_days))}]"
        values = {
            "lake": quoted(self.lake.root),
            "scratch": quoted(self.scratch),
            "landing_schema": quoted(self.settings.landing_schema),
            "public_schema": quoted(self.settings.postgres_schema),
            "export_from_day": f"{_quoted_or_null(first)}::date",
            "listed_days": f"{_quoted_or_null(listed)}::date[]",
        }
        statements = [f"set variable {name} = {value}" for name, value in values.items()]
        cursor.execute("; ".join(statements))

    def store(self, target_config: TargetConfig) -> None:
        """What a materialization asks for by `operation`: to prepare, publish or remove one object, or to
        attach the warehouse.

        On a local disk an unfinished file is renamed into place in one step. On S3 an object that was
        written is published already, and there is nothing to do.
        """
        assert target_config.location is not None
        path = target_config.location.path
        operation = target_config.config["operation"]
        if operation == "prepare" and self.lake.is_local:
            _prepare(Path(path))
        elif operation == "publish" and self.lake.is_local:
            publish_file(unfinished_path(path), path)
        elif operation == "remove":
            filesystem = self.lake.filesystem()
            if filesystem.exists(path):
                filesystem.rm_file(path)
        elif operation == "attach_warehouse":
            self._attach_warehouse(target_config.config["ddl"])

    def _attach_warehouse(self, ddl: str) -> None:
        """Attach PostgreSQL as the database `warehouse`, once, and make there what `ddl` says. Models are
        built in several threads, and neither statement stands being given twice at once."""
        with self.warehouse_lock:
            cursor = self.conn.cursor()
            attached = cursor.execute("select 1 from duckdb_databases() where database_name = 'warehouse'")
            if not attached.fetchall():
                given = self.settings.postgres_parameters()
                tls = [f"{name}={given[name]}" for name in ("sslmode", "sslrootcert") if name in given]
                options = quoted(" ".join([*tls, *PATIENCE]))
                cursor.execute(f"attach {options} as warehouse (type postgres, secret warehouse)")
                cursor.execute("call postgres_execute('warehouse', ?)", [ddl])
                cursor.execute("call pg_clear_cache()")
                # reads the catalog now: threads that meet it half-read would find no tables in it
                cursor.execute(f"from warehouse.{self.settings.landing_schema}.pending_objects limit 0")


def _new_scratch() -> str:
    """A scratch folder; the one of a DuckDB that this process had before goes."""
    global _scratch
    if _scratch is None:
        atexit.register(lambda: shutil.rmtree(_scratch or "", ignore_errors=True))
    else:
        shutil.rmtree(_scratch, ignore_errors=True)
    _scratch = tempfile.mkdtemp(prefix="bike-data-flow-")
    return _scratch


def _quoted_or_null(value: date | str | None) -> str:
    return "null" if value is None else quoted(str(value))


def first_exported_day(retention_days: int | None, today: date) -> date | None:
    """The oldest UTC day that PostgreSQL holds, `today` being one of `retention_days`; None for all days."""
    if retention_days is None:
        return None
    return date.fromordinal(max(today.toordinal() - retention_days + 1, 1))


def open_lake(
    settings: Settings, database: str = ":memory:", layers: Iterable[str] = LAYERS
) -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own with a view for every model that is built, as dbt's has; close it in the end."""
    config: dict[str, Any] = {"memory_limit": settings.duckdb_memory_limit}
    conn = duckdb.connect(database, config=config | {"autoinstall_known_extensions": False})
    lake = Lake.of(settings)
    prepare_connection(conn, settings, lake)
    conn.execute(f"set variable lake = {quoted(lake.root)}")
    create_seeds(conn)
    for layer in layers:
        create_views(conn, lake, layer)
    return conn


def prepare_connection(conn: duckdb.DuckDBPyConnection, settings: Settings, lake: Lake) -> None:
    """Tell moments in UTC, load the extensions, set the secrets that reach the lake and the warehouse."""
    conn.execute("set global timezone = 'UTC'")
    load_extension(conn, "postgres_scanner")
    conn.execute(_postgres_secret(settings))
    for statement in storage_statements(lake):
        conn.execute(statement)


def storage_statements(lake: Lake) -> list[str]:
    """What any DuckDB has to be told to reach the lake's bucket; nothing for a local lake."""
    secret = lake.duckdb_secret()
    if secret is None:
        return []
    statements = [f"load {quoted(extension_file('httpfs'))}"]
    if "credential_chain" in secret:
        statements.append(f"load {quoted(extension_file('aws'))}")
    if lake.s3.ca_bundle:
        statements.append(f"set global ca_cert_file = {quoted(lake.s3.ca_bundle)}")
    return [*statements, secret]


def _postgres_secret(settings: Settings) -> str:
    known = {"host", "port", "user", "password", "dbname"}
    rendered = ", ".join(
        f"{name.replace('dbname', 'database')} {quoted(value)}"
        for name, value in settings.postgres_parameters().items()
        if name in known and value
    )
    return f"create or replace secret warehouse (type postgres, {rendered})"


def _prepare(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(unfinished_path(str(path))).unlink(missing_ok=True)


def create_seeds(conn: duckdb.DuckDBPyConnection) -> None:
    """A table for every seed, so that any process finds them, with or without `dbt seed`."""
    for file in sorted(SEEDS.glob("*.csv")):
        conn.execute(
            f"create or replace table {file.stem} as from read_csv({quoted(str(file))}, header = true)"
        )


def create_views(conn: duckdb.DuckDBPyConnection, lake: Lake, layer: str) -> None:
    """A view for every model of a layer that has a state object, that is, was built before.

    Each reads the objects in the variable of its own name where that is set, and all its days otherwise.
    """
    states = conn.execute(
        "select file from glob(getvariable('lake') || ?)", [f"/{layer}/*/_state.parquet"]
    ).fetchall()
    for (state,) in states:
        model = state.split("/")[-2]
        [(newest,)] = conn.execute(
            "select coalesce(max(dt) filter (fingerprint is not null), max(dt)) "
            f"from read_parquet({quoted(state)})"
        ).fetchall()
        folder = f"{lake.root}/{layer}/{model}"
        if newest is None:  # built from an empty lake
            partitions = one = f"{folder}/_empty.parquet"
        else:
            partitions, one = f"{folder}/dt=*/data.parquet", f"{folder}/dt={newest}/data.parquet"
        # bound to one object, not to all of them: every day of a model has the same columns; to whichever
        # there is where a build has just removed that day
        if not any(_create_view(conn, model, partitions, bound) for bound in (one, partitions)):
            logger.warning("%s is not whole, as a killed build leaves it; the next build mends it.", model)


def _create_view(conn: duckdb.DuckDBPyConnection, model: str, partitions: str, bound: str) -> bool:
    """Make the view of a model's partitions, with the columns of those it is `bound` to; tells whether any of
    these are there."""
    conn.execute(f"set variable {model} = [{quoted(bound)}]")
    try:
        conn.execute(
            f"create or replace view {model} as select * from read_parquet("
            f"coalesce(getvariable('{model}'), [{quoted(partitions)}]), hive_partitioning = true)"
        )
    except duckdb.IOException as error:
        # S3 tells of one object that is not there otherwise than a disk does
        if "No files found" not in str(error) and getattr(error, "status_code", None) != 404:
            raise
        return False
    finally:
        conn.execute(f"reset variable {model}")
    return True


def create_bronze_views(conn: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """A view `<source>__<table>` for every bronze table, as dbt's sources are named; where the lake holds
    nothing of one, an empty table with its columns."""
    for source, tables in BRONZE.items():
        for table, schema in tables.items():
            name, folder = f"{source}__{table}", f"{lake.root}/bronze/{source}/{table}"
            newest = _newest_day(lake, folder)
            if newest is None:
                conn.register("nothing_yet", schema.empty_table())
                conn.execute(f"create table {name} as select *, null::date as dt from nothing_yet")
                conn.unregister("nothing_yet")
                continue
            every_object = quoted(f"{folder}/dt=*/*.parquet")
            # bound to one day: listing all objects takes long on S3, and bronze's schemas are frozen
            conn.execute(f"set variable {name} = [{quoted(f'{folder}/{newest}/*.parquet')}]")
            # `dt` is cast here: DuckDB 1.5.5 dies of max() of a path's own date in one object (duckdb#25629)
            conn.execute(
                f"create view {name} as select * replace (dt::date as dt) from read_parquet("
                f"coalesce(getvariable('{name}'), [{every_object}]), "
                "hive_partitioning = true, hive_types_autocast = false)"
            )
            conn.execute(f"reset variable {name}")


def _newest_day(lake: Lake, folder: str) -> str | None:
    """The last `dt=…` below a folder that holds an object; one that is empty was left by a kill."""
    filesystem = lake.filesystem()
    days = sorted((os.path.basename(day) for day in filesystem.glob(f"{folder}/dt=*")), reverse=True)
    return next((day for day in days if filesystem.glob(f"{folder}/{day}/*.parquet")), None)


def load_extension(conn: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load a signed DuckDB extension from its pinned wheel; nothing is downloaded."""
    conn.execute(f"load {quoted(extension_file(name))}")


def extension_file(name: str) -> str:
    """Where the pinned wheel of a DuckDB extension has it."""
    wheel = importlib.import_module(f"duckdb_extension_{name}")
    version = f"v{duckdb.__version__}"
    return str(Path(wheel.__file__ or "").parent / "extensions" / version / f"{name}.duckdb_extension")


def _write_empty_bronze(scratch: Path) -> None:
    """One empty file per bronze table, which stands in where the lake holds no object of it."""
    for source, tables in BRONZE.items():
        for table, schema in tables.items():
            pq.write_table(schema.empty_table(), scratch / f"{source}__{table}.parquet")
