"""The lease of a lake: one job at a time works on it, wherever it runs.

On a disk it is a locked file (`<lake>/_lease.json`), which a killed process lets go by itself. On S3 it is an
object of the same name, written on conditions (`If-Match`, `If-None-Match`) and renewed every
`RENEWAL_SECONDS`; one that nobody renewed for `LEASE_SECONDS` may be taken over. Its age is told by the
server's clock alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from ingestion.lake import Lake

NAME = "_lease.json"
RENEWAL_SECONDS = 15.0
LEASE_SECONDS = 60.0

logger = logging.getLogger("bike-data-flow")


@dataclass(frozen=True)
class Holder:
    """Which job holds a lease."""

    job: str
    run_id: str
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since)
        return f"{self.job}, process {self.process} on {self.host}, since {since:%Y-%m-%d %H:%M:%S} UTC"


class LeaseHeldError(RuntimeError):
    """Another job holds the lease; says which and since when."""

    def __init__(self, holder: object, looks_orphaned: bool = False) -> None:
        super().__init__(str(holder))
        self.looks_orphaned = looks_orphaned


class LeaseLostError(RuntimeError):
    """Another job took the lease over while this one could not renew it."""


class Lease:
    """A lease that is held; `left_by` is the job that died holding it before, if one did."""

    def __init__(self, left_by: Holder | None = None) -> None:
        self.left_by = left_by
        self.is_death_recorded = False

    def check(self, needs_store: bool = True) -> None:
        """Raise `LeaseLostError` where another job holds the lease by now; and what the store raises that is
        out of reach, if the next step `needs_store`."""


@contextlib.contextmanager
def held_lease(
    lake: Lake, holder: Holder, *, dead: Holder | None = None, waits: Callable[[], bool] = lambda: False
) -> Iterator[Lease]:
    """Hold the lake's lease for the length of a `with` block; wait for whoever holds it as long as
    `waits()`. A holder that is `dead` for certain, as its lock on DATA_DIR is free, is not waited for.

    Raises `LeaseHeldError`.
    """
    if lake.is_local:
        with locked_file(Path(lake.root) / NAME, holder, waits=waits) as left_by:
            yield Lease(left_by)
        return
    lease = _ObjectLease(lake, holder, dead)
    _wait_for(lease.acquire, waits)
    try:
        yield lease
    finally:
        lease.release()


def lease_holder(lake: Lake) -> Holder | None:
    """Who holds the lake's lease now; asks without taking it."""
    if not lake.is_local:
        found = _ObjectLease(lake, Holder("nobody", ""))._read()
        return _holder(found[0]) if found and found[2] <= LEASE_SECONDS else None
    with contextlib.suppress(FileNotFoundError), open(Path(lake.root) / NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(file.read())
    return None


@contextlib.contextmanager
def locked_file(
    path: Path, holder: Holder, *, waits: Callable[[], bool] = lambda: False
) -> Iterator[Holder | None]:
    """Hold a file's lock for the length of a `with` block; gives who died holding it before, if anybody did.

    Raises `LeaseHeldError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        _wait_for(lambda: _lock(file), waits)
        file.seek(0)
        left_by = _parse(file.read())
        _rewrite(file, json.dumps(asdict(holder)))
        try:
            yield left_by
        finally:
            _rewrite(file, "")


def _wait_for(acquire: Callable[[], None], waits: Callable[[], bool]) -> None:
    """Acquire, again and again where it is worth while."""
    is_told = False
    while True:
        try:
            return acquire()
        except LeaseHeldError as error:
            if not (waits() or error.looks_orphaned):
                raise
            if not is_told:
                logger.warning("Waiting for another job to let the lake go: %s.", error)
                is_told = True
        time.sleep(1)


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise LeaseHeldError(_parse(file.read()) or "a job that has just begun") from None


def _rewrite(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


class _ObjectLease(Lease):
    def __init__(self, lake: Lake, holder: Holder, dead: Holder | None = None) -> None:
        super().__init__()
        self.client, self.holder, self.dead = lake.s3_client(), holder, dead
        self.bucket, self.key = lake.bucket_and_key(NAME)
        self.stopped = threading.Event()
        self.taken_by: Holder | None = None
        self.etag, self.renewed_at = "", 0.0  # as of the last write

    def acquire(self) -> None:
        found = self._read()
        if found is None:
            self.left_by = None
            condition = {"IfNoneMatch": "*"}
        else:
            record, etag, age = found
            self.left_by = _holder(record)
            if self.left_by not in (None, self.dead) and age <= LEASE_SECONDS:
                raise LeaseHeldError(
                    f"{self.left_by}, last seen {age:.0f} s ago", looks_orphaned=age > 2 * RENEWAL_SECONDS
                )
            condition = {"IfMatch": etag}
        if not self._put(asdict(self.holder), condition):
            raise LeaseHeldError("a job that has just begun")
        self.renewer = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self.renewer.start()

    def check(self, needs_store: bool = True) -> None:
        if self.taken_by is None and time.monotonic() - self.renewed_at > LEASE_SECONDS:
            with contextlib.nullcontext() if needs_store else contextlib.suppress(Exception):
                self._renew()
        if self.taken_by is not None:
            raise LeaseLostError(f"Another job took the lake over: {self.taken_by}.")

    def release(self) -> None:
        self.stopped.set()
        self.renewer.join()
        if self.taken_by is None:
            with contextlib.suppress(Exception):  # it runs out by itself
                self._put({"released_at": datetime.now(UTC).isoformat()}, {"IfMatch": self.etag})

    def _keep_renewing(self) -> None:
        while not self.stopped.wait(RENEWAL_SECONDS) and self.taken_by is None:
            try:
                self._renew()
            except Exception as error:
                logger.warning("The lease could not be renewed: %s. Trying again.", error)

    def _renew(self) -> None:
        record = asdict(self.holder) | {"renewed_at": datetime.now(UTC).isoformat()}
        if self._put(record, {"IfMatch": self.etag}):
            return
        found = self._read()
        holder = found and _holder(found[0])
        if found is not None and holder == self.holder:  # an answer was lost on its way
            self.etag = found[1]
        else:
            self.taken_by = holder or Holder("another job", "", "another machine", 0)

    def _read(self) -> tuple[dict[str, Any], str, float] | None:
        """What the object says, its ETag and its age in seconds; None without one."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key)
        except self.client.exceptions.NoSuchKey:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - answer["LastModified"]).total_seconds()
        return _record(answer["Body"].read()), answer["ETag"], age

    def _put(self, record: dict[str, Any], condition: dict[str, str]) -> bool:
        """Write the object if the condition holds; tells whether it did."""
        from botocore.exceptions import ClientError

        try:
            answer = self.client.put_object(
                Bucket=self.bucket, Key=self.key, Body=json.dumps(record).encode(), **condition
            )
        except ClientError as error:
            # 412: the condition does not hold; 409: another conditional write is under way; 404: it is gone
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 409, 412):
                return False
            raise
        self.etag, self.renewed_at = answer["ETag"], time.monotonic()
        return True


def _parse(text: str) -> Holder | None:
    return _holder(_record(text))


def _record(text: str | bytes) -> dict[str, Any]:
    """What a lease's file or object says; one that is empty or torn says nothing."""
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _holder(record: dict[str, Any]) -> Holder | None:
    names = ("job", "run_id", "host", "process", "since")
    return Holder(*(record[name] for name in names)) if all(name in record for name in names) else None
