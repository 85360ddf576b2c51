"""The result of one query on the lake as CSV that a spreadsheet may open:

python -m scripts.export_csv "select name, bikes from …" --output stations.csv

A spreadsheet takes text that begins with = + - @, a tab or a carriage return for a formula, and runs it.
Names come from a feed that is not ours: such text, and such a heading, gets a ' before it, and text stands in
quotes, so that none begins in the middle of a cell. Numbers and times stay as they are, and with --raw text
does too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import duckdb

from ingestion.archive import absolute_location
from ingestion.lake import quoted
from ingestion.settings import PROJECT_ROOT, Settings
from scripts.command import CommandError, run_command
from scripts.open_query import opened_views

# blanks before it, which some programs skip, and the wide letters of East Asia do not help
FORMULA = r"^\s*[=+\-@\t\r＝＋－＠]"
NO_TEXT = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*|BOOLEAN|DATE|TIME.*")


class CsvError(CommandError):
    """A query that gives no CSV."""


def export_csv(
    connection: duckdb.DuckDBPyConnection, query: str, path: Path, *, is_raw: bool = False
) -> None:
    """Write the headings and rows of a query to a file; text that a spreadsheet would run is made harmless
    unless `is_raw`. Raises `CsvError`."""
    try:
        result = connection.sql(query)
        if result is None:
            raise CsvError(f"The query gives no rows: {query}. Give one that begins with select or from.")
        selected, options = ("*", "") if is_raw else _harmless(result)
        # by place: a query may give the same name twice
        places = ", ".join(f"c{place}" for place in range(len(result.columns)))
        named = "" if is_raw else f" as result ({places})"
        rows = f"select {selected} from result{named}"
        connection.execute(f"copy ({rows}) to {quoted(str(path))} (format csv, header{options})")
    except duckdb.Error as error:
        raise CsvError(f"The query failed: {query}. Mend it and run again.\n{error}") from error


def _harmless(result: duckdb.DuckDBPyRelation) -> tuple[str, str]:
    """What to select of a result, and how to write it: what is text, or would be written as text, cannot be
    run, nor can its heading."""
    selected, texts = [], []
    for place, (name, kind) in enumerate(zip(result.columns, result.types, strict=True)):
        column, heading = f"c{place}", _identifier(f"'{name}" if re.search(FORMULA, name) else name)
        if NO_TEXT.fullmatch(str(kind)):
            selected.append(f"{column} as {heading}")
            continue
        text = f"{column}::varchar"
        is_formula = f"regexp_matches({text}, {quoted(FORMULA)})"
        selected.append(f"if({is_formula}, chr(39) || {text}, {text}) as {heading}")
        texts.append(heading)
    return ", ".join(selected), f", force_quote ({', '.join(texts)})" if texts else ""


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("query", help="SQL on the models, seeds and bronze tables, as in scripts/just query")
    parser.add_argument("--output", metavar="FILE", help="instead of standard output")
    parser.add_argument("--raw", action="store_true", help="text as it is, for programs that run no formulas")
    given = parser.parse_args()

    def job(settings: Settings) -> None:
        with tempfile.TemporaryDirectory(prefix="bike-data-flow-") as folder:
            made = Path(folder) / "result.csv"
            with opened_views(settings) as connection:
                export_csv(connection, given.query, made, is_raw=given.raw)
            if given.output:
                base = os.environ.get("CALLED_FROM") or str(PROJECT_ROOT)
                shutil.copyfile(made, absolute_location(given.output, base))
            else:
                with open(made, "rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)

    run_command(job)


if __name__ == "__main__":
    main()
