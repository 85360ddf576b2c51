"""Gaps in the coverage, and UTC days rebuilt through every layer so that a kill costs little.

At the start the days lose their fingerprint in the state of every model, once, and a journal in the lake says
so. Whoever gives the same command after a kill finds it and builds what is left.

    <LAKE_URL>/_backfill/journal.json           what is under way; gone when everything is done
    <LAKE_URL>/_backfill/quarantine.parquet     the days' quarantined lines as they were before
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ingestion.lake import Lake
from ingestion.settings import Settings
from scripts.health import OBSERVATIONS, Gap, list_gaps, missing_snapshots, snapshot_cadence
from scripts.lake_reader import ModelState, find_torn_states, read_states
from scripts.rebuild_days import (
    Account,
    compare,
    held_days,
    land_again,
    range_text,
    remember,
    report,
)
from scripts.run_dbt import DbtError, run_dbt
from scripts.run_pipeline import export_marts, reconcile, transform
from scripts.start_postgres import running_postgres

FOLDER = "_backfill"
PROGRESS_SECONDS = 2.0

logger = logging.getLogger("bike-data-flow")

# days by model
Days = dict[str, list[date]]


@dataclass(frozen=True)
class Journal:
    """A rebuilding of days under way."""

    asked: str  # the range, as `range_text` tells it
    days: list[date]
    began_at: str
    before: dict[date, Account]  # what had become of the days' lines
    marked: Days  # what is to be rebuilt
    is_marked: bool = False  # whether all of that has lost its fingerprint

    def left(self, lake: Lake) -> Days:
        """Which of the marked days are not rebuilt yet."""
        waiting = {model: waiting_days(state) for model, state in read_states(lake).items()}
        return {
            model: left
            for model, days in self.marked.items()
            if (left := sorted({*days} & waiting.get(model, set())))
        }


def show_gaps(settings: Settings) -> None:
    """Every gap in the coverage, and what may fill it."""
    now = datetime.now(UTC)
    gaps = list_gaps(settings, now)
    console = Console(highlight=False)
    if not gaps:
        console.print("No gaps: the lake holds every snapshot that was due since its first.")
        return
    table = Table(title="Gaps in the snapshots of wrm (UTC)", title_justify="left")
    for heading in ("after", "until", "minutes", "missing snapshots"):
        table.add_column(heading, justify="left" if heading in ("after", "until") else "right", no_wrap=True)
    missing = [_missing(gap, now) for gap in gaps]
    for gap, count in zip(gaps, missing, strict=True):
        until = f"{gap.ended_at:%Y-%m-%d %H:%M:%S}" if gap.ended_at else "goes on"
        minutes = ((gap.ended_at or now) - gap.started_at) / timedelta(minutes=1)
        table.add_row(f"{gap.started_at:%Y-%m-%d %H:%M:%S}", until, f"{minutes:,.0f}", f"{count:,}")
    console.print(table)
    console.print(
        f"{sum(missing):,} snapshots are missing in {len(gaps):,} gaps. The feed tells no past: only an "
        "archive that somebody kept can fill them.\n  scripts/just backfill PATH_OR_URL",
        soft_wrap=True,
    )


def _missing(gap: Gap, now: datetime) -> int:
    until = gap.ended_at or now
    return missing_snapshots(gap.started_at, until, snapshot_cadence(until.date()))


def rebuild_range(settings: Settings, first: date, last: date) -> str | None:
    """Rebuild the days of a range, report each, and bring them to PostgreSQL; goes on where the same was cut
    short. Gives the error when days failed."""
    lake = Lake.of(settings)
    asked = range_text(first, last)
    with running_postgres(settings):
        _mend_states(settings, lake)
        journal = _read_journal(lake, asked)
        left: Days = {}  # of a new one, dbt finds what is made from its days by itself
        if journal is None:
            journal = _begin(settings, lake, asked, held_days(settings, [(first, last)]))
        else:
            left = journal.left(lake)
            counts = _count(left), _count(journal.marked)
            logger.info("Going on with %s of %s: %d of %d model-days left.", asked, journal.began_at, *counts)
        only = _days_option({*journal.days}.union(*left.values()))
        failure = _build(settings, lake, journal, only)
        outcomes = _judge(settings, lake, journal, failure, only)
        _report(settings, lake, journal, outcomes)
        export_marts(settings, *only)
        reconcile(settings)
    if failure is None:
        _remove_journal(lake)
        return None
    if not outcomes:
        raise failure
    return (
        f"{len(outcomes)} days are not whole, see above; the others are in. Mend what the reasons say, then "
        "give the same command again: it goes on with these."
    )


def _mend_states(settings: Settings, lake: Lake) -> None:
    """Have states that are not whole made anew, so that their models' days can be marked. A build takes them
    from the days' objects, which do not tell what was marked: a journal is of no use any more."""
    torn = find_torn_states(lake)
    if torn:
        logger.warning("Not whole, and made anew before any day is rebuilt: %s.", ", ".join(torn))
        _remove_journal(lake)
        transform(settings)


