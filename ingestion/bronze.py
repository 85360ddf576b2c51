"""Loads a source's raw tables into bronze with dlt, one load package per observed day.

The observed day travels in the package's own state, so a package that a crash left pending still lands
under its own `dt` when a later run finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dlt
import pendulum
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.common.pipeline import get_dlt_pipelines_dir
from dlt.common.schema.typing import TSchemaContractDict
from dlt.common.storages.exceptions import CurrentLoadPackageStateNotAvailable
from dlt.common.storages.load_package import (
    LoadPackageInfo,
    commit_load_package_state,
    load_package_state,
)
from dlt.extract import DltResource, DltSource
from dlt.pipeline.exceptions import PipelineStepFailed

from ingestion.lake import Lake
from ingestion.lean_dlt import make_dlt_lean
from ingestion.run_history import Step, note
from ingestion.settings import Settings
from ingestion.working_directory import land_set_aside, set_torn_aside

logger = logging.getLogger(__name__)

PACKAGES_KEPT = 20

_FROZEN: TSchemaContractDict = {"tables": "evolve", "columns": "freeze", "data_type": "freeze"}


# working directories and lakes whose state this process has compared; nobody else changes it meanwhile
_synced: set[tuple[str, str]] = set()
# working directories that this process has looked at: only what ends a process tears them
_mended: set[Path] = set()


class BronzeError(ValueError):
    """A bronze object that cannot be read; its message names it."""


def open_pipeline(source: str, settings: Settings, *, needs_lake: bool = True) -> dlt.Pipeline:
    """The dlt pipeline of a source, with its state restored from the lake where another machine was at work
    or the working directory was lost, and with what an interrupted run left pending finished first.

    Where the lake is not needed yet, what is pending may stay so while it is out of reach.
    """
    pipeline = _pipeline(source, settings)
    place = (pipeline.working_dir, settings.lake_url)
    if pipeline.has_pending_data:
        # before any sync: of a pipeline that never loaded, a sync throws away what is pending
        logger.warning("Finishing the load that an earlier run left pending: %s.", source)
        try:
            _finish_pending(pipeline)
        except PipelineStepFailed as error:
            if needs_lake:
                raise
            logger.warning("%s waits for the lake: %s.", source, error.exception)
    elif pipeline.first_run or place not in _synced:
        pipeline.sync_destination()
        _synced.add(place)
    return pipeline


def _pipeline(source: str, settings: Settings) -> dlt.Pipeline:
    make_dlt_lean()
    folder = Path(get_dlt_pipelines_dir(), source)
    if folder not in _mended:
        set_torn_aside(folder)
        try:
            land_set_aside(Lake.of(settings), folder)
            _mended.add(folder)
        except Exception as error:  # whatever the store raises that is out of reach
            logger.warning("What was set aside waits for the lake: %s.", error)
    return dlt.pipeline(
        source,
        destination=dlt.destinations.filesystem(
            **Lake.of(settings).dlt_destination_options(), current_datetime=_package_day
        ),
        dataset_name=source,
    )


def _finish_pending(pipeline: dlt.Pipeline) -> None:
    """Load what an interrupted run extracted or normalized, and take over the state that came with it."""
    with _noted(pipeline):
        _normalize(pipeline)
        _load(pipeline)
    pipeline.sync_destination()  # the state of the package may not have been saved locally


def _normalize(pipeline: dlt.Pipeline) -> None:
    """Normalize every extracted package.

    dlt commits a normalized package and then deletes the extracted one; killed in between it has both, and
    could not commit the first a second time.
    """
    normalized = set(pipeline.list_normalized_load_packages())
    for load_id in set(pipeline.list_extracted_load_packages()) & normalized:
        pipeline._get_normalize_storage().extracted_packages.delete_package(load_id)
    pipeline.normalize()


def _load(pipeline: dlt.Pipeline) -> None:
    """Load every normalized package. dlt keeps loaded ones on the local disk for good: only the newest stay,
    for `dlt pipeline … load-package`."""
    pipeline.load()
    storage = pipeline._get_load_storage()
    for load_id in sorted(storage.list_loaded_packages())[:-PACKAGES_KEPT]:
        storage.loaded_packages.delete_package(load_id)


def load_day(
    pipeline: dlt.Pipeline,
    day: date,
    tables: Mapping[str, Iterable[pa.Table]],
    state: dict[str, Any] | None = None,
) -> None:
    """Load Arrow tables that were observed on one UTC day, and merge `state` into the source's state, as one
    load package: both are in the lake or neither is. Where the lake is out of reach the package stays pending
    in dlt's working directory, and the error is raised."""
    with _noted(pipeline):
        pipeline.extract(_source(pipeline.pipeline_name, day, tables, state or {}))
        _normalize(pipeline)
        _load(pipeline)


