"""What a change does to rows: scripts/just preview [BASE] [--json | --markdown] [--examples N]

The base revision (default: where HEAD left the main branch) and the working tree, uncommitted edits and new
files included, each build the same small lake of made-up data and a PostgreSQL in scratch places, with their
own code and with defaults for all settings. Then every gold mart and every public table of the one is compared
with the other's. Left out is what differs from build to build: the history of runs, and columns whose names
end in `silver_seconds`, which a build measures of itself. No lake or warehouse of yours is touched.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ingestion import run_history
from ingestion.lake import quoted
from ingestion.settings import Settings, load_settings
from scripts.command import CommandError, run_command
from scripts.revisions import changed_paths, commit_of, default_base, export_revision
from scripts.start_postgres import running_postgres
from scripts.table_differences import AFTER, BEFORE, EXAMPLES, Example, TableDifference, compare_tables
from transform.plugins.lake import load_extension

MEASURED = ("silver_seconds",)
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE")
SHARED_FILES = {
    "ingestion/schemas.py": "The bronze that both sides read has the change's schemas",
    "requirements.txt": "Both sides run with the packages of this environment",
}
ERROR_LINES = 30
VALUE_CHARACTERS = 50

_CHECK_CODE = """
import sys
from pathlib import Path
import ingestion
found = Path(ingestion.__file__).resolve().parent.parent
if found != Path.cwd().resolve():
    sys.exit(f"The code is not that of the side: {found}. Look for what puts it on Python's path.")
"""
_WRITE_BRONZE = """
from ingestion.settings import load_settings
from scripts.fixture_lake import write_fixture_lake
write_fixture_lake(load_settings())
"""
# by the command line, which changes less than the functions behind it
_BUILD = """
from scripts.run_pipeline import main
for stage in ("transform", "export"):
    sys.argv = ["run_pipeline", stage]
    main()
"""

logger = logging.getLogger("bike-data-flow")


class PreviewError(CommandError):
    """A side that does not build."""


@dataclass(frozen=True)
class Side:
    """One of the two states of the project: its code and the places that it builds in."""

    schema: str  # of the tables to compare
    revision: str | None  # None: the working tree
    folder: Path

    @property
    def name(self) -> str:
        return f"base {self.revision[:10]}" if self.revision else "working tree"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def settings(self) -> Settings:
        return load_settings({"DATA_DIR": str(self.folder / "data")})

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def environment(self) -> dict[str, str]:
        """Of the caller's environment next to nothing; one thread, so that sums of floats have one order."""
        own = {"DATA_DIR": "data", "HOME": "home", "TMPDIR": "tmp", "PYTHONPATH": "tree"}
        places = {name: str(self.folder / place) for name, place in own.items()}
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return inherited | places | {"DUCKDB_THREADS": "1", "LOG_LEVEL": "WARNING"}


@dataclass(frozen=True)
class Preview:
    """How the tables of the working tree differ from those of the base, a full commit hash."""

    base: str
    notes: list[str]
    tables: list[TableDifference]  # every table that was compared

    @property
    def different(self) -> list[TableDifference]:
        return [table for table in self.tables if table.is_different]

    @property
    def equal(self) -> list[TableDifference]:
        return [table for table in self.tables if not table.is_different]


def preview(revision: str | None, examples: int = EXAMPLES) -> Preview:
    """Build a revision (None: the default base) and the working tree in scratch places, and compare them.

    Raises `RevisionError` where there is no such revision, and `PreviewError` where a side does not build.
    """
    base = commit_of(revision) if revision else default_base()
    with tempfile.TemporaryDirectory(prefix="bike-data-flow-preview-") as scratch:
        before = Side(BEFORE, base, Path(scratch, "base"))
        after = Side(AFTER, None, Path(scratch, "change"))
        for side in (before, after):
            export_revision(side.revision, side.tree)
            for place in ("home", "tmp"):
                (side.folder / place).mkdir()
        with running_postgres(before.settings), running_postgres(after.settings):
            build(before, after)
            tables = compare(before, after, examples)
    differing = {*changed_paths(base)} & {*SHARED_FILES}
    notes = [f"{path} differs. {SHARED_FILES[path]}." for path in sorted(differing)]
    return Preview(base, notes, tables)


