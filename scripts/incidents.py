"""Troubles that alerts have been told of: one small JSON object in the lake, `<lake>/_incidents.json`.

Every process and machine at work on a lake reads and amends the same object, on S3 by conditional writes
(`If-Match`, `If-None-Match`). DATA_DIR holds a copy for when the lake itself is the trouble. The lake's
object counts, except for those incidents that this machine could not save there: for them the copy does, and
they are saved with the next amendment that reaches the lake.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import md5
from pathlib import Path
from typing import Any, TypeVar

from ingestion.lake import Lake
from ingestion.settings import Settings

NAME = "_incidents.json"
LAKE_SECONDS = 10.0  # a store that takes longer is out of reach: alerts must not hold up the pipeline
MAX_CONFLICTS = 5

Answer = TypeVar("Answer")

logger = logging.getLogger("bike-data-flow")


@dataclass(frozen=True)
class Incident:
    """One trouble; moments are UTC in ISO format."""

    since: str
    what: str
    next_step: str
    is_told: bool = False  # that it began
    recovered_at: str | None = None
    recovery: str | None = None  # in which words it is over
    claimed_by: str | None = None  # who is telling the next message, so that no other does at the same time
    claimed_until: str | None = None


Incidents = dict[str, Incident]  # by key, such as run/export or stale/wrm


@dataclass
class _Copy:
    """What DATA_DIR holds."""

    incidents: Incidents = field(default_factory=dict)
    unsaved: set[str] = field(default_factory=set)  # keys that the lake does not know in this state
    troubles: set[str] = field(default_factory=set)  # what has been logged as out of reach: lake, webhook


class _ConflictError(Exception):
    """Another process amended the lake's object in the meantime."""


class IncidentStore:
    """The incidents of a lake."""

    def __init__(self, settings: Settings) -> None:
        self.lake = Lake.of(settings)
        self.path = copy_path(settings)
        self.asks_lake = True
        self.trouble: str | None = None  # why the lake is out of reach

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one on this machine to amend and tell, for the length of a `with` block. A lake that is
        out of reach is asked once in it."""
        self.asks_lake, self.trouble = True, None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def amend(self, change: Callable[[Incidents], None]) -> Incidents:
        """Apply a change, which may be tried more than once, to the incidents; gives what they are then."""
        for _ in range(MAX_CONFLICTS):
            with contextlib.suppress(_ConflictError):
                return self._amend_once(change)
        self.asks_lake = False  # saved by the next amendment
        return self._amend_once(change)

    def _amend_once(self, change: Callable[[Incidents], None]) -> Incidents:
        copy = _read_copy(self.path)
        was_asked = self.asks_lake
        stored, version = self._ask_lake(self._read_lake) or (copy.incidents, None)
        incidents = _merged(stored, copy)
        before = dict(incidents)
        change(incidents)
        unsaved = copy.unsaved | {key for key in before | incidents if before.get(key) != incidents.get(key)}
        is_saved = bool(unsaved) and self._ask_lake(lambda: self._write_lake(incidents, version))
        troubles = _told_once(copy.troubles, "lake", self.trouble) if was_asked else copy.troubles
        after = _Copy(incidents, set() if is_saved else unsaved, troubles)
        if after != copy:
            _write_whole(self.path, _rendered_copy(after))
        return incidents

    def _ask_lake(self, action: Callable[[], Answer]) -> Answer | None:
        """What the lake answers, None while it is out of reach."""
        if not self.asks_lake:
            return None
        try:
            return within(LAKE_SECONDS, action)
        except _ConflictError:
            raise
        except Exception as error:  # whatever is the matter with it, the copy serves
            self.asks_lake, self.trouble = False, f"{type(error).__name__}: {error}"
            return None

    def note_webhook(self, trouble: str | None) -> None:
        """Log what is the matter with the webhook, once per trouble, and that it is over."""
        copy = _read_copy(self.path)
        troubles = _told_once(copy.troubles, "webhook", trouble)
        if troubles != copy.troubles:
            _write_whole(self.path, _rendered_copy(_Copy(copy.incidents, copy.unsaved, troubles)))

    @cached_property
    def _client(self) -> Any:
        return self.lake.s3_client()

    def _read_lake(self) -> tuple[Incidents, str | None]:
        """What the lake's object says and its ETag; nothing where there is none."""
        if self.lake.is_local:
            with contextlib.suppress(FileNotFoundError):
                return _parse(Path(self.lake.root, NAME).read_text()), None
            return {}, None
        bucket, key = self.lake.bucket_and_key(NAME)
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key)
        except self._client.exceptions.NoSuchKey:
            return {}, None
        return _parse(answer["Body"].read().decode()), answer["ETag"]

    def _write_lake(self, incidents: Incidents, version: str | None) -> bool:
        if self.lake.is_local:
            Path(self.lake.root).mkdir(parents=True, exist_ok=True)
            _write_whole(Path(self.lake.root, NAME), _rendered(incidents))
            return True
        from botocore.exceptions import ClientError

        bucket, key = self.lake.bucket_and_key(NAME)
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=_rendered(incidents).encode(), **condition)
        except ClientError as error:
            # 412: the condition does not hold; 409: another conditional write is under way
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                raise _ConflictError from None
            raise
        return True


