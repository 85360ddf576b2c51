"""Folds the many small objects of a bronze table's UTC day into one, and dlt's many records of loads away.

    <LAKE_URL>/bronze/<source>/<table>/dt=YYYY-MM-DD/compacted-<token>.parquet

The token is the one by which `transform/` tells whether a day has changed: MD5 of the names of the objects
that were folded. Where they were the whole day, the day so keeps its token. What the object replaced stands
in its Parquet metadata under `replaced`, as {"compacted-….parquet": [names], …}: its own parts, and those of
every compacted object among them.

A fold takes steps, and a kill may follow any: a journal (`<LAKE_URL>/_compaction.json`) says what is to
happen; the new object is written and read back; the old ones are removed; the journal is removed. `recover`
finishes that, or takes it back where the new object is not whole.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.lake import Lake
from ingestion.schemas import BRONZE

JOURNAL = "_compaction.json"
TIME_COLUMNS = ("observed_at", "attempted_at", "started_at")  # one for each bronze table
# Of raw rows: neighbours compress together (8 MB of payloads to a quarter of a megabyte), yet one snapshot is
# read without the whole day.
ROW_GROUP_BYTES = 8 * 1024 * 1024
# Of objects that are fetched at once
FETCH_BYTES = 32 * 1024 * 1024
KEYS_PER_REMOVAL = 1000  # the most that S3 takes

_DAY_OBJECT = re.compile(r"/dt=(\d{4}-\d\d-\d\d)/([^/]+\.parquet)$")
_LOAD_OBJECT = re.compile(r"(\d+(?:\.\d+)?)\.[^.]+\.parquet$")  # <load_id>.<file_id>.parquet
_LOAD_RECORD = re.compile(r"__(\d+(?:\.\d+)?)\.jsonl$")  # <schema>__<load_id>.jsonl
_MODULUS = 2**256

logger = logging.getLogger(__name__)


class CompactionError(ValueError):
    """Bronze objects that cannot be folded, or a fold that cannot be finished."""


@dataclass(frozen=True)
class Part:
    """Objects of one UTC day of a bronze table that are to become one; `objects` are names below the lake,
    with their bytes."""

    source: str
    table: str
    day: date
    objects: dict[str, int]

    @property
    def folder(self) -> str:
        return f"bronze/{self.source}/{self.table}/dt={self.day.isoformat()}"

    @property
    def names(self) -> list[str]:
        return sorted(os.path.basename(name) for name in self.objects)

    @property
    def compacted_name(self) -> str:
        token = md5(",".join(self.names).encode(), usedforsecurity=False).hexdigest()
        return f"compacted-{token}.parquet"


@dataclass(frozen=True)
class Folded:
    """What became of a part."""

    part: Part
    bytes_after: int
    rows: int


@dataclass(frozen=True)
class Content:
    """Rows and a digest of all their values, whatever their order."""

    rows: int = 0
    digest: int = 0

    def __add__(self, other: Content) -> Content:
        return Content(self.rows + other.rows, (self.digest + other.digest) % _MODULUS)


@dataclass(frozen=True)
class _Journal:
    """A fold under way; names are those within the folder."""

    folder: str
    new: str
    old: list[str]
    rows: int
    digest: int


def find_parts(lake: Lake, now: datetime, days: Collection[date] | None = None) -> list[Part]:
    """What there is to fold, by table and day: closed UTC days of more than one object, and of the current
    day what was loaded in hours that have ended. With `days` only these are listed."""
    return [
        Part(source, table, day, objects)
        for source, tables in BRONZE.items()
        for table in tables
        for day, objects in sorted(_foldable(lake, f"bronze/{source}/{table}", now, days).items())
        if len(objects) > 1
    ]


def _foldable(
    lake: Lake, folder: str, now: datetime, days: Collection[date] | None
) -> dict[date, dict[str, int]]:
    folders = [folder] if days is None else [f"{folder}/dt={day.isoformat()}" for day in days]
    found: dict[date, dict[str, int]] = {}
    for name, size in (item for each in folders for item in _listed(lake, each).items()):
        if match := _DAY_OBJECT.search(name):
            day = date.fromisoformat(match[1])
            if day < now.date() or _was_loaded_before(match[2], _hour(now)):
                found.setdefault(day, {})[name] = size
    return found


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _was_loaded_before(name: str, moment: datetime) -> bool:
    loaded = _LOAD_OBJECT.match(name)
    return name.startswith("compacted-") or bool(loaded and float(loaded[1]) < moment.timestamp())


def fold(lake: Lake, part: Part, scratch: Path, check: Callable[[], None] = lambda: None) -> Folded:
    """Make one object of a part's, in a `scratch` folder of the local disk first. `check` is called before
    each step that others could see, and raises where this process must not go on.

    Raises `CompactionError`; the old objects stand then.
    """
    rows, ordered, content, replaced = _stage(lake, part, scratch / "rows.arrow")
    written = scratch / part.compacted_name
    _write(written, rows, ordered, {part.compacted_name: part.names} | replaced)
    new = f"{part.folder}/{part.compacted_name}"
    journal = _Journal(part.folder, part.compacted_name, part.names, content.rows, content.digest)
    (scratch / JOURNAL).write_text(json.dumps(asdict(journal)))
    check()
    _publish(lake, scratch / JOURNAL, JOURNAL)
    check()
    _publish(lake, written, new)
    if not _is_whole(lake, journal):
        _remove(lake, [new])
        _remove(lake, [JOURNAL])
        raise CompactionError(
            f"Folding lost or changed rows: {part.source}.{part.table} of {part.day}. "
            "The old objects stand and the new one is removed; check the disk or the store, and run again."
        )
    check()
    _remove(lake, list(part.objects))
    _remove(lake, [JOURNAL])
    size = written.stat().st_size
    written.unlink()
    return Folded(part, size, content.rows)


def _stage(
    lake: Lake, part: Part, path: Path
) -> tuple[pa.RecordBatchFileReader, list[tuple[int, int]], Content, dict[str, list[str]]]:
    """Bring a part's rows to the local disk, so that they are fetched once and memory stays bounded. Gives
    them, the order of their times as (batch, row), their content, and what compacted objects among them
    replaced."""
    schema = BRONZE[part.source][part.table]
    time_column = next(name for name in TIME_COLUMNS if name in schema.names)
    replaced = _replaced_by(lake, part)
    held = {name for names in replaced.values() for name in names}
    content, order = Content(), list[tuple[int, int, int]]()
    # an object that a compacted one holds already has come back, of a fold that failed or of a load that a
    # machine finished which did not know that it had landed
    wanted = {name: size for name, size in part.objects.items() if os.path.basename(name) not in held}
    with pa.ipc.new_file(path, schema) as staged:
        for name, data in _fetched(lake, wanted):
            file = _opened(data, name)
            if not file.schema_arrow.equals(schema):
                raise CompactionError(
                    f"Columns are not those of {part.source}.{part.table}: {name}. "
                    "Move the object out of bronze, or mend it."
                )
            for batch in _batches(file):
                times = batch.column(time_column).cast(pa.int64()).fill_null(0).to_pylist()
                number = staged.stats.num_record_batches
                order += [(time, number, row) for row, time in enumerate(times)]
                content += _batch_content(batch)
                staged.write_batch(batch)
    rows = pa.ipc.open_file(pa.memory_map(str(path)))
    path.unlink()  # it lives as long as it is mapped
    return rows, [(batch, row) for _, batch, row in sorted(order)], content, replaced


def _replaced_by(lake: Lake, part: Part) -> dict[str, list[str]]:
    """What the compacted objects among a part's replaced."""
    compacted = {
        name: size for name, size in part.objects.items() if os.path.basename(name).startswith("compacted-")
    }
    replaced: dict[str, list[str]] = {}
    for name, data in _fetched(lake, compacted):
        replaced |= json.loads((_opened(data, name).metadata.metadata or {}).get(b"replaced", b"{}"))
    return replaced


