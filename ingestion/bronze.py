"""Loads a source's raw tables into bronze with dlt, one load package per observed day.

The observed day travels in the package's own state, so a package that a crash left pending still lands
under its own `dt` when a later run finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date
from typing import Any

import dlt
import pendulum
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.common.storages.exceptions import CurrentLoadPackageStateNotAvailable
from dlt.common.storages.load_package import commit_load_package_state, load_package_state
from dlt.extract import DltResource, DltSource

from ingestion.lake import Lake
from ingestion.settings import Settings

logger = logging.getLogger(__name__)

_FROZEN = {"tables": "evolve", "columns": "freeze", "data_type": "freeze"}


def open_pipeline(source: str, settings: Settings) -> dlt.Pipeline:
    """The dlt pipeline of a source, with its state restored from the lake where the working directory was
    lost, and with what an interrupted run left pending finished first."""
    lake = Lake.of(settings)
    pipeline = dlt.pipeline(
        source,
        destination=dlt.destinations.filesystem(
            **lake.dlt_destination_options(), current_datetime=_package_day
        ),
        dataset_name=source,
    )
    if pipeline.has_pending_data:
        # before any sync: of a pipeline that never loaded, a sync throws away what is pending
        logger.warning("Finishing the load that an earlier run left pending: %s.", source)
        _finish_pending(pipeline)
    elif pipeline.first_run:
        pipeline.sync_destination()
    return pipeline


def _finish_pending(pipeline: dlt.Pipeline) -> None:
    """Load what an interrupted run extracted or normalized, and take over the state that came with it.

    dlt commits a normalized package and then deletes the extracted one; killed in between it has both, and
    could not commit the first a second time.
    """
    normalized = set(pipeline.list_normalized_load_packages())
    for load_id in set(pipeline.list_extracted_load_packages()) & normalized:
        pipeline._get_normalize_storage().extracted_packages.delete_package(load_id)
    pipeline.normalize()
    pipeline.load()
    pipeline.sync_destination()  # the state of the package may not have been saved locally


def load_day(
    pipeline: dlt.Pipeline,
    day: date,
    tables: dict[str, Iterable[pa.Table]],
    state: dict[str, Any] | None = None,
) -> None:
    """Load Arrow tables that were observed on one UTC day, and merge `state` into the source's state, as one
    load package: both are in the lake or neither is."""
    pipeline.run(_source(pipeline.pipeline_name, day, tables, state or {}))


def source_state(pipeline: dlt.Pipeline) -> dict[str, Any]:
    """The source's state as the last load left it: where its cursors live."""
    sources: dict[str, Any] = pipeline.state.get("sources", {})
    return sources.get(pipeline.pipeline_name, {})


def read_bronze_day(
    lake: Lake, source: str, table: str, day: date, columns: list[str]
) -> list[dict[str, Any]]:
    """The rows of one day of a bronze table, some columns only; empty where the day has none."""
    filesystem = lake.filesystem()
    rows: list[dict[str, Any]] = []
    for path in filesystem.glob(lake.bronze_day(source, table, day).removeprefix("s3://")):
        with filesystem.open(path, "rb") as file:
            # without threads: they would still hold the Python file when the process ends, and abort it
            found = pq.ParquetFile(file, pre_buffer=False).read(columns=columns, use_threads=False)
            rows += found.to_pylist()
    return rows


def _source(name: str, day: date, tables: dict[str, Iterable[pa.Table]], state: dict[str, Any]) -> DltSource:
    @dlt.source(name=name, schema_contract=_FROZEN)  # type: ignore[arg-type]
    def source() -> Iterator[DltResource]:
        for table, chunks in tables.items():
            yield dlt.resource(_remember_day(chunks, day), name=table, write_disposition="append")
        if state:
            yield dlt.resource(_advance_cursors(state), name="cursors")

    return source()


def _remember_day(chunks: Iterable[pa.Table], day: date) -> Iterator[pa.Table]:
    load_package_state()["state"]["observed_day"] = day.isoformat()  # type: ignore[typeddict-unknown-key]
    commit_load_package_state()
    yield from chunks


def _advance_cursors(state: dict[str, Any]) -> Iterator[Any]:
    # runs within extraction, so dlt saves the state with the package
    dlt.current.source_state().update(state)
    yield from ()


def _package_day() -> pendulum.DateTime:
    """The observed day of the package being loaded, for the layout's date placeholders."""
    with suppress(CurrentLoadPackageStateNotAvailable, KeyError):
        return pendulum.parse(load_package_state()["state"]["observed_day"], tz="UTC")  # type: ignore
    return pendulum.now("UTC")
