"""Wrocław's city bikes (WRM): snapshots of every station and free bike, and the file of defects.

The feed (`WRM_FEED_URL`) is CSV text, one line per docking station or free-standing bike, about 350 lines,
generated at the moment of the request. Its terms are not documented: poll at most once a minute. The
defects (`WRM_FAILURES_URL`) are a CSV file of the city's open-data portal, taken once a day. Neither is
parsed here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from itertools import chain, groupby
from typing import Any

import dlt
import fsspec
import pyarrow as pa

from ingestion import archive, bronze
from ingestion.encoding import decode, detect_encoding, is_utf8, mend_names
from ingestion.fetch import Attempt, Validators, fetch
from ingestion.lake import Lake
from ingestion.schemas import FETCH_ATTEMPTS, STATION_SNAPSHOTS
from ingestion.settings import Settings

SOURCE = "wrm"
ROWS_PER_CHUNK = 64
# A file that arrives while an import lists the archive may carry a time before the cursor's.
LATE_ARRIVAL = timedelta(minutes=5)

DEFECTS_RETRY = timedelta(hours=1)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveOutcome:
    """What one poll of the feed gave."""

    is_taken: bool
    is_unchanged: bool
    payload_bytes: int
    error: str | None


@dataclass
class ImportOutcome:
    """What one import of an archive gave; `refused` holds a reason per file that could not be taken."""

    listed: int = 0
    taken: int = 0
    known: int = 0
    payload_bytes: int = 0
    days: set[date] = field(default_factory=set)  # observed, of the snapshots taken
    refused: list[str] = field(default_factory=list)


@dataclass
class SeenArchive:
    """What a long-lived process remembers of an archive between two looks at it."""

    folders: set[str] = field(default_factory=set)  # that held a file
    files: set[tuple[str, datetime]] = field(default_factory=set)  # key and modification time

    def remember(self, files: Iterable[archive.ArchiveFile], *, is_all: bool = False) -> None:
        """Add the files, or forget all others where they are all there is."""
        if is_all:
            self.folders.clear()
            self.files.clear()
        for file in files:
            self.folders.add(file.path.rpartition("/")[0])
            self.files.add((file.key, file.modified_at))


def take_snapshot(settings: Settings) -> LiveOutcome:
    """Poll the feed once, and the defects once a day, and load what came with every attempt.

    A payload equal to the last one taken is recorded as unchanged and not stored again. The snapshot is in
    the lake before the defects are asked for. With the lake out of reach, the feed is polled all the same:
    the snapshot waits on the local disk, and the error is raised.
    """
    pipeline = bronze.open_pipeline(SOURCE, settings, needs_lake=False)
    live = _poll_and_load(
        pipeline, settings, "station_snapshots", settings.wrm_feed_url, settings.fetch_attempts
    )
    if _are_defects_due(bronze.source_state(pipeline).get("failures", {}), datetime.now(UTC)):
        failures = _poll_and_load(pipeline, settings, "failures", settings.wrm_failures_url, 1)
        if failures.error:
            logger.warning("%s. The defects are asked for again in an hour.", failures.error)
    return LiveOutcome(live.row is not None, live.is_unchanged, live.payload_bytes, live.error)


def _are_defects_due(cursor: dict[str, Any], now: datetime) -> bool:
    """Whether to ask for the defects: once a day, and an hour after an attempt that failed."""
    asked_at = cursor.get("asked_at")
    return cursor.get("taken_on") != now.date().isoformat() and (
        asked_at is None or now - datetime.fromisoformat(asked_at) >= DEFECTS_RETRY
    )


@dataclass(frozen=True)
class _Poll:
    """One resource asked for: its attempts, and the bronze row if there is a new one."""

    resource: str
    attempts: list[Attempt]
    is_unchanged: bool
    row: dict[str, Any] | None

    @property
    def day(self) -> date:
        return self.attempts[-1].attempted_at.date()

    @property
    def error(self) -> str | None:
        return self.attempts[-1].error

    @property
    def payload_bytes(self) -> int:
        return self.attempts[-1].response_bytes or 0

    def cursor(self) -> dict[str, Any]:
        """What the next poll compares with."""
        last = self.attempts[-1]
        cursor = {
            "etag": last.validators.etag,
            "last_modified": last.validators.last_modified,
            "taken_on": self.day.isoformat(),
        }
        return cursor | ({"sha256": last.sha256} if last.sha256 else {})


def _poll_and_load(
    pipeline: dlt.Pipeline, settings: Settings, resource: str, url: str, max_attempts: int
) -> _Poll:
    """Ask for one resource and load the attempts, the payload if it is new, and the next poll's cursor."""
    cursor = bronze.source_state(pipeline).get(resource, {})
    poll = _poll(resource, url, cursor, settings, max_attempts)
    attempts = [_attempt_row(poll, attempt) for attempt in poll.attempts]
    tables: dict[str, Iterable[pa.Table]] = {
        "fetch_attempts": [pa.Table.from_pylist(attempts, schema=FETCH_ATTEMPTS)]
    }
    if poll.row is not None:
        tables[resource] = [pa.Table.from_pylist([poll.row], schema=STATION_SNAPSHOTS)]
    asked = {"asked_at": poll.attempts[-1].attempted_at.isoformat()}
    state = {resource: cursor | asked | (poll.cursor() if poll.error is None else {})}
    bronze.load_day(pipeline, poll.day, tables, state)
    return poll


