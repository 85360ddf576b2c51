"""Reads few objects of a lake, whatever its history and whoever is at work on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.lake import Lake, quoted
from ingestion.settings import Settings
from transform.plugins.lake import LAYERS, storage_statements

TRIES = 5

logger = logging.getLogger("bike-data-flow")

Result = TypeVar("Result")


def read_again_where_objects_go(read: Callable[[], Result]) -> Result:
    """What `read` gives, which starts over where a job at work replaces or folds what it was to read.

    DuckDB compares ETags, so that nobody reads half of one object and half of the next; the exception that it
    raises holds the object's bytes, and Python's DuckDB 1.5.5 fails at decoding them.
    """
    for _ in range(TRIES - 1):
        try:
            return read()
        except (duckdb.IOException, FileNotFoundError, UnicodeDecodeError):
            pass
    return read()


@dataclass(frozen=True)
class ModelState:
    """The days that a model of the lake holds: (dt, fingerprint, row_count, built_at, build_seconds); the
    fingerprint is null where a day waits to be rebuilt."""

    folder: str  # <lake>/<layer>/<model>
    layer: str
    days: pa.Table

    @property
    def path(self) -> str:
        return f"{self.folder}/_state.parquet"


def read_states(lake: Lake) -> dict[str, ModelState]:
    """The state of every model that was built, by name; without those that are not whole."""
    states = {}
    for layer, path, days in _state_objects(lake):
        if days is None:
            logger.warning("Not whole, and made anew by the next build: %s.", path)
            continue
        model = path.split("/")[-2]
        states[model] = ModelState(f"{lake.root}/{layer}/{model}", layer, days)
    return states


def find_torn_states(lake: Lake) -> list[str]:
    """Paths of the models' states that are not whole."""
    return [path for _, path, days in _state_objects(lake) if days is None]


def _state_objects(lake: Lake) -> Iterator[tuple[str, str, pa.Table | None]]:
    """Layer, path and days of every state; None for the days of one that is not whole."""
    for layer in LAYERS:
        folders = [entry["name"] for entry in _entries(lake, layer) if entry["type"] == "directory"]
        paths = [f"{folder}/_state.parquet" for folder in folders]
        found = lake.filesystem().cat(paths, on_error="return") if paths else {}
        for path, content in found.items():
            if isinstance(content, FileNotFoundError):  # never built to its end
                continue
            if isinstance(content, Exception):
                raise content
            try:
                yield layer, path, pq.read_table(pa.BufferReader(content), use_threads=False)
            except pa.ArrowInvalid:
                yield layer, path, None


def _entries(lake: Lake, folder: str) -> list[dict[str, Any]]:
    """What stands in a folder below the lake; nothing where there is no such folder."""
    try:
        entries: list[dict[str, Any]] = lake.filesystem().ls(f"{lake.root}/{folder}", detail=True)
        return entries
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class BronzeObject:
    path: str
    written_at: datetime


class LakeReader:
    """Reads few objects of a lake, found by listing folders rather than the lake."""

    def __init__(self, settings: Settings) -> None:
        self.lake = Lake.of(settings)
        self.filesystem = self.lake.filesystem()
        self.connection = duckdb.connect(
            config={"memory_limit": settings.duckdb_memory_limit, "threads": settings.duckdb_threads}
        )
        for statement in storage_statements(self.lake):
            self.connection.execute(statement)
        self.connection.execute("set timezone = 'UTC'")
        self.states = read_states(self.lake)

    def close(self) -> None:
        self.connection.close()

    def row_count(self, model: str) -> int:
        """Rows of all days of a model."""
        return sum(self.states[model].days["row_count"].to_pylist()) if model in self.states else 0

    def built_days(self, model: str) -> list[date]:
        """Days of a model that hold rows, in order; also those that wait to be rebuilt."""
        if model not in self.states:
            return []
        state = self.states[model].days.select(["dt", "row_count"]).to_pylist()
        return sorted(row["dt"] for row in state if row["row_count"])

    def built_at(self, model: str, day: date) -> datetime | None:
        """When a day was built last, None where it waits to be rebuilt."""
        if model not in self.states:
            return None
        state = self.states[model].days.select(["dt", "fingerprint", "built_at"]).to_pylist()
        found = [row["built_at"] for row in state if row["dt"] == day and row["fingerprint"]]
        return found[0].replace(tzinfo=UTC) if found and found[0] else None

    def model_rows(self, model: str, days: Iterable[date], query: str) -> list[tuple[Any, ...]]:
        """What a query gives on `rows`, some of the days that were built of a model."""
        paths = {day: f"{self.states[model].folder}/dt={day}/data.parquet" for day in days}
        # one that waits may have lost its object: its day vanished
        there = [
            path
            for day, path in paths.items()
            if self.built_at(model, day) is not None or self.filesystem.exists(path)
        ]
        return self.rows(there, query)

    def rows(self, paths: list[str], query: str) -> list[tuple[Any, ...]]:
        """What a query gives on `rows`, some objects; nothing of none."""
        if not paths:
            return []
        listed = ", ".join(quoted(path) for path in paths)
        source = f"read_parquet([{listed}], hive_partitioning = false)"
        return self.connection.execute(f"with rows as (from {source}) {query}").fetchall()

    def bronze_days(self, table: str) -> list[date]:
        """Days of a bronze table (`<source>/<table>`), in order."""
        names = [entry["name"].rsplit("/", 1)[-1] for entry in _entries(self.lake, f"bronze/{table}")]
        return sorted(date.fromisoformat(name[3:]) for name in names if name.startswith("dt="))

    def bronze_objects(self, table: str, day: date) -> list[BronzeObject]:
        """Objects of a day of a bronze table, those written last first."""
        found = [
            BronzeObject(self._url(entry["name"]), _written_at(entry))
            for entry in _entries(self.lake, f"bronze/{table}/dt={day}")
            if entry["name"].endswith(".parquet")
        ]
        return sorted(found, key=lambda each: (each.written_at, each.path), reverse=True)

    def _url(self, path: str) -> str:
        return path if self.lake.is_local else f"s3://{path}"

    def size(self, layer: str) -> tuple[int, int]:
        """Objects and bytes of a layer; lists all of it."""
        try:
            found = self.filesystem.find(f"{self.lake.root}/{layer}", detail=True)
        except FileNotFoundError:
            return 0, 0
        return len(found), sum(entry["size"] for entry in found.values())


def _written_at(entry: dict[str, Any]) -> datetime:
    written_at: datetime | None = entry.get("LastModified")
    return written_at or datetime.fromtimestamp(entry["mtime"], UTC)
