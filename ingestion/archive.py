"""Archives of raw snapshots: text files under `dt=` folders or flat, local or on S3, plain, .gz or .zst.

Three namings are known, all of the UTC moment observed:
`wrm_stations_2025-05-12_18-10-07.txt`, `station_data_20250512_181007.txt`, `content_2025-05-12_18-10-07.txt`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

_NAME = re.compile(
    r"(?:wrm_stations|station_data|content)_"
    r"(\d{4})-?(\d{2})-?(\d{2})_(\d{2})-?(\d{2})-?(\d{2})\.txt(?:\.(gz|zst))?"
)
_DAY_FOLDER = re.compile(r"/dt=\d{4}-\d{2}-\d{2}$")
_CODECS = {"gz": "gzip", "zst": "zstd"}
_CHUNK_BYTES = 1024 * 1024


class ArchiveError(ValueError):
    """An archive, or a file of it, that cannot be taken."""


@dataclass(frozen=True)
class ArchiveFile:
    """One raw file: where it is, when it arrived there and when it was observed."""

    key: str  # URL
    path: str  # as the file system names it
    modified_at: datetime
    arrived_at: datetime  # the later of that and the arrival of a folder that it came with
    observed_at: datetime
    codec: str | None


def list_archive(filesystem: fsspec.AbstractFileSystem, location: str) -> tuple[list[ArchiveFile], list[str]]:
    """Every raw snapshot below a folder, or the one file named, sorted by observed time and key; and the
    paths of files whose names tell no time.

    Raises `ArchiveError` where there is nothing at all, or a folder that cannot be read.
    """
    entries = _find(filesystem, location)
    if not entries:
        raise ArchiveError(
            f"No archive found: {location}. Give a folder or an s3:// prefix that holds raw text files."
        )
    return _told(filesystem, location, entries)


def list_folders(
    filesystem: fsspec.AbstractFileSystem, location: str, folders: Iterable[str]
) -> tuple[list[ArchiveFile], list[str]]:
    """What `list_archive` gives, of some folders of the archive alone and without those below them; one that
    is not there has nothing."""
    entries: dict[str, dict[str, object]] = {}
    for folder in folders:
        entries |= _find(filesystem, folder, maxdepth=1)
    return _told(filesystem, location, entries)


def folders_of_days(
    filesystem: fsspec.AbstractFileSystem, location: str, folders: Iterable[str], days: Iterable[date]
) -> set[str]:
    """Where files of some days would lie in an archive of which these folders have held any: its root, the
    flat ones, and the `dt=` folders of the days, in the root and beside those of other days."""
    root = str(filesystem._strip_protocol(location)).rstrip("/")
    flat = {root} | {folder for folder in folders if not _DAY_FOLDER.search(folder)}
    dated = {root} | {_DAY_FOLDER.sub("", folder) for folder in folders if _DAY_FOLDER.search(folder)}
    return flat | {f"{folder}/dt={day.isoformat()}" for folder in dated for day in days}


def _find(filesystem: fsspec.AbstractFileSystem, folder: str, **options: Any) -> dict[str, dict[str, Any]]:
    if _is_local(filesystem):
        options["on_error"] = "raise"
    try:
        found: dict[str, dict[str, Any]] = filesystem.find(folder, detail=True, withdirs=False, **options)
        return found
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise ArchiveError(
            f"The archive cannot be listed: {error.filename or folder}. Make it readable and run again."
        ) from error


def _told(
    filesystem: fsspec.AbstractFileSystem, location: str, entries: dict[str, dict[str, object]]
) -> tuple[list[ArchiveFile], list[str]]:
    arrival_of = _folder_arrivals(location) if _is_local(filesystem) else lambda path: None
    files = {path: _describe(filesystem, path, info, arrival_of(path)) for path, info in entries.items()}
    known = [file for file in files.values() if file is not None]
    unknown = sorted(path for path, file in files.items() if file is None)
    return sorted(known, key=lambda file: (file.observed_at, file.key)), unknown


def observed_at_of(name: str) -> tuple[datetime, str | None] | None:
    """The UTC moment and the compression codec that a file's name tells, None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # the 31st of February
        return None
    return moment, _CODECS.get(match.group(7) or "")


