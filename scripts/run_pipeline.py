"""The main job and its stages: feed or archive → bronze → PostgreSQL → silver and gold → summaries.

python -m scripts.run_pipeline run                 one snapshot of the live feed, through every stage
python -m scripts.run_pipeline backfill            the gaps in the snapshots, and what may fill them
python -m scripts.run_pipeline backfill ARCHIVE    an archive of raw text files, through every stage
python -m scripts.run_pipeline backfill --from 2025-05-01 --to 2025-05-31
                                                   days of the lake once more, through every stage
python -m scripts.run_pipeline ingest wrm [--minutes N] | transform | export
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import psycopg2
from tqdm import tqdm

from ingestion.archive import absolute_location
from ingestion.settings import PROJECT_ROOT, Settings
from scripts.command import run_command, the_only_job
from scripts.pipeline_run import check_lease
from scripts.poll_feed import poll_for
from scripts.run_dbt import run_dbt
from scripts.start_postgres import running_postgres

if TYPE_CHECKING:  # dlt is slow to import, and only some jobs need it
    from ingestion.wrm import ImportOutcome, LiveOutcome, SeenArchive

# public tables that PostgreSQL gets before their days are rebuilt in the lake
READINGS = ("bike_stations", "free_bikes")

# messages of dbt's nodes that tell of days or rows: "built days: 2", "landed days: 1", "INSERT 0 705"
_NEWS = re.compile(r"(built|landed|removed|INSERT)\D*(?:0 )?(\d+)$")

logger = logging.getLogger("bike-data-flow")


@dataclass
class Stages:
    """Seconds that each stage took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - started


def take_snapshot(settings: Settings) -> LiveOutcome:
    """Poll the live feed once. The attempt is in the lake whatever comes of it."""
    from ingestion import wrm

    check_lease(needs_store=False)
    started = time.monotonic()
    outcome = wrm.take_snapshot(settings)
    what = "unchanged" if outcome.is_unchanged else "taken" if outcome.is_taken else "failed"
    seconds = time.monotonic() - started
    numbers = {"rows": int(outcome.is_taken), "bytes": outcome.payload_bytes, "seconds": round(seconds, 3)}
    logger.info(
        "ingest wrm: snapshot %s, %d bytes, %.1f s",
        what,
        outcome.payload_bytes,
        seconds,
        extra={"source": "wrm", **numbers},
    )
    return outcome