def open_incidents(settings: Settings) -> list[str]:
    """Keys of the incidents that are open by this machine's copy."""
    return sorted(key for key, known in _read_copy(copy_path(settings)).incidents.items() if is_open(known))


def is_open(incident: Incident) -> bool:
    return incident.recovered_at is None


def copy_path(settings: Settings) -> Path:
    """One copy per lake: a DATA_DIR may serve prod and dev."""
    return settings.data_dir / "incidents" / f"{md5(settings.lake_url.encode()).hexdigest()[:12]}.json"


def within(seconds: float, action: Callable[[], Answer]) -> Answer:
    """What the action gives or raises; `TimeoutError` when it takes longer: then it is left to itself."""
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            answers.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act, name="alerts", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    for error in errors:
        raise error
    return answers[0]


def _merged(stored: Incidents, copy: _Copy) -> Incidents:
    merged = {key: incident for key, incident in stored.items() if key not in copy.unsaved}
    return merged | {key: copy.incidents[key] for key in copy.unsaved if key in copy.incidents}


def _told_once(troubles: set[str], name: str, trouble: str | None) -> set[str]:
    if trouble and name not in troubles:
        logger.warning("Alerts: the %s is out of reach: %s. Trying again at every check.", name, trouble)
        return troubles | {name}
    if not trouble and name in troubles:
        logger.info("Alerts: the %s is within reach again.", name)
        return troubles - {name}
    return troubles


def _read_copy(path: Path) -> _Copy:
    try:
        record = json.loads(path.read_text())
        return _Copy(_incidents(record["incidents"]), set(record["unsaved"]), set(record["troubles"]))
    except FileNotFoundError:
        return _Copy()
    except (ValueError, KeyError, TypeError, AttributeError):
        return _Copy()  # cut short by a full disk, or of another version: the lake's object serves


def _rendered_copy(copy: _Copy) -> str:
    record = json.loads(_rendered(copy.incidents))
    return json.dumps(record | {"unsaved": sorted(copy.unsaved), "troubles": sorted(copy.troubles)}, indent=1)


def _parse(text: str) -> Incidents:
    try:
        return _incidents(json.loads(text)["incidents"])
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("Alerts: %s is malformed and made anew: %r.", NAME, text[:80])
        return {}


def _incidents(records: dict[str, dict[str, Any]]) -> Incidents:
    return {key: Incident(**record) for key, record in records.items()}


def _rendered(incidents: Incidents) -> str:
    return json.dumps(
        {"incidents": {key: asdict(value) for key, value in sorted(incidents.items())}}, indent=1
    )


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)
