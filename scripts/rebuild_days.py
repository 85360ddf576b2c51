"""Rebuild UTC days of every model, stale or not, show which lines moved between kept and quarantined, and
bring the days to PostgreSQL: python -m scripts.rebuild_days 2025-05-12 2025-06-01..2025-06-30

So a mended rule can be tried on a few days; the next `transform` and `export` do the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import date

import duckdb
import psycopg2
from rich.console import Console
from rich.table import Table

from ingestion import run_history
from ingestion.lake import Lake, quoted
from ingestion.schemas import BRONZE
from ingestion.settings import Settings
from scripts.command import CommandError, run_command, the_only_job
from scripts.run_pipeline import export_marts, reconcile, transform
from scripts.start_postgres import running_postgres
from transform.plugins.lake import open_lake

logger = logging.getLogger("bike-data-flow")


class DaysError(CommandError):
    """Days that cannot be rebuilt."""


@dataclass(frozen=True)
class Account:
    """What became of one day's lines, in numbers."""

    kept: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True)
class Move:
    """Lines of one day that went into quarantine or out of it, and why they were rejected."""

    day: date
    way: str
    reasons: str
    lines: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("days", nargs="+", help="2025-05-12, or 2025-05-01..2025-05-31")
    given = parser.parse_args()

    def job(settings: Settings) -> None:
        ranges = [parse_range(text) for text in given.days]
        with the_only_job(settings, "rebuild"):
            rebuild(settings, held_days(settings, ranges))

    run_command(job)


def rebuild(settings: Settings, days: list[date]) -> None:
    """Rebuild the days, report, and bring them to PostgreSQL."""
    # all days in one call of dbt: it parses the project anew whenever --vars change
    only = ("--vars", json.dumps({"days": [str(day) for day in days]}))
    with running_postgres(settings), tempfile.TemporaryDirectory(prefix="bike-data-flow-") as folder:
        land_again(settings, days)
        quarantine = f"{folder}/quarantine.parquet"
        before = remember(settings, days, quarantine)
        try:
            transform(settings, "--full-refresh", *only)
        finally:  # a red test is best understood by what moved
            report(before, *compare(settings, days, before, quarantine))
        export_marts(settings, *only)
        reconcile(settings)


def parse_range(text: str) -> tuple[date, date]:
    """First and last day of `2025-05-12` or `2025-05-01..2025-05-31`. Raises `DaysError`."""
    day = r"\d{4}-\d\d-\d\d"
    try:
        if not re.fullmatch(rf"{day}(\.\.{day})?", text):
            raise ValueError
        first, last = (date.fromisoformat(part) for part in (text[:10], text[-10:]))
    except ValueError:
        raise DaysError(
            f"DAYS are malformed: {text!r}. Give days such as 2025-05-12 or 2025-05-01..2025-05-31."
        ) from None
    if first > last:
        raise DaysError(f"DAYS run backwards: {text!r}. Give the earlier day first: {last}..{first}.")
    return first, last


def held_days(settings: Settings, ranges: list[tuple[date, date]]) -> list[date]:
    """Days of the ranges of which bronze holds anything of a feed, in order. Raises `DaysError` on none."""
    lake = Lake.of(settings)
    found = {
        match[1]
        for source, tables in BRONZE.items()
        if source != run_history.SOURCE
        for table in tables
        for folder in lake.filesystem().glob(f"{lake.root}/bronze/{source}/{table}/dt=*")
        if (match := re.search(r"/dt=(\d{4}-\d\d-\d\d)/?$", folder))
    }
    held = sorted(date.fromisoformat(day) for day in found)
    wanted = [day for day in held if any(first <= day <= last for first, last in ranges)]
    for first, last in ranges:
        if wanted and not any(first <= day <= last for day in held):
            logger.warning("The lake holds nothing of %s.", range_text(first, last))
    if wanted:
        return wanted
    asked = " ".join(range_text(first, last) for first, last in ranges)
    holds = f"days from {held[0]} to {held[-1]}" if held else "nothing yet"
    raise DaysError(
        f"The lake holds none of these days: {asked}. It holds {holds}; "
        "import others with: scripts/just backfill PATH_OR_URL"
    )


def range_text(first: date, last: date) -> str:
    """A range as people give it; one without an end on that side is open."""
    if first == last:
        return str(first)
    return f"{'' if first == date.min else first}..{'' if last == date.max else last}"


