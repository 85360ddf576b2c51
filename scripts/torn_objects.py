"""Objects of the lake that are not whole, as a failing disk or a copy that was cut short leaves them. What
the project publishes is whole, also after a power cut."""

from __future__ import annotations

import contextlib
import re

from ingestion.lake import Lake

# what DuckDB says of one
_TORN = re.compile(
    r"(?:No magic bytes found at end of|Footer length error in) file '([^']+)'"
    r"|File '([^']+)' too small to be a Parquet file"
)


def find_torn(lake: Lake, text: str) -> list[str]:
    """Paths of the lake's objects that an error of DuckDB's calls torn."""
    found = {one or other for one, other in _TORN.findall(text)}
    return sorted(path for path in found if path.startswith(f"{lake.root}/"))


def give_up_torn(lake: Lake, path: str) -> bool:
    """Remove a torn object of silver or gold with the state of its model, which the next build makes anew
    from the days that are whole; tells whether it did. Of bronze nothing is ever removed."""
    from transform.plugins.lake import LAYERS  # slow to import

    layer, model = path.removeprefix(f"{lake.root}/").split("/")[:2]
    if layer not in LAYERS:
        return False
    for each in {path, f"{lake.root}/{layer}/{model}/_state.parquet"}:
        with contextlib.suppress(FileNotFoundError):
            lake.filesystem().rm_file(each)
    return True


def tell_torn(path: str) -> str:
    """What to do about a torn object that nothing can make anew."""
    return (
        f"An object of the lake is not whole: {path}. Bring it back from a copy; or move it out of the lake, "
        "and import its snapshots again if it is of bronze."
    )