def build(before: Side, after: Side) -> None:
    """Write the raw data once, with the change's code, and have each side make its tables of it."""
    started = time.monotonic()
    logger.info("preview: writing three days of made-up raw data")
    run_code([after], _WRITE_BRONZE)
    shutil.copytree(after.settings.data_dir / "lake", before.settings.data_dir / "lake")
    logger.info("preview: building %s and %s", before.name, after.name)
    run_code([before, after], _BUILD)
    seconds = time.monotonic() - started
    logger.info("preview: both are built, %.1f s", seconds, extra={"seconds": round(seconds, 3)})


def run_code(sides: list[Side], code: str) -> None:
    """Run code in a Python of each side at once. Raises `PreviewError` with what a side that failed said."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_python(side, _CHECK_CODE + code)) for side in sides]
        failed = [side for side, process in zip(sides, processes, strict=True) if process.wait() != 0]
    if failed:
        names = " and ".join(side.name for side in failed)
        said = "\n".join(f"--- {side.name}\n{_last_lines(side.log)}" for side in failed)
        raise PreviewError(f"This does not build: {names}. Mend what it says, or name another BASE.\n{said}")


@contextmanager
def _python(side: Side, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python at work in a side's tree, which is gone at the end of the `with` block."""
    with open(side.log, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=side.tree,
            env=side.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us, once
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-ERROR_LINES:])


def compare(before: Side, after: Side, examples: int = EXAMPLES) -> list[TableDifference]:
    """Every gold mart and public table of either side, but for the history of runs: by layer and name."""
    history = {path.stem for side in (before, after) for path in _models(side.tree, run_history.SOURCE)}
    keys = read_keys(before.tree) | read_keys(after.tree)
    with closing(duckdb.connect()) as conn:
        conn.execute("set timezone = 'UTC'")
        load_extension(conn, "postgres_scanner")
        names = sorted({name for side in (before, after) for name in _load_tables(conn, side)})
        return [
            compare_tables(conn, name, keys.get(name, ()), MEASURED, examples)
            for name in names
            if name.partition(".")[2] not in history
        ]


def _models(tree: Path, source: str) -> list[Path]:
    """The models of a source that are marts or public tables."""
    return [
        *tree.glob(f"transform/models/marts/{source}/*.sql"),
        *tree.glob(f"exports/models/{source}/*.sql"),
    ]


def read_keys(tree: Path) -> dict[str, tuple[str, ...]]:
    """The columns that identify a row, as the YAML of a tree's models says: of a mart those of its uniqueness
    test, of a public table those of its primary key, such as {"gold.fct_daily_network": ("dt",)}."""
    keys = {}
    for layer, folder in (("gold", "transform/models/marts"), ("public", "exports/models")):
        for file in sorted(tree.glob(f"{folder}/*/*.yml")):
            for model in (yaml.safe_load(file.read_text()) or {}).get("models", []):
                if key := _key_of(model):
                    keys[f"{layer}.{model['name']}"] = key
    return keys


def _key_of(model: dict[str, Any]) -> tuple[str, ...]:
    tests = [test["unique_key"] for test in model.get("data_tests", []) if "unique_key" in test]
    unique = [test["arguments"]["columns"] for test in tests]
    primary = [rule["columns"] for rule in model.get("constraints", []) if rule["type"] == "primary_key"]
    return tuple(column.strip('"') for column in next(iter([*unique, *primary]), ()))


def _load_tables(conn: duckdb.DuckDBPyConnection, side: Side) -> list[str]:
    """Copy what a side has built into its schema; gives the names, such as gold.fct_daily_network."""
    conn.execute(f"create schema {side.schema}")
    relations = _gold_marts(side) | _public_tables(conn, side)
    for name, relation in relations.items():
        conn.execute(f'create table {side.schema}."{name}" as from {relation}')
    return list(relations)


def _gold_marts(side: Side) -> dict[str, str]:
    relations = {}
    for folder in sorted((side.settings.data_dir / "lake" / "gold").iterdir()):
        # of a model without a row there is nothing but its columns
        files = sorted(folder.glob("dt=*/data.parquet")) or sorted(folder.glob("_empty.parquet"))
        listed = ", ".join(quoted(str(file)) for file in files)
        relations[f"gold.{folder.name}"] = f"read_parquet([{listed}])"
    return relations


def _public_tables(conn: duckdb.DuckDBPyConnection, side: Side) -> dict[str, str]:
    given, database = side.settings.postgres_parameters(), f"{side.schema}_warehouse"
    place = " ".join(f"{name}={given[name]}" for name in ("host", "port", "user", "dbname"))
    conn.execute(f"attach {quoted(place)} as {database} (type postgres, read_only)")
    schema = side.settings.postgres_schema
    found = conn.execute(
        "select table_name from duckdb_tables() where database_name = ? and schema_name = ?",
        [database, schema],
    ).fetchall()
    return {f"public.{name}": f'{database}.{schema}."{name}"' for (name,) in found}