def read_payload(
    filesystem: fsspec.AbstractFileSystem, location: str, file: ArchiveFile, max_bytes: int
) -> bytes:
    """The bytes of an archive's file, decompressed; raises `ArchiveError` for one that is corrupt, too large,
    no file, or a link to what lies outside of the archive."""
    chunks: list[bytes] = []
    received = 0
    try:
        if _is_local(filesystem):
            _refuse_strangers(location, file)
        elif "?versionId=" in file.path:
            # s3fs would read the object that is named before it
            raise ArchiveError(f"Its key asks for a version: {file.key}. Name the object otherwise.")
        with filesystem.open(file.path, "rb") as raw, _decompressed(raw, file.codec) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                received += len(chunk)
                if received > max_bytes:
                    raise ArchiveError(
                        f"File is too large: {file.key}. Raise FETCH_MAX_BYTES above {max_bytes}."
                    )
                chunks.append(chunk)
    except OSError as error:
        raise ArchiveError(f"File cannot be read: {file.key}. Replace it and run again ({error}).") from error
    return b"".join(chunks)


def _decompressed(raw: IO[bytes], codec: str | None) -> AbstractContextManager[Any]:
    # Arrow's stream of a plain file takes five times as long as the file itself
    return pa.input_stream(raw, compression=codec) if codec else nullcontext(raw)


def _refuse_strangers(location: str, file: ArchiveFile) -> None:
    if not stat.S_ISREG(os.stat(file.path).st_mode):  # a pipe would be waited for without end
        raise ArchiveError(f"It is no file: {file.key}. Take it away, or put a file in its place.")
    root = os.path.realpath(location)
    if os.path.commonpath([root, os.path.realpath(file.path)]) != root:
        raise ArchiveError(f"It leads out of the archive: {file.key}. Put the file itself in its place.")


def why_passed_over(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """What is wrong with a path that `list_archive` does not know."""
    if _is_local(filesystem) and os.path.isdir(path):  # a plain folder is looked into, not listed
        return "It is a link to a folder. Import that folder itself"
    return "Its name is none of the known three"


def archive_key(filesystem: fsspec.AbstractFileSystem, location: str) -> str:
    """What an archive is remembered by: its place, and on a disk also its inode, because another volume may
    come to stand in the same place."""
    return f"{location}#{os.stat(location).st_ino}" if _is_local(filesystem) else location


def _describe(
    filesystem: fsspec.AbstractFileSystem, path: str, info: dict[str, object], folder_at: datetime | None
) -> ArchiveFile | None:
    found = observed_at_of(path.rsplit("/", 1)[-1])
    if found is None:
        return None
    observed_at, codec = found
    modified_at = _modified(info)
    arrived_at = max(modified_at, folder_at or modified_at)
    return ArchiveFile(_url(filesystem, path), path, modified_at, arrived_at, observed_at, codec)


def _url(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    return Path(path).as_uri() if _is_local(filesystem) else f"s3://{path}"


def _folder_arrivals(location: str) -> Callable[[str], datetime | None]:
    """Tells when the last of the folders between an archive's root and a file changed its place: moving a
    folder leaves the times of the files in it as they are."""

    @cache
    def arrival(folder: str) -> datetime | None:
        if len(folder) <= len(location):
            return None
        own = datetime.fromtimestamp(os.stat(folder).st_ctime, UTC)
        return max(own, arrival(os.path.dirname(folder)) or own)

    return lambda path: arrival(os.path.dirname(path))


def _modified(info: dict[str, object]) -> datetime:
    """When the file came to be as it is. On a disk the change of its inode counts as well, because a copy may
    keep the old modification time."""
    if "LastModified" in info:
        return info["LastModified"]  # type: ignore[return-value]
    changed = max(float(info["mtime"]), float(info["created"]))  # type: ignore[arg-type]
    return datetime.fromtimestamp(changed, UTC)


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def absolute_location(location: str, base: str) -> str:
    """`location` as given on a command line in the folder `base`, made absolute; URLs stay."""
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    if "://" in location:
        return location
    return os.path.abspath(os.path.join(base, os.path.expanduser(location)))