def import_archive(settings: Settings, location: str, seen: SeenArchive | None = None) -> ImportOutcome:
    """Import what is new in an archive, with a progress bar on a terminal."""
    from ingestion import wrm

    check_lease()
    started = time.monotonic()
    with tqdm(desc="importing", unit=" files", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        outcome = wrm.import_archive(settings, location, show, seen)
    report_import(outcome, time.monotonic() - started)
    return outcome


def import_recent(
    settings: Settings, location: str, days: Iterable[date], seen: SeenArchive
) -> ImportOutcome:
    """Import what an archive has got since the last look, of what lies where files of some days do."""
    from ingestion import wrm

    check_lease()
    started = time.monotonic()
    outcome = wrm.import_recent(settings, location, days, seen)
    if outcome.taken or outcome.refused:
        report_import(outcome, time.monotonic() - started)
    return outcome


def report_import(outcome: ImportOutcome, seconds: float) -> None:
    """Log what an import gave, and why files were refused."""
    numbers = {"rows": outcome.taken, "bytes": outcome.payload_bytes, "seconds": round(seconds, 3)}
    logger.info(
        "ingest wrm: %d files found, %d new, %d known, %d refused, %d bytes, %.1f s",
        outcome.listed,
        outcome.taken,
        outcome.known,
        len(outcome.refused),
        outcome.payload_bytes,
        seconds,
        extra={"source": "wrm", **numbers},
    )
    for reason in outcome.refused:
        logger.warning("%s", reason)


def export_readings(settings: Settings) -> None:
    """New readings into PostgreSQL, straight from bronze, before any day is rebuilt."""
    _dbt(settings, "transform", "build", "--select", *(f"landing_wrm__{table}" for table in READINGS))
    # tests that read summaries too wait for these
    _export(settings, [*READINGS], "--indirect-selection", "cautious")


def transform(settings: Settings, *options: str) -> None:
    """Rebuild the stale days of every model of the lake, and test what was built; `options` are dbt's, and
    say which models where it is not all."""
    # unit tests are about code: CI runs them, `dbt build` does too; seeds are there from the start
    excluded = ("--exclude-resource-type", "unit_test", "--exclude-resource-type", "seed")
    _dbt(settings, "transform", "build", *excluded, *(options or ("--selector", "stale_days")))


def export_marts(settings: Settings, *options: str) -> None:
    """The marts' rebuilt days into PostgreSQL, and what else is not there yet; `options` are those of the
    dbt that lands them."""
    _dbt(settings, "transform", "build", "--select", "tag:landing", *options)
    _export(settings, _public_tables())


def _export(settings: Settings, tables: list[str], *options: str) -> None:
    """Those of the public tables for which something has landed, or which are not there yet and could be."""
    schema = settings.landing_schema
    waiting = (
        f"select split_part(model, '__', 2) from {schema}.pending_objects union "
        "(select split_part(tablename, '__', 2) from pg_tables where schemaname = %s "
        "except select tablename::text from pg_tables where schemaname = %s)"
    )
    with (
        closing(psycopg2.connect(**settings.postgres_parameters())) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(waiting, [schema, settings.postgres_schema])
        selected = sorted({name for (name,) in cursor.fetchall()} & set(tables))
    if selected:
        _dbt(settings, "exports", "build", "--select", *selected, *options)
    else:
        logger.info("exports: nothing new")


def _public_tables() -> list[str]:
    return sorted(path.stem for path in PROJECT_ROOT.glob("exports/models/*/*.sql"))


def reconcile(settings: Settings) -> None:
    """Compare lake and PostgreSQL on the days just exported: counts and checksums."""
    started = time.monotonic()
    run_dbt(settings, "transform", "--quiet", "build", "--select", "tag:reconciliation")
    seconds = time.monotonic() - started
    logger.info(
        "reconciliation: lake and PostgreSQL agree, %.1f s",
        seconds,
        extra={"source": "reconciliation", "seconds": round(seconds, 3)},
    )


def _dbt(settings: Settings, project: str, *arguments: str) -> None:
    started = time.monotonic()
    nodes = run_dbt(settings, project, "--quiet", *arguments)
    news = _summary(nodes) or "nothing new"
    seconds = time.monotonic() - started
    numbers = {"source": project, "seconds": round(seconds, 3)}
    logger.info("%s: %s, %.1f s", project, news, seconds, extra=numbers)


def _summary(nodes: dict[str, str]) -> str:
    """What dbt's nodes report, one by one where they are few: "bike_stations rows: 705"."""
    found = {name: _NEWS.match(message) for name, message in nodes.items()}
    news = [(name, match[1], int(match[2])) for name, match in found.items() if match and match[2] != "0"]
    if len(news) > 3:
        news = [(f"{len(news)} models", news[0][1], sum(count for _, _, count in news))]
    return ", ".join(f"{name} {_counted(verb, count)}" for name, verb, count in news)


def _counted(verb: str, count: int) -> str:
    return f"rows: {count:,}" if verb == "INSERT" else f"{verb} days: {count:,}"


def build_and_export(settings: Settings, stages: Stages) -> None:
    """Everything after ingestion, PostgreSQL's readings first."""
    with stages.timed("readings to PostgreSQL"):
        export_readings(settings)
    with stages.timed("silver and gold"):
        transform(settings)
    with stages.timed("marts to PostgreSQL"):
        export_marts(settings)
    with stages.timed("reconciliation"):
        reconcile(settings)


def run(settings: Settings) -> str | None:
    """The main job on the live feed; what arrived earlier is built and exported whatever it does."""
    with running_postgres(settings):
        error = take_snapshot(settings).error
        build_and_export(settings, Stages())
    return error and (
        f"{error}.\nThe attempt is recorded and what had arrived earlier is exported. Try again later, see "
        "a simulated feed with `scripts/just demo`, or import an archive with "
        "`scripts/just backfill PATH_OR_URL`."
    )


def backfill(settings: Settings, location: str) -> str | None:
    """Import an archive, then build and export."""
    with running_postgres(settings):
        refused = import_archive(settings, location).refused
        build_and_export(settings, Stages())
    return f"{len(refused)} files were refused, see above; all others are in." if refused else None


def show_gaps(settings: Settings) -> None:
    """Every gap in the snapshots; takes no lock."""
    from scripts import backfill_days  # builds on this module

    backfill_days.show_gaps(settings)


def rebuild_range(settings: Settings, first: date, last: date) -> str | None:
    """Rebuild days of the lake through every layer, and export them."""
    from scripts import backfill_days

    return backfill_days.rebuild_range(settings, first, last)


def ingest(settings: Settings, source: str, minutes: float | None = None) -> str | None:
    """One poll of a source's live feed into bronze, or one every WATCH_POLL_SECONDS for so many minutes."""
    if minutes is None:
        return take_snapshot(settings).error
    return poll_for(lambda: take_snapshot(settings).error, minutes, settings.watch_poll_seconds)


def export(settings: Settings) -> None:
    """What PostgreSQL does not have yet: readings from bronze, and the marts' days as they are built; also
    grants, comments and new columns where nothing has landed."""
    with running_postgres(settings):
        _dbt(settings, "transform", "build", "--select", "tag:landing")
        _dbt(settings, "exports", "build")


def _day(text: str) -> date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"malformed: {text!r}. Give a day such as 2025-05-12.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    jobs.add_parser("run")
    backfills = jobs.add_parser("backfill")
    backfills.add_argument("archive", nargs="?", help="folder, file or s3:// prefix")
    for option, name, default in (("--from", "first", date.min), ("--to", "last", date.max)):
        text = f"{name} day (UTC) to rebuild"
        backfills.add_argument(option, dest=name, metavar="DAY", type=_day, default=default, help=text)
    ingesting = jobs.add_parser("ingest")
    ingesting.add_argument("source", choices=["wrm"])
    ingesting.add_argument("--minutes", type=float, help="go on polling, every WATCH_POLL_SECONDS")
    jobs.add_parser("transform")
    jobs.add_parser("export")
    given = parser.parse_args()
    has_days = given.job == "backfill" and (given.first, given.last) != (date.min, date.max)
    if has_days and given.archive:
        backfills.error(
            f"an archive and days cannot go together: {given.archive}. Import it first, then rebuild days."
        )
    if has_days and given.first > given.last:
        backfills.error(
            f"days run backwards: --from {given.first} --to {given.last}. Give the earlier first."
        )
    # `just` runs recipes in the project's root: a relative archive is meant from where it was called
    called_from = os.environ.get("CALLED_FROM") or os.getcwd()
    jobs_by_name: dict[str, Callable[[Settings], str | None]] = {
        "run": run,
        "backfill": lambda s: (
            backfill(s, absolute_location(given.archive, called_from))
            if given.archive
            else rebuild_range(s, given.first, given.last)
        ),
        "ingest": lambda s: ingest(s, given.source, given.minutes),
        "transform": transform,
        "export": export,
    }

    def job(settings: Settings) -> str | None:
        if given.job == "backfill" and not given.archive and not has_days:
            show_gaps(settings)
            return None
        with the_only_job(settings, given.job) as run:
            error = jobs_by_name[given.job](settings)
            if error:
                run.fail(error, is_feeds_fault=given.job in ("run", "ingest"))
            return error

    run_command(job)


if __name__ == "__main__":
    main()