def show_text(found: Preview, console: Console) -> None:
    """The differences as people read them."""
    if found.different:
        table = Table(title=_title(found), title_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, justify="right" if heading in NUMBERS else "left")
        for difference in found.different:
            table.add_row(*(escape(cell) for cell in _cells(difference)))
        console.print(table)
    for difference in found.different:
        if difference.examples:
            console.print(f"\n[bold]{escape(difference.table)}[/]")
        for example in difference.examples:
            console.print(f"  {escape(_example_line(example))}", soft_wrap=True)
    console.print(*(escape(line) for line in _closing_lines(found)), sep="\n", soft_wrap=True)


NUMBERS = ("rows before", "rows after", "added", "removed", "changed")
HEADINGS = ("table", *NUMBERS, "columns")


def to_markdown(found: Preview) -> str:
    """The same as Markdown, for a comment on a change."""
    lines = [f"## {_title(found)}", ""]
    if found.different:
        lines += [_row(HEADINGS), _row("--:" if heading in NUMBERS else "---" for heading in HEADINGS)]
        lines += [_row(_cells(difference)) for difference in found.different]
        lines.append("")
    for difference in found.different:
        if difference.examples:
            lines += [f"**{difference.table}**", ""]
            lines += [f"- {_plain(_example_line(example))}" for example in difference.examples]
            lines.append("")
    return "\n".join([*lines, *_closing_lines(found)]) + "\n"


def _row(cells: Any) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for nothing but text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def to_json(found: Preview) -> str:
    """All that was compared, equal or not, for machines."""
    return json.dumps(asdict(found), indent=2, ensure_ascii=False)


def _title(found: Preview) -> str:
    return f"Rows of the working tree against base {found.base[:10]}, on made-up data"


def _closing_lines(found: Preview) -> list[str]:
    rows = sum(table.rows_after or 0 for table in found.equal)
    other = " other" if found.different else ""
    return [f"No differences in {len(found.equal)}{other} tables, {rows:,} rows.", *found.notes]


def _cells(difference: TableDifference) -> list[str]:
    rows = (difference.rows_before, difference.rows_after)
    counts = (difference.added, difference.removed, difference.changed)
    told = [*("no table" if count is None else f"{count:,}" for count in rows), *(f"{n:,}" for n in counts)]
    return [difference.table, *told, _columns_cell(difference)]


def _columns_cell(difference: TableDifference) -> str:
    return ", ".join(
        [
            *(f"{name} {count:,}" for name, count in difference.columns_changed.items()),
            *(f"+ {name} {kind}" for name, kind in difference.columns_added.items()),
            *(f"− {name}" for name in difference.columns_removed),
            *(f"{name} {old} → {new}" for name, (old, new) in difference.columns_retyped.items()),
        ]
    )


def _example_line(example: Example) -> str:
    key = ", ".join(f"{name}={_shown(value)}" for name, value in example.key.items())
    values = ", ".join(f"{name} {_change(*pair)}" for name, pair in example.values.items())
    return f"{key}: {values or example.kind}"


def _change(before: str | None, after: str | None) -> str:
    """`before → after`, of long texts the part where they begin to differ."""
    start = len(os.path.commonprefix([before or "", after or ""]))
    return " → ".join(_shown(value, start) for value in (before, after))


def _shown(value: str | None, start: int = 0) -> str:
    if value is None or len(value) <= VALUE_CHARACTERS:
        return "null" if value is None else value
    first = max(min(start - VALUE_CHARACTERS // 2, len(value) - VALUE_CHARACTERS), 0)
    part = value[first : first + VALUE_CHARACTERS]
    return f"{'…' if first else ''}{part}{'…' if first + VALUE_CHARACTERS < len(value) else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", nargs="?", metavar="BASE", help="a git revision to compare with")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of each kind and table (default: 3)")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="every table, for machines")
    forms.add_argument("--markdown", action="store_true", help="for a comment on the change")
    given = parser.parse_args()
    if given.examples < 0:
        parser.error(f"--examples cannot be used: {given.examples}. Give 0 or more.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the scratch places go then, too

    def job(settings: Settings) -> None:
        found = preview(given.base, given.examples)
        if given.json:
            print(to_json(found))
        elif given.markdown:
            print(to_markdown(found), end="")
        else:
            show_text(found, Console(highlight=False))

    run_command(job)


if __name__ == "__main__":
    main()
