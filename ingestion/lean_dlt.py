"""What dlt does over and over at each load for nobody, done once or not at all.

It reads what stays as it is in a lake, half of a load's requests to S3, which are waited for one after the
other; and it looks up every setting to tell what a lake can do, a third of a load's own time.
"""

from __future__ import annotations

import functools
from typing import Any

from dlt.common.destination import DestinationCapabilitiesContext
from dlt.common.destination.client import StorageSchemaInfo
from dlt.common.destination.exceptions import DestinationUndefinedEntity
from dlt.destinations.impl.filesystem.factory import filesystem
from dlt.destinations.impl.filesystem.filesystem import CURRENT_VERSION, FilesystemClient

Place = tuple[str, str]  # endpoint, and path there

_read_versions = FilesystemClient.get_storage_versions
_read_schema = FilesystemClient._get_stored_schema_by_hash_or_newest
_tell_capabilities = filesystem.capabilities
_versions: dict[Place, tuple[int, int]] = {}
_schemas: dict[tuple[Place, str], StorageSchemaInfo] = {}


@functools.cache
def make_dlt_lean() -> None:
    """Replace, in this process, what is done over and over."""
    FilesystemClient.get_storage_versions = _storage_versions  # type: ignore[method-assign]
    FilesystemClient._get_stored_schema_by_hash_or_newest = _stored_schema  # type: ignore[method-assign]
    filesystem.capabilities = _capabilities  # type: ignore[method-assign, assignment]


def _place(client: FilesystemClient, path: str) -> Place:
    return str(getattr(client.config.credentials, "endpoint_url", None)), path


def _storage_versions(self: FilesystemClient) -> tuple[int, int]:
    """Of the dataset's layout, which this version of dlt has written or brought up to date."""
    place = _place(self, self.init_file_path)
    if place not in _versions:
        versions = _read_versions(self)
        if versions[1] < CURRENT_VERSION:  # it is migrated next
            return versions
        _versions[place] = versions
    return _versions[place]


def _stored_schema(
    self: FilesystemClient, version_hash: str | None = None, schema_name: str | None = None
) -> StorageSchemaInfo | None:
    """A schema that is asked for by its hash is the same each time; that it is still there is seen."""
    if version_hash is None:
        return _read_schema(self, version_hash, schema_name)  # type: ignore[arg-type]
    key = _place(self, self.dataset_path), version_hash
    if key in _schemas and self._to_path_safe_string(version_hash) in _hashes(self):
        return _schemas[key]
    found = _read_schema(self, version_hash, schema_name)  # type: ignore[arg-type]
    if found is not None:
        _schemas[key] = found
    return found


def _hashes(client: FilesystemClient) -> set[str]:
    """Of the schemas that the lake holds; one request."""
    try:
        return {parts[2] for _, parts in client._iter_stored_schema_files()}
    except DestinationUndefinedEntity:
        return set()


def _capabilities(self: filesystem, config: Any = None, naming: Any = None) -> DestinationCapabilitiesContext:
    """Of a lake. They depend on the kind of its place alone, which is given when it is named."""
    if config is None:
        config = self.spec(bucket_url=self.config_params["bucket_url"])
    return _tell_capabilities(self, config, naming)
