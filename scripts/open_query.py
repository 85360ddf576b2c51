"""DuckDB's shell on the lake, with a view for every model that is built, the bronze tables and the seeds:

python -m scripts.open_query                              an interactive shell
python -m scripts.open_query "select …"                   prints a result and ends
python -m scripts.open_query -json "select …" >file.json  options go to the shell: -json, -markdown, -line, …

Views and seeds stand in a database file of its own, which goes when the shell ends: what is made in it is not
kept. The lake itself is read, never written.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb

from ingestion.lake import Lake, quoted
from ingestion.settings import Settings
from scripts.command import CommandError, run_command
from transform.plugins.lake import (
    LAYERS,
    create_bronze_views,
    create_views,
    open_lake,
    storage_statements,
)

# the program itself: the wheel's command for it downloads one where it has none
_WHEEL = importlib.util.find_spec("duckdb_cli")
assert _WHEEL is not None and _WHEEL.origin is not None
SHELL = Path(_WHEEL.origin).parent / "duckdb"


def main() -> None:
    run_command(_open)


def _open(settings: Settings) -> None:
    lake = Lake.of(settings)
    _end_tidily()
    with tempfile.TemporaryDirectory(prefix="bike-data-flow-") as folder:
        database = str(Path(folder) / "lake.duckdb")
        with opened_views(settings, database):
            pass  # the shell opens the file after us
        status = _run_shell(_preparation(settings, lake), [database, *sys.argv[1:]])
    raise SystemExit(status)


def _end_tidily() -> None:
    """Have a closed terminal end this process by way of its `with` blocks."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


@contextmanager
def opened_views(settings: Settings, database: str = ":memory:") -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with a view for every model that is built, the bronze tables and the seeds, for the length of
    a `with` block; what is left out, or missing, is told. Raises `CommandError` where the lake is away."""
    lake = Lake.of(settings)
    try:
        connection = open_lake(settings, database, layers=())
        _make_views(connection, lake)
    except (duckdb.Error, OSError) as error:
        raise CommandError(
            f"The lake is out of reach: {lake.url}. Check LAKE_URL and the AWS settings.\n{error}"
        ) from error
    with closing(connection):
        yield connection


def _make_views(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    denials: dict[str, Exception] = {}
    for layer in LAYERS:
        with _noted_denial(denials, layer):
            create_views(connection, lake, layer)
    built = connection.execute("select 1 from duckdb_views() where not internal").fetchall()
    with _noted_denial(denials, "bronze"):
        create_bronze_views(connection, lake)
    if len(denials) > len(LAYERS):
        raise denials["bronze"]
    if denials:
        print(f"Left out, as these credentials may not read it: {', '.join(denials)}.", file=sys.stderr)
    elif not built:
        print(
            f"Nothing is built yet: {lake.url}. Run: scripts/just run, or scripts/just backfill PATH_OR_URL.",
            file=sys.stderr,
        )


@contextmanager
def _noted_denial(denials: dict[str, Exception], layer: str) -> Iterator[None]:
    """Go on where the credentials may not read a layer: a reader's may read gold alone."""
    try:
        yield
    except PermissionError as error:
        denials[layer] = error
    except duckdb.HTTPException as error:
        if error.status_code != 403:
            raise
        denials[layer] = error


def _preparation(settings: Settings, lake: Lake) -> str:
    """What the shell runs first: a database file keeps neither settings, nor variables, nor secrets."""
    statements = [
        "set timezone = 'UTC'",
        f"set memory_limit = {quoted(settings.duckdb_memory_limit)}",
        f"set threads = {settings.duckdb_threads}",
        "set autoinstall_known_extensions = false",
        *storage_statements(lake),
        f"set variable lake = {quoted(lake.root)}",
    ]
    # a secret reports its success, which is no part of an answer
    return ".output /dev/null\n" + "".join(f"{statement};\n" for statement in statements) + ".output\n"


def _run_shell(preparation: str, arguments: list[str]) -> int:
    """Run DuckDB's shell where the user stands; gives its status. The user's ~/.duckdbrc is left out."""
    with tempfile.TemporaryFile("w+") as file:  # has no name, so that nobody else can read the secrets in it
        file.write(preparation)
        file.seek(0)
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the shell, which stops a query with it
        command = [str(SHELL), "-no-init", "-cmd", f".read /dev/fd/{file.fileno()}", *arguments]
        folder = os.environ.get("CALLED_FROM") or None  # `just` goes to the project's root
        return subprocess.run(command, pass_fds=[file.fileno()], cwd=folder).returncode


if __name__ == "__main__":
    main()