def load_day_when_possible(
    source: str, settings: Settings, day: date, tables: Mapping[str, Iterable[pa.Table]]
) -> None:
    """Load Arrow tables of one UTC day and of a source without cursors, with what is pending of it; where the
    lake is out of reach, leave them pending with a warning."""
    pipeline = _pipeline(source, settings)
    pipeline.extract(_source(source, day, tables, {}))
    _normalize(pipeline)
    try:
        _load(pipeline)
    except PipelineStepFailed as error:
        logger.warning("%s waits for the lake, and lands with the next load: %s.", source, error.exception)


def load_pending(source: str, settings: Settings) -> None:
    """Load what is pending of a source without cursors."""
    pipeline = _pipeline(source, settings)
    if pipeline.has_pending_data:
        _normalize(pipeline)
        _load(pipeline)


@contextmanager
def _noted(pipeline: dlt.Pipeline) -> Iterator[None]:
    """Note what dlt reports of the load in a `with` block, as steps of the run.

    Raises `KeyboardInterrupt` where dlt was stopped by a signal, which it reports as a failed step.
    """
    started_at = datetime.now(UTC)
    try:
        yield
    except PipelineStepFailed as failure:
        error = f"{type(failure.exception).__name__}: {failure.exception}"
        step = (str(failure.step), "pipeline_step", "failed", started_at, datetime.now(UTC))
        note(Step("dlt_load", pipeline.pipeline_name, *step, load_id=failure.load_id, error=error))
        if isinstance(failure.exception, KeyboardInterrupt):
            raise KeyboardInterrupt from failure
        raise
    _note_load(pipeline, started_at)


def _note_load(pipeline: dlt.Pipeline, started_at: datetime) -> None:
    """One step per table of each package that was just loaded; rows are not known of what an earlier process
    normalized."""
    trace = pipeline.last_trace
    if not (trace and trace.last_load_info):  # nothing was pending after all
        return
    metrics = trace.last_normalize_info.metrics if trace.last_normalize_info else {}
    for package in trace.last_load_info.load_packages:
        rows = {
            table: written.items_count
            for part in metrics.get(package.load_id, [])
            for table, written in part["table_metrics"].items()
        }
        for table, size in sorted(_loaded_bytes(package).items()):
            times = (started_at, package.completed_at)
            step = Step("dlt_load", pipeline.pipeline_name, table, "table", package.state, *times)
            step.rows_count, step.size_bytes, step.load_id = rows.get(table), size, package.load_id
            note(step)


def _loaded_bytes(package: LoadPackageInfo) -> dict[str, int]:
    """Size of a package's objects by table, dlt's own tables left out."""
    sizes: dict[str, int] = {}
    for job in package.jobs["completed_jobs"]:
        table = job.job_file_info.table_name
        if not table.startswith("_dlt_"):
            sizes[table] = sizes.get(table, 0) + job.file_size
    return sizes


def source_state(pipeline: dlt.Pipeline) -> dict[str, Any]:
    """The source's state as the last load left it: where its cursors live."""
    sources: dict[str, Any] = pipeline.state.get("sources", {})
    state: dict[str, Any] = sources.get(pipeline.pipeline_name, {})
    return state


def read_bronze_day(
    lake: Lake, source: str, table: str, day: date, columns: list[str]
) -> list[dict[str, Any]]:
    """The rows of one day of a bronze table, some columns only; empty where the day has none.

    Raises `BronzeError`.
    """
    filesystem = lake.filesystem()
    rows: list[dict[str, Any]] = []
    for path in filesystem.glob(lake.bronze_day(source, table, day).removeprefix("s3://")):
        with filesystem.open(path, "rb") as file:
            # without threads: they would still hold the Python file when the process ends, and abort it
            try:
                found = pq.ParquetFile(file, pre_buffer=False).read(columns=columns, use_threads=False)
            except pa.ArrowInvalid as error:
                raise BronzeError(
                    f"A bronze object is not whole: {path}. Bring it back from a copy, or move it out of "
                    "bronze and import its snapshots again."
                ) from error
            rows += found.to_pylist()
    return rows


def _source(
    name: str, day: date, tables: Mapping[str, Iterable[pa.Table]], state: dict[str, Any]
) -> DltSource:
    @dlt.source(name=name, schema_contract=_FROZEN)
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
