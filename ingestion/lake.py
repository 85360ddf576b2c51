"""The lake: the one file that knows bucket, layout and storage credentials.

    <LAKE_URL>/bronze/<source>/<table>/dt=YYYY-MM-DD/<load_id>.<file_id>.parquet   written by dlt
    <LAKE_URL>/silver|gold/<model>/dt=YYYY-MM-DD/data.parquet, …/_state.parquet     written by dbt

`dt` is the UTC day observed, for live and archive alike.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ingestion.settings import S3Settings, Settings

# what some network file systems answer to a folder's sync, and any to a folder that may not be read
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.EACCES)

BRONZE_LAYOUT = "{table_name}/dt={YYYY}-{MM}-{DD}/{load_id}.{file_id}.{ext}"


class AtomicLocalFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec tells no types
    """A local disk on which a file appears whole or not at all, as objects do on S3.

    dlt copies finished Parquet files into place with `put_file`, and writes its state with `write_text`; a
    kill in the middle of either would leave a torn file under its final name.
    """

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **kwargs: Any) -> None:
        with self._publishing(rpath) as unfinished:
            shutil.copyfile(self._strip_protocol(lpath), unfinished)

    def write_text(self, path: str, value: str, encoding: str | None = None, **kwargs: Any) -> None:
        with self._publishing(path) as unfinished:
            Path(unfinished).write_text(value, encoding=encoding)

    @contextmanager
    def _publishing(self, path: str) -> Iterator[str]:
        """Gives where to write a file, which gets its name when the `with` block ends well."""
        target = self._strip_protocol(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        unfinished = unfinished_path(target)
        yield unfinished
        publish_file(unfinished, target)


def unfinished_path(path: str) -> str:
    """Where a local file is written before it is published; the macro of the same name says it to SQL."""
    folder, name = os.path.split(path)
    return f"{folder}/_{name}.unfinished"


def publish_file(unfinished: str, target: str) -> None:
    """Give a finished local file its name in one step, so that a power cut leaves it whole or not at all: its
    bytes are on the disk before the name is, and the name is when this returns."""
    _sync(unfinished)
    os.replace(unfinished, target)
    folder = os.path.dirname(target)
    for made in (folder, os.path.dirname(folder)):  # a new day's folder has a name to lose as well
        try:
            _sync(made)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


fsspec.register_implementation("file", AtomicLocalFileSystem, clobber=True)
fsspec.register_implementation("local", AtomicLocalFileSystem, clobber=True)


@dataclass(frozen=True)
class Lake:
    """A lake root and the ways to reach it: fsspec, dlt and DuckDB."""

    url: str
    s3: S3Settings

    @classmethod
    def of(cls, settings: Settings) -> Lake:
        return cls(settings.lake_url, settings.s3)

    @property
    def is_local(self) -> bool:
        return self.url.startswith("file://")

    @property
    def root(self) -> str:
        """The root as DuckDB and Python's file functions name it: a plain path, or s3://bucket/prefix."""
        return unquote(urlsplit(self.url).path) if self.is_local else self.url

    def bronze_url(self) -> str:
        return f"{self.url}/bronze"

    def bronze_day(self, source: str, table: str, day: date) -> str:
        """The glob of one day's bronze objects."""
        return f"{self.root}/bronze/{source}/{table}/dt={day.isoformat()}/*.parquet"

    def filesystem(self, url: str | None = None) -> fsspec.AbstractFileSystem:
        """fsspec's file system for `url` (default: the lake itself)."""
        if not (url or self.url).startswith("s3://"):
            return fsspec.filesystem("file")
        return fsspec.filesystem("s3", use_listings_cache=False, **self._s3fs_options())

    def _s3fs_options(self) -> dict[str, Any]:
        return {
            "key": self.s3.access_key_id,
            "secret": self.s3.secret_access_key,
            "token": self.s3.session_token,
            "endpoint_url": self.s3.endpoint_url,
            "client_kwargs": {"region_name": self.s3.region},
            "config_kwargs": self._botocore_config(),
        }

    def _botocore_config(self) -> dict[str, Any]:
        return {
            "s3": {"addressing_style": self.s3.addressing_style},
            # a store that does not answer must not hold up a process that has other work
            "connect_timeout": 10,
            "read_timeout": 30,
            "retries": {"max_attempts": 3},
        }

    def dlt_destination_options(self) -> dict[str, Any]:
        """Arguments of `dlt.destinations.filesystem` that reach the bronze layer."""
        options: dict[str, Any] = {"bucket_url": self.bronze_url(), "layout": BRONZE_LAYOUT}
        if self.is_local:
            return options
        credentials = {
            "aws_access_key_id": self.s3.access_key_id,
            "aws_secret_access_key": self.s3.secret_access_key,
            "aws_session_token": self.s3.session_token,
            "endpoint_url": self.s3.endpoint_url,
            "region_name": self.s3.region,
        }
        options["credentials"] = {k: v for k, v in credentials.items() if v}
        options["config_kwargs"] = self._botocore_config()
        return options

    def s3_client(self) -> Any:
        """The process's botocore client of the lake's store, for what fsspec cannot do: conditional writes,
        bucket settings. Threads may share it."""
        return _s3_client(self)

    def bucket_and_key(self, name: str) -> tuple[str, str]:
        """Bucket and key of an object named relative to a lake on S3."""
        bucket, _, key = f"{self.url}/{name}".removeprefix("s3://").partition("/")
        return bucket, key

    def duckdb_secret(self) -> str | None:
        """The statement that lets DuckDB reach the lake's bucket, None for a local lake.

        Without keys DuckDB asks AWS's credential chain (its `aws` extension).
        """
        if self.is_local:
            return None
        options = {"region": self.s3.region}
        if self.s3.access_key_id:
            options |= {"key_id": self.s3.access_key_id, "secret": self.s3.secret_access_key or ""}
            if self.s3.session_token:
                options["session_token"] = self.s3.session_token
        else:
            options["provider"] = "credential_chain"
        if self.s3.endpoint_url:
            endpoint = urlsplit(self.s3.endpoint_url)
            options["endpoint"] = endpoint.netloc + endpoint.path.rstrip("/")
            options["use_ssl"] = str(endpoint.scheme == "https").lower()
        options["url_style"] = "path" if self.s3.addressing_style == "path" else "vhost"
        rendered = ", ".join(f"{name} {quoted(value)}" for name, value in options.items())
        return f"create or replace secret lake (type s3, {rendered})"


@functools.lru_cache
def _s3_client(lake: Lake) -> Any:
    """A client takes 0.2 s of CPU to make."""
    import botocore.config  # slow to import, and of no use to a local lake
    import botocore.session

    session = botocore.session.get_session()
    return session.create_client(
        "s3",
        region_name=lake.s3.region,
        endpoint_url=lake.s3.endpoint_url,
        aws_access_key_id=lake.s3.access_key_id,
        aws_secret_access_key=lake.s3.secret_access_key,
        aws_session_token=lake.s3.session_token,
        verify=lake.s3.ca_bundle,
        config=botocore.config.Config(**lake._botocore_config()),
    )


def quoted(value: str) -> str:
    """The value as a SQL string literal."""
    return "'" + value.replace("'", "''") + "'"