def land_again(settings: Settings, days: list[date]) -> None:
    """Have the next export land these days whole. Done first: so it does even if this run is killed."""
    exported = f"{settings.landing_schema}.exported_objects"
    with closing(psycopg2.connect(**settings.postgres_parameters())) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("select to_regclass(%s) is not null", [exported])
        if cursor.fetchone() == (True,):
            cursor.execute(
                f"update {exported} set fingerprint = '' where lake = %s and dt = any(%s)",
                [Lake.of(settings).root, days],
            )


def remember(settings: Settings, days: list[date], file: str) -> dict[date, Account]:
    """The days as they stand, their quarantined lines in a Parquet file of the disk or the lake; nothing if
    they were never built."""
    with closing(open_lake(settings)) as lake:
        try:
            lake.execute(f"copy ({_quarantined(days)}) to {quoted(file)} (format parquet)")
            return _accounts(lake, days)
        except duckdb.CatalogException:  # a view is missing
            return {}


def compare(
    settings: Settings, days: list[date], before: dict[date, Account], file: str
) -> tuple[dict[date, Account], list[Move]]:
    """The days as they stand now, and the lines that moved on those that were built before."""
    known = [day for day in days if day in before]
    with closing(open_lake(settings)) as lake:
        try:
            return _accounts(lake, days), _moves(lake, known, file) if known else []
        except duckdb.CatalogException:  # a view is missing: the first build failed
            return {}, []


def _accounts(lake: duckdb.DuckDBPyConnection, days: list[date]) -> dict[date, Account]:
    rows = lake.execute(
        "select dt, station_readings_count + free_bike_readings_count, duplicates_count, quarantined_count "
        f"from fct_daily_processing where dt in ({_listed(days)})"
    ).fetchall()
    return {day: Account(*counts) for day, *counts in rows}


def _moves(lake: duckdb.DuckDBPyConnection, days: list[date], file: str) -> list[Move]:
    line = "(payload_sha256, line_number, snapshot_observed_at)"
    rows = lake.execute(f"""
        with before as (select * from read_parquet({quoted(file)})),
        now as ({_quarantined(days)}),
        moved as (
            select dt, 'out of quarantine' as way, reasons from before anti join now using {line}
            union all
            select dt, 'into quarantine', reasons from now anti join before using {line}
        )
        select dt, way, reasons, count(*) from moved group by all order by all""").fetchall()
    return [Move(*row) for row in rows]


def _quarantined(days: list[date]) -> str:
    return (
        "select dt, payload_sha256, line_number, snapshot_observed_at, "
        "array_to_string(list_sort(rejection_reasons), ' + ') as reasons "
        f"from int_wrm__lines_quarantined where dt in ({_listed(days)})"
    )


def _listed(days: list[date]) -> str:
    return ", ".join(quoted(str(day)) for day in days)


def report(
    before: dict[date, Account],
    now: dict[date, Account],
    moves: list[Move],
    statuses: dict[date, str] | None = None,
) -> None:
    """What became of the days' lines, and the lines that are judged otherwise now; with a status of each day
    where there is one."""
    console = Console(highlight=False)
    counts = [field.name for field in fields(Account)]
    accounts = _table("Lines of the rebuilt days (UTC)", "day", *(["status"] if statuses else []), *counts)
    for day in sorted({*now, *(statuses or {})}):
        status = [statuses.get(day, "")] if statuses else []
        accounts.add_row(str(day), *status, *_changes(before.get(day), now.get(day)))
    console.print(accounts)
    if not moves:
        console.print("Nothing moved between kept and quarantined.")
        return
    moved = _table("Lines that moved", "day", "lines", "way", "reasons")
    for move in moves:
        moved.add_row(str(move.day), f"{move.lines:,}", move.way, move.reasons)
    console.print(moved)


def _changes(before: Account | None, now: Account | None) -> list[str]:
    if now is None:
        return [""] * len(fields(Account))
    names = [field.name for field in fields(Account)]
    return [_change(getattr(before, name) if before else None, getattr(now, name)) for name in names]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in ("day", "status", "way", "reasons") else "right"
        )
    return table


def _change(before: int | None, now: int) -> str:
    if before is None:
        return f"not built → {now:,}"
    return f"{now:,}" if before == now else f"{before:,} → {now:,}"


if __name__ == "__main__":
    main()
