"""How everything is doing, on one screen: scripts/just status [--json | --markdown]

It ends with status 1 when something is stale: a source without a new snapshot for ALERT_STALE_MINUTES, or
PostgreSQL that is out of reach or so far behind the lake. It waits for no job and changes neither lake nor
tables; an embedded PostgreSQL that nobody runs is started to be asked, and stopped again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ingestion.settings import Settings
from scripts.command import run_command, visible
from scripts.health import (
    Gap,
    Health,
    RunHealth,
    SourceHealth,
    daily_quality,
    measure_health,
    warehouse_to_ask,
)
from transform.plugins.lake import first_exported_day

WIDTH = 100
GAPS_SHOWN = 3
QUALITY_DAYS = 14
BAD_WORDS = ("STALE", "FAILING", "LOW", "HIGH", "UNREACHABLE", "FAILED", "INTERRUPTED", "KILLED", "goes on")


@dataclass(frozen=True)
class Trouble:
    """Something that is stale, and what to do next."""

    what: str
    next_step: str


@dataclass(frozen=True)
class Section:
    """A part of the screen: a table, or one line where there is nothing to tabulate."""

    title: str
    headings: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    note: str | None = None


def find_troubles(settings: Settings, health: Health) -> list[Trouble]:
    """What is stale: sources, and PostgreSQL."""
    feeds = [_feed_trouble(source) for source in health.sources if source.is_stale]
    return [*feeds, *_warehouse_trouble(settings, health)]


def _feed_trouble(source: SourceHealth) -> Trouble:
    if source.last_snapshot_at is None:
        what = f"{source.source} has no snapshot yet"
    else:
        what = f"{source.source} is stale: no snapshot for {_ago(source.age_seconds or 0)}"
    if source.failing_since is None:
        return Trouble(what, "Nobody polls it, or nobody can: scripts/just run takes a snapshot.")
    since = f"{source.failing_since:%Y-%m-%d %H:%M} UTC"
    return Trouble(
        f"{what}; polls fail since {since}: {(source.last_error or '').rstrip('.')}",
        "See what the feed answers, and WRM_FEED_URL; scripts/just run tries again.",
    )


def _warehouse_trouble(settings: Settings, health: Health) -> Iterator[Trouble]:
    warehouse = health.warehouse
    if warehouse.error is not None:
        step = "Start it or mend POSTGRES_URL, then run: scripts/just export"
        yield Trouble(f"PostgreSQL cannot be asked: {warehouse.error.rstrip('.?')}", step)
    if warehouse.error is not None or warehouse.is_slow:
        return
    last_at = max(
        (source.last_snapshot_at for source in health.sources if source.last_snapshot_at), default=None
    )
    first_day = first_exported_day(settings.export_retention_days, health.measured_at.date())
    if last_at and warehouse.newest_reading_at is None and (first_day is None or last_at.date() >= first_day):
        yield Trouble("PostgreSQL holds no readings, the lake does", "Run: scripts/just export")
    elif (warehouse.lag_seconds or 0) > settings.alert_stale_minutes * 60:
        what = f"PostgreSQL is {_ago(warehouse.lag_seconds or 0)} behind the lake"
        yield Trouble(what, "Run: scripts/just export")


def list_sections(settings: Settings, health: Health) -> list[Section]:
    """The screen, from top to bottom."""
    parts = (_gaps, _layers, _warehouse, _runs, _work)
    return [_feeds(health), _quality(settings, health), *(part(health) for part in parts)]


def _feeds(health: Health) -> Section:
    headings = ("source", "last snapshot (UTC)", "age", "polls fail since (UTC)")
    return Section("Feeds", headings, [_feed_row(source) for source in health.sources])


def _feed_row(source: SourceHealth) -> tuple[str, ...]:
    age = "none yet" if source.age_seconds is None else _ago(source.age_seconds)
    failing = f"FAILING {_moment(source.failing_since)}" if source.failing_since else "they do not"
    return (
        source.source,
        _moment(source.last_snapshot_at),
        f"{age}, STALE" if source.is_stale else age,
        failing,
    )


def _quality(settings: Settings, health: Health) -> Section:
    headings = ("source", "24 hours covered", "score", "lines today", "quarantined today")
    is_high = any(source.quarantine_pct > settings.alert_max_quarantine_pct for source in health.sources)
    step = 'scripts/just query "select * from int_wrm__lines_quarantined where dt = current_date" shows them'
    rows = [_quality_row(settings, source) for source in health.sources]
    return Section("Quality", headings, rows, step if is_high else None)


def _quality_row(settings: Settings, source: SourceHealth) -> tuple[str, ...]:
    score, least = source.quality_score, settings.alert_min_score
    is_high = source.quarantine_pct > settings.alert_max_quarantine_pct
    return (
        source.source,
        _percent(source.coverage_pct, least),
        "unknown" if score is None else f"{_low(score, least)} on {source.quality_day}",
        f"{source.lines_today:,}",
        f"{source.quarantined_today:,} ({source.quarantine_pct:.1f} %{', HIGH' if is_high else ''})",
    )


def _percent(value: float | None, least: float) -> str:
    return "unknown" if value is None else _low(value, least, " %")


def _low(value: float, least: float, unit: str = "") -> str:
    return f"{value:.1f}{unit}{', LOW' if value < least else ''}"


def _gaps(health: Health) -> Section:
    found = [(source.source, gap) for source in health.sources for gap in source.gaps]
    rows = [_gap_row(source, gap, health.measured_at) for source, gap in found[-GAPS_SHOWN:]]
    if not rows:
        return Section("Gaps of the last 24 hours", note="none")
    more = len(found) - len(rows)
    note = (
        f"{f'and {more} before; ' if more else ''}scripts/just backfill lists every gap and what may fill it"
    )
    return Section("Gaps of the last 24 hours", ("source", "from (UTC)", "to (UTC)", "minutes"), rows, note)


def _gap_row(source: str, gap: Gap, now: datetime) -> tuple[str, ...]:
    minutes = ((gap.ended_at or now) - gap.started_at) / timedelta(minutes=1)
    until = _moment(gap.ended_at) if gap.ended_at else "goes on"
    return source, _moment(gap.started_at), until, f"{minutes:,.0f}"


def _layers(health: Health) -> Section:
    rows = [
        (
            layer.layer,
            f"{layer.rows:,}" + (" snapshots" if layer.layer == "bronze" else ""),
            "unknown" if layer.objects is None else f"{layer.objects:,}",
            "unknown" if layer.bytes is None else _size(layer.bytes),
        )
        for layer in health.layers
    ]
    return Section("Lake", ("layer", "rows", "objects", "size"), rows)


def _warehouse(health: Health) -> Section:
    warehouse = health.warehouse
    if warehouse.error is not None:
        return Section("PostgreSQL", note=f"UNREACHABLE: {warehouse.error}")
    lag = "" if warehouse.lag_seconds is None else f", {_ago(warehouse.lag_seconds)} behind the lake"
    none, no_tables = ("unknown", "unknown") if warehouse.is_slow else ("none", "no tables yet")
    newest = _moment(warehouse.newest_reading_at) if warehouse.newest_reading_at else none
    rows = ", ".join(f"{table} {count:,}" for table, count in warehouse.rows.items()) or no_tables
    lag = ", SLOW to answer" if warehouse.is_slow else lag
    return Section("PostgreSQL", note=f"newest reading {newest}{lag}; rows: {rows}")


def _runs(health: Health) -> Section:
    headings = ("started (UTC)", "job", "trigger", "seconds", "outcome", "error")
    rows = [_run_row(run) for run in health.runs]
    return Section("Last runs", headings, rows) if rows else Section("Last runs", note="none recorded yet")


def _run_row(run: RunHealth) -> tuple[str, ...]:
    seconds = "" if run.seconds is None else f"{run.seconds:,.1f}"
    outcome = run.outcome if run.outcome == "succeeded" else run.outcome.upper()
    error = " ".join((run.error or "").split())
    return _moment(run.started_at), run.job, run.trigger, seconds, outcome, error


def _work(health: Health) -> Section:
    rows = [
        # of watch it is known how often it works, of a schedule when
        (name, _moment(due), f"{'within' if 'by watch' in name else 'in'} {_ago(_until(due, health))}")
        for name, due in health.next_work.items()
    ]
    note = f"at work now: {health.at_work or 'nobody'}"
    if rows:
        return Section("Next work", ("what", "due (UTC)", "from now"), rows, note)
    return Section("Next work", note=f"nothing is scheduled; {note}")


def _until(due: datetime, health: Health) -> float:
    return (due - health.measured_at).total_seconds()


def _moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "never"


def _ago(seconds: float) -> str:
    """A length of time in the two units that matter: 42 s, 5 min 3 s, 5 h 3 min, 3 d 2 h."""
    whole = int(seconds)
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {part_name}"
    return f"{whole} s"


def _size(count: int) -> str:
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def show_screen(settings: Settings, health: Health, troubles: list[Trouble], console: Console) -> None:
    """The sections as people read them, troubles first and red."""
    where = f"{settings.environment}, {health.measured_at:%Y-%m-%d %H:%M:%S} UTC"
    verdict = "[bold red]TROUBLE[/]" if troubles else "[bold green]ALL IS WELL[/]"
    console.print(f"[bold]Bike Data Flow[/] ({where}): {verdict}")
    for trouble in troubles:
        console.print(f"[red]{escape(visible(trouble.what))}.[/] {escape(trouble.next_step)}")
    for section in list_sections(settings, health):
        note = Text(visible(section.note or ""), _style(section.note or ""))
        if not section.rows:
            console.print(Text.assemble((f"{section.title}: ", "bold"), note))
            continue
        console.print(_tabulate(section))
        if section.note:
            console.print(note)


def _tabulate(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold", box=None)
    for heading in section.headings:
        table.add_column(heading, no_wrap=heading != "error", header_style="dim")
    for row in section.rows:
        table.add_row(*(_coloured(cell) for cell in row))
    return table


def _coloured(text: str) -> Text:
    return Text(visible(text), _style(text), no_wrap=True, overflow="ellipsis")


def _style(text: str) -> str:
    return "red" if any(word in text for word in BAD_WORDS) else ""


def to_markdown(
    settings: Settings, health: Health, troubles: list[Trouble], quality: list[dict[str, Any]]
) -> str:
    """The same sections and the daily quality as Markdown, for the summary of a workflow."""
    lines = [f"# Bike Data Flow ({settings.environment}): {'TROUBLE' if troubles else 'all is well'}", ""]
    lines += [f"- **{_cell(trouble.what)}.** {_cell(trouble.next_step)}" for trouble in troubles]
    for section in [*list_sections(settings, health), _daily_quality(quality)]:
        lines += ["", f"## {section.title}", ""]
        if section.rows:
            lines += [_line(section.headings), _line("---" for _ in section.headings)]
            lines += [_line(_cell(cell) for cell in row) for row in section.rows]
        if section.note:
            lines += ["", _cell(section.note)] if section.rows else [_cell(section.note)]
    return "\n".join(lines) + "\n"


def _daily_quality(days: list[dict[str, Any]]) -> Section:
    title = f"Quality of the last {QUALITY_DAYS} days (UTC)"
    if not days:
        return Section(title, note="nothing is built of these days")
    rows = [tuple(_number(value) for value in day.values()) for day in days]
    names = {"dt": "day", "quality_score": "score", "completeness_pct": "coverage %"}
    headings = [names.get(name, name.replace("_pct", " %").replace("_", " ")) for name in days[0]]
    return Section(title, tuple(headings), rows)


def _number(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text on one line that Markdown and HTML take for nothing but text."""
    line = " ".join(visible(text).replace("&", "&amp;").split())
    return line.replace("<", "&lt;").replace("|", "&#124;").replace("[", "&#91;").replace("`", "'")


def to_json(health: Health) -> str:
    """The figures for machines; times are ISO 8601."""
    return json.dumps(asdict(health), default=lambda moment: moment.isoformat(), indent=2, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="the figures for machines")
    forms.add_argument("--markdown", action="store_true", help="with the daily quality, for a summary")
    given = parser.parse_args()

    def job(settings: Settings) -> None:
        with warehouse_to_ask(settings):
            health = measure_health(settings, with_sizes=True)
        troubles = find_troubles(settings, health)
        if given.json:
            print(to_json(health))
        elif given.markdown:
            quality = daily_quality(settings, QUALITY_DAYS, datetime.now(UTC).date())
            print(to_markdown(settings, health, troubles, quality), end="")
        else:
            console = Console(highlight=False)
            if not console.is_terminal or console.width > WIDTH:
                console.width = WIDTH
            show_screen(settings, health, troubles, console)
        if troubles:
            raise SystemExit(1)

    run_command(job)


if __name__ == "__main__":
    main()
