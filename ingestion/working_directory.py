"""Mends dlt's working directory after a power cut, which dlt itself does not survive.

dlt does not force its files to the disk. A power cut may leave any of those that it wrote last torn, empty or
missing, and dlt then fails at each start, or loads a torn object. A directory that is not whole is set aside
as `<source>.torn-<time>`: dlt restores its state from the lake, and what waited to be loaded lands from here,
under the names that dlt would have given it, so that nothing lands twice.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.lake import Lake
from ingestion.schemas import BRONZE

PACKAGES = ("load/normalized", "normalize/extracted")  # the first are made from the second
TIME_COLUMNS = ("observed_at", "attempted_at", "started_at")

logger = logging.getLogger(__name__)


def set_torn_aside(folder: Path) -> None:
    """Move a working directory away that is not whole, so that dlt begins with an empty one."""
    torn = next(_torn_files(folder), None)
    if torn is None:
        return
    aside = folder.with_name(f"{folder.name}.torn-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    os.replace(folder, aside)
    logger.warning(
        "dlt's working directory is not whole, as a power cut leaves it: %s. Going on from the lake's state.",
        torn,
    )


def land_set_aside(lake: Lake, folder: Path) -> None:
    """Bring to bronze what waited to be loaded in working directories that were set aside, and remove these.
    One that holds a torn payload stays with that alone, and a warning. Raises what the store raises."""
    for aside in sorted(folder.parent.glob(f"{folder.name}.torn-*")):
        torn = []
        for copies in _waiting(aside):
            whole = next(filter(_is_whole, copies), None)
            if whole is None:
                torn += copies
                continue
            _land(lake, folder.name, whole)
            for path in copies:  # a compaction takes its name from what has landed: it would land again
                path.unlink()
        if torn:
            logger.warning("Lost to a power cut before it landed: %s. Look at it, then remove it.", torn[0])
        else:
            shutil.rmtree(aside)


def _torn_files(folder: Path) -> Iterator[Path]:
    """What dlt reads and is torn or missing; of a package that a kill left half made it reads nothing."""
    packages = [package for place in PACKAGES for package in folder.glob(f"{place}/*")]
    read = [folder / "state.json", *folder.glob("*/.version"), *folder.glob("schemas/*.json")]
    read += [path for package in packages for path in package.rglob("*")]
    yield from (path for path in read if path.is_file() and not _is_whole(path))
    needed = [package / name for package in packages for name in ("schema.json", "load_package_state.json")]
    if packages:
        needed += [folder / "state.json", folder / f"schemas/{folder.name}.schema.json"]
    yield from (path for path in needed if not path.exists())


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.name == ".version":
            return path.read_text().count(".") == 2
        elif path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".gz":
            return bool(gzip.decompress(path.read_bytes()))
    except (ValueError, EOFError, gzip.BadGzipFile, pa.ArrowInvalid):
        return False
    return True


def _waiting(aside: Path) -> list[list[Path]]:
    """Payloads of packages that were not loaded, each with what it was normalized from where that stands."""
    copies: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for place in PACKAGES:
        for state in ("new_jobs", "started_jobs"):
            for path in sorted(aside.glob(f"{place}/*/{state}/*.parquet")):
                copies[path.parent.parent.name, path.name.split(".")[0]].append(path)
    return list(copies.values())


def _land(lake: Lake, source: str, path: Path) -> None:
    """Put a payload into bronze, unless its load stands there."""
    table, file_id = path.name.split(".")[:2]
    if table not in BRONZE[source]:
        return
    load_id = path.parent.parent.name
    folder = f"{lake.root}/bronze/{source}/{table}"
    if not lake.filesystem().glob(f"{folder}/dt=*/{load_id}.*.parquet"):
        lake.filesystem().put_file(
            str(path), f"{folder}/dt={_observed_day(path)}/{load_id}.{file_id}.parquet"
        )


def _observed_day(path: Path) -> str:
    """The UTC day that the package says, or where that is torn, the payload's first row."""
    try:
        return str(json.loads((path.parent.parent / "load_package_state.json").read_bytes())["observed_day"])
    except (OSError, ValueError, KeyError):
        rows = pq.read_table(path, use_threads=False)
        column = next(name for name in TIME_COLUMNS if name in rows.schema.names)
        return str(rows[column][0].as_py().date())