def _count(days: Days) -> int:
    return sum(map(len, days.values()))


def _days_option(days: Iterable[date]) -> tuple[str, str]:
    # all days in one call of dbt: it parses the project anew whenever --vars change
    return "--vars", json.dumps({"days": [str(day) for day in sorted(days)]})


def _begin(settings: Settings, lake: Lake, asked: str, days: list[date]) -> Journal:
    """Have the days, and what is made from them, rebuilt and landed whole, whatever happens from here on."""
    land_again(settings, days)
    if lake.is_local:
        os.makedirs(_path(lake, ""), exist_ok=True)
    journal = Journal(
        asked=asked,
        days=days,
        began_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        before=remember(settings, days, _path(lake, "quarantine.parquet")),
        marked=find_made_from(settings, read_states(lake), days),
    )
    _write_journal(lake, journal)
    for model, state in read_states(lake).items():
        if model in journal.marked:
            forget_days(lake, state, journal.marked[model])
    journal = replace(journal, is_marked=True)
    _write_journal(lake, journal)
    return journal


def find_made_from(settings: Settings, states: dict[str, ModelState], days: list[date]) -> Days:
    """The days that each model holds of these and of what is made from them, as `daily_partition` reads them:
    other days nearby (`reads_days`), and all later ones where a model carries over."""
    nodes = _read_manifest(settings, _days_option(days))
    daily = {id for id, node in nodes.items() if node["config"]["materialized"] == "daily_partition"}
    inputs = {id: _inputs(nodes, id) for id in daily}
    changed: dict[str, set[date]] = {}
    for id in TopologicalSorter({id: inputs[id] & daily for id in daily}).static_order():
        name, config = nodes[id]["name"], nodes[id]["config"]
        held = _held(states, name)
        made = {*days} & held
        for upstream in (nodes[input]["name"] for input in inputs[id] & daily):
            for offset in config.get("reads_days", {}).get(upstream, [0]):
                made |= held & _days_made(
                    changed[upstream], offset, held, _held(states, upstream, filled=True)
                )
        if config.get("carries_over") and made:
            made = {day for day in held if day >= min(made)}
        changed[name] = made
    return {model: sorted(made) for model, made in changed.items() if made}


def _days_made(changed: set[date], offset: int | str, held: set[date], present: set[date]) -> set[date]:
    """The days that read a changed one: it comes so many days after them, or is the latest day before."""
    if offset == "previous":
        earlier = sorted(present)
        places = {day: bisect_left(earlier, day) for day in held}
        return {day for day, place in places.items() if place and earlier[place - 1] in changed}
    return {day - timedelta(days=int(offset)) for day in changed}


def _read_manifest(settings: Settings, only: tuple[str, str]) -> dict[str, Any]:
    """dbt's nodes by their id; parsed with the option of the build, which then need not parse again."""
    run_dbt(settings, "transform", "--log-level", "none", "parse", *only)
    with open(settings.data_dir / "dbt" / "transform" / "manifest.json", encoding="utf-8") as file:
        nodes: dict[str, Any] = json.load(file)["nodes"]
    return nodes


def _inputs(nodes: dict[str, Any], id: str) -> set[str]:
    """Ids of what a node reads, through ephemeral models."""
    found = set()
    for upstream in nodes[id]["depends_on"]["nodes"]:
        if upstream in nodes and nodes[upstream]["config"]["materialized"] == "ephemeral":
            found |= _inputs(nodes, upstream)
        else:
            found.add(upstream)
    return found


def _held(states: dict[str, ModelState], model: str, filled: bool = False) -> set[date]:
    """Days of a model; only those `filled` with rows where asked."""
    if model not in states:
        return set()
    rows = states[model].days.select(["dt", "row_count"]).to_pylist()
    return {row["dt"] for row in rows if row["row_count"] or not filled}


def waiting_days(state: ModelState) -> set[date]:
    """Days of a model that wait to be rebuilt."""
    return {
        row["dt"] for row in state.days.select(["dt", "fingerprint"]).to_pylist() if not row["fingerprint"]
    }


def forget_days(lake: Lake, state: ModelState, days: list[date]) -> None:
    """Take the fingerprints of days from a model's state, so that the next build rebuilds them."""
    is_meant = pc.is_in(state.days["dt"], value_set=pa.array(days, pa.date32()))
    column = state.days.schema.get_field_index("fingerprint")
    kept = pc.if_else(is_meant, pa.scalar(None, pa.string()), state.days["fingerprint"])
    forgotten = state.days.set_column(column, "fingerprint", kept)
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        pq.write_table(forgotten, file.name)
        lake.filesystem().put_file(file.name, state.path)


def _path(lake: Lake, name: str) -> str:
    return f"{lake.root}/{FOLDER}/{name}"