def _poll(resource: str, url: str, cursor: dict[str, Any], settings: Settings, max_attempts: int) -> _Poll:
    attempts = fetch(
        url,
        validators=Validators(cursor.get("etag"), cursor.get("last_modified")),
        timeout_seconds=settings.fetch_timeout_seconds,
        max_bytes=settings.fetch_max_bytes,
        max_attempts=max_attempts,
    )
    last = attempts[-1]
    is_unchanged = last.is_not_modified or (last.sha256 is not None and last.sha256 == cursor.get("sha256"))
    row = None
    if last.payload is not None and not is_unchanged:
        fetched_at = last.attempted_at + timedelta(seconds=last.latency_seconds)
        row = payload_row(last.payload, url, None, last.attempted_at, fetched_at)
    return _Poll(resource, attempts, is_unchanged, row)


def _attempt_row(poll: _Poll, attempt: Attempt) -> dict[str, Any]:
    return {
        "resource": poll.resource,
        "url": attempt.url,
        "attempted_at": attempt.attempted_at,
        "attempt_number": attempt.number,
        "status": attempt.status,
        "response_bytes": attempt.response_bytes,
        "latency_seconds": attempt.latency_seconds,
        "etag": attempt.validators.etag,
        "last_modified": attempt.validators.last_modified,
        "payload_sha256": attempt.sha256,
        "is_unchanged": poll.is_unchanged and attempt is poll.attempts[-1],
        "error": attempt.error,
    }


def payload_row(
    payload: bytes,
    source_key: str,
    source_modified_at: datetime | None,
    observed_at: datetime,
    fetched_at: datetime,
) -> dict[str, Any]:
    """A row of a bronze payload table: the payload untouched, and what SQL could not find out itself."""
    encoding = detect_encoding(payload)
    text = decode(payload, encoding)
    return {
        "payload": payload,
        "payload_text": None if is_utf8(payload) else text,
        "payload_sha256": sha256(payload).hexdigest(),
        "payload_bytes": len(payload),
        "encoding": encoding,
        "mended_names": mend_names(text),
        "source_key": source_key,
        "source_modified_at": source_modified_at,
        "observed_at": observed_at,
        "fetched_at": fetched_at,
    }


def import_archive(
    settings: Settings,
    location: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seen: SeenArchive | None = None,
) -> ImportOutcome:
    """Import the files of an archive that are new since the last import of it, one load per observed day.

    The cursor is arrival, never the observed time, so old days dropped in late are taken. A file counts as
    known when its observed time and digest are in bronze already, whatever its name. Files that are refused
    are tried again by the next import. `progress(done, total)` is called after each file, and `seen`
    remembers what was found.

    Raises `ArchiveError` where there is no archive.
    """
    filesystem = Lake.of(settings).filesystem(location)
    listed_at = datetime.now(UTC)
    files, unknown = archive.list_archive(filesystem, location)
    for name in unknown:
        path = name.encode(errors="backslashreplace").decode()  # names on a disk are any bytes
        logger.warning("Passed over: %s. %s.", path, archive.why_passed_over(filesystem, name))
    pipeline = bronze.open_pipeline(SOURCE, settings)
    cursors: dict[str, str] = bronze.source_state(pipeline).get("archives", {})
    key = archive.archive_key(filesystem, location)
    job = _Import(settings, filesystem, location, pipeline, progress)
    job.import_files(files, _arrived_since(files, cursors.get(key)))
    if files:
        # only now: an import that is cut short starts over, and finds what it has
        arrivals = [max(file.arrived_at for file in files), listed_at]
        cursor = min(arrivals + [file.arrived_at for file in job.refused]).isoformat()
        if cursors.get(key) != cursor:
            bronze.load_day(pipeline, listed_at.date(), {}, {"archives": cursors | {key: cursor}})
    if seen is not None:
        seen.remember(files, is_all=True)
    return job.outcome


