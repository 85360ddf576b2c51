"""dbt's parsed projects, kept for the life of a process.

A project that does not change parses to the same manifest each time, and reading dbt's own record of it takes
a third of a second: as long as all else that dbt does where nothing is stale.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from dbt.contracts.graph.manifest import Manifest
from dbt.contracts.graph.nodes import CompiledNode

from scripts.command import made_to_stay

ENDINGS = frozenset({".sql", ".yml", ".csv"})

# by project folder: the state of its files and environment, and what came of parsing it then
_parsed: dict[Path, tuple[Sequence[object], Manifest]] = {}


def parsed_project(folder: Path, environment: Collection[str], parse: Callable[[], Any]) -> Manifest | None:
    """The manifest of the dbt project in `folder`, as if it had just been parsed.

    It is parsed, by `parse`, where this process has not done so since the last change of the project's files
    or of the variables named in `environment`. None where it cannot be: dbt tells why when it builds.
    """
    state = (*(os.environ.get(name) for name in sorted(environment)), *_files(folder))
    known = _parsed.get(folder)
    if known and known[0] == state:
        _forget_compilation(known[1])
        return known[1]
    with made_to_stay() if known is None else contextlib.nullcontext():
        manifest = parse()
    if not isinstance(manifest, Manifest):
        return None
    _parsed[folder] = (state, manifest)
    return manifest


def _files(folder: Path) -> list[tuple[str, int]]:
    return sorted(
        (str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.suffix in ENDINGS
    )


def _forget_compilation(manifest: Manifest) -> None:
    """Undo what a run leaves in the manifest's nodes: dbt takes a node that it finds compiled for done, and
    leaves the text of ephemeral models out of what reads them."""
    for node in manifest.nodes.values():
        if isinstance(node, CompiledNode):  # all but seeds
            node.compiled, node.compiled_code = False, None
            node.extra_ctes, node.extra_ctes_injected = [], False
            node._pre_injected_sql = None
