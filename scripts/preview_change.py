"""What a change does to rows: scripts/just preview [BASE] [--json | --markdown] [--examples N]

The base revision (default: where HEAD left the main branch) and the working tree, uncommitted edits and new
files included, each build the same small lake of made-up data and a PostgreSQL in scratch places, with their
own code and defaults for all settings. Then every gold mart and public table of the one is compared with the
other's. Left out is what differs from build to build: the history of runs, and columns whose names end in
`silver_seconds`, which a build measures of itself. No lake or warehouse of yours is touched.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import yaml
from rich.console import Console

from ingestion import run_history
from ingestion.lake import quoted
from ingestion.settings import Settings, load_settings
from scripts.command import CommandError, run_command
from scripts.difference_report import Preview, show_text, to_json, to_markdown
from scripts.revisions import changed_paths, commit_of, default_base, export_revision
from scripts.start_postgres import running_postgres
from scripts.table_differences import AFTER, BEFORE, EXAMPLES, TableDifference, compare_tables
from transform.plugins.lake import load_extension

MEASURED = ("silver_seconds",)
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE")
SHARED_FILES = {
    "ingestion/schemas.py": "the raw data that both sides read has the change's schemas",
    "requirements.txt": "both sides ran with the packages of this environment",
}
ERROR_LINES = 30
WIDTH = 120

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


def preview(revision: str | None, examples: int = EXAMPLES) -> Preview:
    """Build a revision (None: the default base) and the working tree in scratch places, and compare them.

    Raises `RevisionError` where there is no such revision, and `PreviewError` where a side does not build.
    """
    base = commit_of(revision) if revision else default_base()
    differing = sorted({*changed_paths(base)} & {*SHARED_FILES})
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
    notes = [f"{path} differs: {SHARED_FILES[path]}." for path in differing]
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
            console = Console(highlight=False)
            if not console.is_terminal:
                console.width = WIDTH
            show_text(found, console)

    run_command(job)


if __name__ == "__main__":
    main()