def import_recent(
    settings: Settings, location: str, days: Iterable[date], seen: SeenArchive
) -> ImportOutcome:
    """Import what an archive has got since the last look at it, of what lies where files of some days do.

    Its cost does not grow with the archive's days. It leaves the cursor alone, so that the next
    `import_archive` takes what lies elsewhere; a file that was refused waits for that one, too.
    """
    filesystem = Lake.of(settings).filesystem(location)
    folders = archive.folders_of_days(filesystem, location, seen.folders, days)
    files, _ = archive.list_folders(filesystem, location, folders)
    new = [file for file in files if (file.key, file.modified_at) not in seen.files]
    if not new:
        return ImportOutcome(listed=len(files), known=len(files))
    job = _Import(settings, filesystem, location, bronze.open_pipeline(SOURCE, settings))
    job.import_files(files, new)
    seen.remember(new)
    return job.outcome


def _arrived_since(files: list[archive.ArchiveFile], cursor: str | None) -> list[archive.ArchiveFile]:
    if cursor is None:
        return files
    since = datetime.fromisoformat(cursor) - LATE_ARRIVAL
    return [file for file in files if file.arrived_at >= since]


@dataclass
class _Import:
    """One import under way: where from, where to, and what came of it so far."""

    settings: Settings
    filesystem: fsspec.AbstractFileSystem
    location: str
    pipeline: dlt.Pipeline
    progress: Callable[[int, int], None] = lambda done, total: None
    total: int = 0
    done: int = 0
    outcome: ImportOutcome = field(default_factory=ImportOutcome)
    refused: list[archive.ArchiveFile] = field(default_factory=list)

    def import_files(self, listed: list[archive.ArchiveFile], new: list[archive.ArchiveFile]) -> None:
        """Import the new ones of the files listed, day by day."""
        self.total = len(new)
        self.outcome.listed = len(listed)
        self.outcome.known = len(listed) - len(new)
        for day, files in groupby(new, key=lambda file: file.observed_at.date()):
            of_day = list(files)
            try:
                self.import_day(day, of_day)
            except bronze.BronzeError as error:  # of this day alone
                self.refused += of_day
                self.outcome.refused.append(str(error))

    def import_day(self, day: date, files: list[archive.ArchiveFile]) -> None:
        """Load what bronze does not hold of one observed day."""
        refusals: list[dict[str, Any]] = []
        chunks = _chunked(self._new_rows(day, files, refusals))
        first = next(chunks, None)
        if first is not None:
            bronze.load_day(self.pipeline, day, {"station_snapshots": chain([first], chunks)})
        if refusals:
            table = pa.Table.from_pylist(refusals, schema=FETCH_ATTEMPTS)
            bronze.load_day(self.pipeline, day, {"fetch_attempts": [table]})

    def _new_rows(
        self, day: date, files: list[archive.ArchiveFile], refusals: list[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        columns = ["source_key", "source_modified_at", "observed_at", "payload_sha256"]
        held = bronze.read_bronze_day(Lake.of(self.settings), SOURCE, "station_snapshots", day, columns)
        held_files = {(row["source_key"], row["source_modified_at"]) for row in held}
        held_snapshots = {(row["observed_at"], row["payload_sha256"]) for row in held}
        for file in files:
            self.done += 1
            self.progress(self.done, self.total)
            if (file.key, file.modified_at) in held_files:
                self.outcome.known += 1
                continue
            imported_at = datetime.now(UTC)
            try:
                payload = archive.read_payload(
                    self.filesystem, self.location, file, self.settings.fetch_max_bytes
                )
            except archive.ArchiveError as error:
                self.refused.append(file)
                self.outcome.refused.append(str(error))
                refusals.append(_refusal_row(file, imported_at, str(error)))
                continue
            row = payload_row(payload, file.key, file.modified_at, file.observed_at, imported_at)
            snapshot = (row["observed_at"], row["payload_sha256"])
            if snapshot in held_snapshots:
                self.outcome.known += 1
                continue
            held_snapshots.add(snapshot)
            self.outcome.taken += 1
            self.outcome.days.add(day)
            self.outcome.payload_bytes += row["payload_bytes"]
            yield row


def _chunked(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_PER_CHUNK:
            yield pa.Table.from_pylist(chunk, schema=STATION_SNAPSHOTS)
            chunk = []
    if chunk:
        yield pa.Table.from_pylist(chunk, schema=STATION_SNAPSHOTS)


def _refusal_row(file: archive.ArchiveFile, attempted_at: datetime, error: str) -> dict[str, Any]:
    return {
        "resource": "station_snapshots",
        "url": file.key,
        "attempted_at": attempted_at,
        "attempt_number": 1,
        "is_unchanged": False,
        "error": error,
    }
