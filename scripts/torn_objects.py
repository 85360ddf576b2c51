"""Objects of the lake that are not whole, as a failing disk or a copy that was cut short leaves them. What
the project publishes is whole, also after a power cut."""

from __future__ import annotations

import contextlib
import re
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq

from ingestion.lake import Lake

# what DuckDB says of one
_TORN = re.compile(
    r"(?:No magic bytes found at end of|Footer length error in) file '([^']+)'"
    r"|File '([^']+)' too small to be a Parquet file"
)
# what a build makes anew, below the lake's root
_MADE = re.compile(r"(silver|gold)/([a-z0-9_]+)/(?:dt=(\d{4}-\d\d-\d\d)/data|_state|_empty)\.parquet")


def find_torn(lake: Lake, text: str) -> set[str]:
    """Paths of the lake's objects that an error of DuckDB's calls torn."""
    found = {one or other for one, other in _TORN.findall(text)}
    return {path for path in found if path.startswith(f"{lake.root}/")}


def give_up_torn(lake: Lake, path: str) -> bool:
    """Have a torn object of silver or gold built anew: its day is to be rebuilt, and the object goes. Tells
    whether there is sense in trying again; of bronze nothing is ever removed, and nothing that is whole when
    it is read once more.

    The state of the model is written first: wherever this is cut off, the day waits to be rebuilt.
    """
    made = _MADE.fullmatch(path.removeprefix(f"{lake.root}/"))
    if made is None:
        return False
    if not _is_torn(lake, path):
        return True
    _, model, day = made.groups()
    if day:
        _forget_day(lake, model, date.fromisoformat(day))
    with contextlib.suppress(FileNotFoundError):
        lake.filesystem().rm_file(path)
    return True


def _is_torn(lake: Lake, path: str) -> bool:
    """Whether an object is there and cannot be read; raises what S3 says where it is out of reach."""
    try:
        with lake.filesystem().open(path, "rb") as file:
            pq.ParquetFile(file)
    except pa.ArrowInvalid:
        return True
    except FileNotFoundError:
        pass
    return False


def _forget_day(lake: Lake, model: str, day: date) -> None:
    from scripts.backfill_days import forget_days  # builds on dbt's runs, which call this
    from scripts.lake_reader import read_states

    state = read_states(lake).get(model)
    if state is not None:
        forget_days(lake, state, [day])


def tell_torn(path: str) -> str:
    """What to do about a torn object that nothing can make anew."""
    return (
        f"An object of the lake is not whole: {path}. Bring it back from a copy; or, if it is of bronze, "
        "move it out of the lake and import its snapshots again."
    )