def _write_journal(lake: Lake, journal: Journal) -> None:
    record = asdict(journal) | {
        "days": [str(day) for day in journal.days],
        "before": {str(day): asdict(account) for day, account in journal.before.items()},
        "marked": {model: [str(day) for day in days] for model, days in journal.marked.items()},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(record, file)
        file.flush()
        lake.filesystem().put_file(file.name, _path(lake, "journal.json"))


def _read_journal(lake: Lake, asked: str) -> Journal | None:
    """The journal of the same range that was cut short; None where nothing of it is under way, or where it
    had only begun."""
    try:
        journal = _parse_journal(lake.filesystem().cat_file(_path(lake, "journal.json")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or JSON of something else
        logger.warning("Beginning anew: the journal of an earlier backfill is not whole.")
        return None
    if journal.asked != asked:
        logger.warning(
            "Giving up on %s of %s: the next transform rebuilds it.", journal.asked, journal.began_at
        )
        return None
    return journal if journal.is_marked else None


def _parse_journal(content: bytes) -> Journal:
    record = json.loads(content)
    return Journal(
        asked=record["asked"],
        days=[date.fromisoformat(day) for day in record["days"]],
        began_at=record["began_at"],
        before={date.fromisoformat(day): Account(**account) for day, account in record["before"].items()},
        marked={model: [date.fromisoformat(day) for day in days] for model, days in record["marked"].items()},
        is_marked=record["is_marked"],
    )


def _remove_journal(lake: Lake) -> None:
    for name in ("journal.json", "quarantine.parquet"):
        with contextlib.suppress(FileNotFoundError):  # of days that were never built there is no quarantine
            lake.filesystem().rm_file(_path(lake, name))


def _build(settings: Settings, lake: Lake, journal: Journal, only: tuple[str, str]) -> DbtError | None:
    """Build what is stale of the days, with a progress bar on a terminal; gives dbt's error if it failed."""
    with _progress(lake, journal):
        try:
            transform(settings, *only)
        except DbtError as error:
            return error
    return None


@contextlib.contextmanager
def _progress(lake: Lake, journal: Journal) -> Iterator[None]:
    total = _count(journal.marked)
    with tqdm(desc="rebuilding", total=total, unit=" model-days", disable=None, leave=False) as bar:
        if bar.disable:
            yield
            return
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(PROGRESS_SECONDS):
                # without the lake the bar stands still; the job itself tells its troubles
                with contextlib.suppress(Exception):
                    bar.update(total - _count(journal.left(lake)) - bar.n)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


@dataclass(frozen=True)
class _Outcome:
    """Why a day is not whole."""

    status: str  # failed, or waiting for what failed
    reason: str


def _judge(
    settings: Settings, lake: Lake, journal: Journal, failure: DbtError | None, only: tuple[str, str]
) -> dict[date, _Outcome]:
    """The days that are not whole."""
    if failure is None:
        return {}
    nodes = _read_manifest(settings, only)
    errors = re.findall(r"^  (\S+): (.*)$", str(failure), re.MULTILINE)
    outcomes = {}
    for day, models in _waiting_models(lake, journal).items():
        reasons = [f"{name}: {text}" for name, text in errors if {name, *_tested(nodes, name)} & models]
        outcomes[day] = (
            _Outcome("failed", "; ".join(reasons))
            if reasons
            else _Outcome("waiting", f"{len(models)} models were not reached, such as {min(models)}")
        )
    return outcomes


def _waiting_models(lake: Lake, journal: Journal) -> dict[date, set[str]]:
    """The models that have not built a day, by day."""
    states = read_states(lake)
    waiting: dict[date, set[str]] = {}
    for model, state in states.items():
        for day in waiting_days(state) & {*journal.days, *journal.marked.get(model, [])}:
            waiting.setdefault(day, set()).add(model)
    for day in {*journal.days} - _held(states, OBSERVATIONS):  # its first build failed
        waiting.setdefault(day, set()).add(OBSERVATIONS)
    return waiting


def _tested(nodes: dict[str, Any], name: str) -> set[str]:
    """Names of the models that a test is about."""
    tests = [node for node in nodes.values() if node["name"] == name and node["resource_type"] == "test"]
    return {nodes[id]["name"] for test in tests for id in test["depends_on"]["nodes"] if id in nodes}


def _report(settings: Settings, lake: Lake, journal: Journal, outcomes: dict[date, _Outcome]) -> None:
    """A status per day, what became of its lines, and why days are not whole."""
    now, moves = compare(settings, journal.days, journal.before, _path(lake, "quarantine.parquet"))
    statuses = {day: _status(journal.before.get(day), now.get(day)) for day in journal.days}
    report(journal.before, now, moves, statuses | {day: outcome.status for day, outcome in outcomes.items()})
    for day, outcome in sorted(outcomes.items()):
        Console(highlight=False, markup=False).print(
            f"{day} {outcome.status}: {outcome.reason}", soft_wrap=True
        )


def _status(before: Account | None, now: Account | None) -> str:
    if before is None:
        return "built"
    return "rebuilt, as before" if before == now else "rebuilt, changed"