def _fetched(lake: Lake, objects: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each object, in order of names; several are fetched at once."""
    filesystem = lake.filesystem()
    for together in _bounded(objects):
        found = filesystem.cat([f"{lake.root}/{name}" for name in together])
        for name in together:
            yield name, found.pop(filesystem._strip_protocol(f"{lake.root}/{name}"))


def _bounded(objects: dict[str, int]) -> Iterator[list[str]]:
    together, size = list[str](), 0
    for name in sorted(objects):
        if together and size + objects[name] > FETCH_BYTES:
            yield together
            together, size = [], 0
        together.append(name)
        size += objects[name]
    if together:
        yield together


def _write(
    path: Path,
    rows: pa.RecordBatchFileReader,
    ordered: list[tuple[int, int]],
    replaced: dict[str, list[str]],
) -> None:
    # payloads differ from each other: their dictionary would hold them all
    dictionaries = [name for name in rows.schema.names if not name.startswith("payload")]
    with pq.ParquetWriter(
        path, rows.schema, compression="zstd", compression_level=9, use_dictionary=dictionaries
    ) as writer:
        together, size = list[pa.RecordBatch](), 0
        for batch, row in ordered:
            one = rows.get_batch(batch).slice(row, 1)
            together.append(one)
            size += one.nbytes
            if size >= ROW_GROUP_BYTES:
                writer.write_table(_joined(together))
                together, size = [], 0
        if together:
            writer.write_table(_joined(together))
        writer.add_key_value_metadata({"replaced": json.dumps(replaced)})


def _joined(batches: list[pa.RecordBatch]) -> pa.Table:
    # in one chunk: Parquet begins a page, which is compressed by itself, with a chunk where it can
    return pa.Table.from_batches(batches).combine_chunks()


def recover(lake: Lake) -> None:
    """Finish the fold that a killed job left, or take it back; asks once where there is none.

    Raises `CompactionError` where rows may be missing, and changes nothing then.
    """
    journal = _read_journal(lake)
    if journal is None:
        return
    logger.warning("Finishing the compaction that an earlier job left: %s.", journal.folder)
    present = {os.path.basename(name) for name in _listed(lake, journal.folder)}
    if journal.new in present and _is_whole(lake, journal):
        outdated = present & set(journal.old)
    elif set(journal.old) <= present:
        outdated = present & {journal.new}
    else:
        raise CompactionError(
            f"An interrupted compaction cannot be finished: {journal.folder}/{journal.new} is not whole, and "
            f"objects that it was made from are gone. Bring them back, or remove {lake.root}/{JOURNAL}."
        )
    outdated |= present & {f"_{journal.new}.unfinished"}
    _remove(lake, [f"{journal.folder}/{name}" for name in sorted(outdated)])
    _remove(lake, [JOURNAL])


def _read_journal(lake: Lake) -> _Journal | None:
    if lake.is_local:
        path = Path(lake.root, JOURNAL)
        return _parse_journal(lake, path.read_bytes()) if path.exists() else None
    client = lake.s3_client()  # fsspec would ask twice, and every job asks
    bucket, key = lake.bucket_and_key(JOURNAL)
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except client.exceptions.NoSuchKey:
        return None
    return _parse_journal(lake, answer["Body"].read())


def _parse_journal(lake: Lake, content: bytes) -> _Journal:
    try:
        return _Journal(**json.loads(content))
    except (ValueError, TypeError):
        raise CompactionError(
            f"A compaction's journal is not whole: {lake.root}/{JOURNAL}. Bring it back from a copy; without "
            "one, remove a compacted-… object of bronze whose parts still stand beside it, then the journal."
        ) from None


def _is_whole(lake: Lake, journal: _Journal) -> bool:
    """Whether the new object, read back, holds what the old ones held."""
    data = lake.filesystem().cat_file(f"{lake.root}/{journal.folder}/{journal.new}")
    try:
        return _content(data) == Content(journal.rows, journal.digest)
    except CompactionError:
        return False


def prune_loads(lake: Lake, source: str, before: datetime) -> int:
    """Remove dlt's records of loads before a moment; gives their number.

    dlt restores a pipeline from `_dlt_pipeline_state` and `_dlt_version` alone. The newest record stays, so
    that the table does.
    """
    records = [
        (float(match[1]), name)
        for name in _listed(lake, f"bronze/{source}/_dlt_loads")
        if (match := _LOAD_RECORD.search(name))
    ]
    outdated = [name for load_id, name in sorted(records)[:-1] if load_id < before.timestamp()]
    _remove(lake, outdated)
    return len(outdated)


def _opened(data: bytes, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise CompactionError(f"Not a whole Parquet file: {name}. {error}. Move it out of bronze.") from None


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """A row group each: a row is a whole payload."""
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, use_threads=False).combine_chunks().to_batches()


def _content(data: bytes) -> Content:
    return sum(map(_batch_content, _batches(_opened(data, "the compacted object"))), Content())


def _batch_content(batch: pa.RecordBatch) -> Content:
    columns = [column.to_pylist() for column in batch.columns]
    return Content(batch.num_rows, sum(map(_row_digest, zip(*columns, strict=True))) % _MODULUS)


def _row_digest(values: tuple[Any, ...]) -> int:
    digest = sha256()
    for value in values:
        content = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(content)} ".encode() + content)
    return int.from_bytes(digest.digest(), "big")


def _listed(lake: Lake, folder: str) -> dict[str, int]:
    """Every object below a folder, by its name below the lake, with its bytes."""
    base = lake.root.removeprefix("s3://")
    found = lake.filesystem().find(f"{lake.root}/{folder}", detail=True)
    return {path.removeprefix(f"{base}/"): info["size"] for path, info in found.items()}


def _publish(lake: Lake, path: Path, name: str) -> None:
    """Have a local file appear in the lake whole or not at all."""
    lake.filesystem().put_file(str(path), f"{lake.root}/{name}")


def _remove(lake: Lake, names: list[str]) -> None:
    """Remove objects; one that is gone already is no error."""
    if lake.is_local:
        for name in names:
            Path(lake.root, name).unlink(missing_ok=True)
        return
    client = lake.s3_client()  # fsspec's removal keeps the store's refusals to itself
    for first in range(0, len(names), KEYS_PER_REMOVAL):
        located = [lake.bucket_and_key(name) for name in names[first : first + KEYS_PER_REMOVAL]]
        answer = client.delete_objects(
            Bucket=located[0][0], Delete={"Objects": [{"Key": key} for _, key in located], "Quiet": True}
        )
        for refused in answer.get("Errors", []):
            raise CompactionError(
                f"The store does not remove an object: {refused['Key']}, {refused['Code']}. "
                "Let this identity delete objects; the next run carries on."
            )
