"""What the benchmark measured, for people: records of scenarios, tables, targets, and docs/performance.md.

A record is all of one scenario's last run: observations, options, machine. docs/performance/<scenario>.json
holds one each; tables and plots are drawn from these files alone: the same files give the same bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ingestion.settings import PROJECT_ROOT
from scripts.benchmarks.measurement import Observation, Results, Target, ratio
from scripts.marked_text import put_between
from scripts.start_postgres import BINARIES

DOCUMENT = PROJECT_ROOT / "docs" / "performance.md"
SCENARIOS = (
    "compare_ways",
    "watch_latency",
    "long_watch",
    "cold_run",
    "station_query",
    "upsert_growth",
    "scale",
)
REFERENCES = ("limit", "usual")  # ways that others are compared with
# figures that have a column of their own; all others stand together in the last one
COLUMNS = {
    "seconds": "time",
    "p50_seconds": "p50",
    "p95_seconds": "p95",
    "cpu_seconds": "CPU",
    "peak_bytes": "peak memory",
    "read_bytes": "read",
    "written_bytes": "written",
}
UNITS = ("seconds", "bytes", "pct", "share")
PACKAGES = {"DuckDB": "duckdb", "dlt": "dlt", "dbt": "dbt-core"}


@dataclass(frozen=True)
class Record:
    """One scenario's run."""

    scenario: str
    command: str  # that measures the same again
    day: str  # UTC, as 2025-05-12
    minutes: float
    options: dict[str, Any]
    machine: dict[str, Any]
    observations: Sequence[Observation]

    @property
    def results(self) -> Results:
        return Results(self.observations)

    def cells(self) -> list[tuple[str, str]]:
        """Every case and way, in the order in which they were measured."""
        return list(dict.fromkeys((one.case, one.way) for one in self.observations))


def to_json(records: Sequence[Record]) -> str:
    return json.dumps([asdict(record) for record in records], indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> list[Record]:
    return [
        Record(**given | {"observations": [Observation(**one) for one in given["observations"]]})
        for given in json.loads(text)
    ]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on; nothing that tells whose machine it is."""
    postgres = subprocess.run(
        [BINARIES / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    versions = {name: metadata.version(package) for name, package in PACKAGES.items()}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(Path("/proc/cpuinfo").read_text()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": {
            "Python": platform.python_version(),
            **versions,
            "PostgreSQL": postgres.stdout.split()[-1],
        },
    }


def _processor(cpuinfo: str) -> str:
    """Its name, as x86 tells it; the architecture where there is none."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def significant(value: float) -> str:
    """Three significant digits, thousands apart: 0.0123, 1.20, 130, 1,230."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:#.3g}".rstrip(".")


def told_bytes(value: float) -> str:
    """In the decimal unit that fits: 512 B, 1.20 kB, 811 MB."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while float(f"{value:.3g}") >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{significant(value)} {units[0]}"


def unit_of(figure: str) -> str | None:
    """The last word of a figure's name that is a unit; None of a count."""
    return next((word for word in reversed(figure.split("_")) if word in UNITS), None)


def told(figure: str, value: float) -> str:
    """A figure's value in the unit that its name holds."""
    unit = unit_of(figure)
    if unit == "seconds":
        return f"{significant(value)} s"
    if unit == "bytes":
        return told_bytes(value)
    if unit is not None:
        return f"{significant(value if unit == 'pct' else value * 100)} %"
    return f"{value:,.0f}" if value == int(value) else significant(value)


def told_with_spread(figure: str, values: Sequence[float], median: float) -> str:
    """The median, and where they differ the least and the greatest: 1.23 s (1.20–1.31 s)."""
    low, high = told(figure, min(values)), told(figure, max(values))
    if low == high:
        return told(figure, median)
    number, _, unit = low.partition(" ")
    return f"{told(figure, median)} ({number if high.partition(' ')[2] == unit else low}–{high})"


def told_in_words(figure: str, value: str) -> str:
    """A value that was told, with what it is of: 1,440 files; text 331 MB."""
    unit = unit_of(figure)
    words = " ".join(word for word in figure.split("_") if word != unit)
    return f"{value} {words}" if unit is None else f"{words} {value}"


@dataclass(frozen=True)
class Sheet:
    """A table of texts; the first `names` columns are words, the others figures."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 2

    def to_markdown(self) -> str:
        rule = "".join("|---" if number < self.names else "|---:" for number in range(len(self.headings)))
        lines = [_line(self.headings), f"{rule}|", *map(_line, self.rows)]
        return "\n".join(lines) + "\n"

    def to_rich(self, title: str) -> Table:
        table = Table(title=title, title_justify="left")
        for number, heading in enumerate(self.headings):
            table.add_column(escape(heading), justify="left" if number < self.names else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def without_empty_columns(self) -> Sheet:
        kept = [number for number in range(len(self.headings)) if any(row[number] for row in self.rows)]
        rows = [[row[number] for number in kept] for row in self.rows]
        return Sheet([self.headings[number] for number in kept], rows, self.names)


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def sheet(record: Record) -> Sheet:
    """Every case and way of a record: medians with least and greatest, rates, and the time compared with that
    of the ways `limit` and `usual`."""
    figures = list(dict.fromkeys(figure for one in record.observations for figure in one.figures))
    further = [figure for figure in figures if figure not in COLUMNS]
    compared = [f"time to `{way}`" for way in REFERENCES]
    headings = ["case", "way", *COLUMNS.values(), "per second", *compared, "further"]
    rows = []
    for case, way in record.cells():
        known = [_told_figure(record.results, case, way, figure) for figure in COLUMNS]
        times = [_told_ratio(time_to(record.results, case, way, other)) for other in REFERENCES]
        rest = ", ".join(
            told_in_words(figure, value)
            for figure in further
            if (value := _told_figure(record.results, case, way, figure))
        )
        rows.append([case, way, *known, _told_rate(record.results, case, way), *times, rest])
    return Sheet(headings, rows).without_empty_columns()


def _told_figure(results: Results, case: str, way: str, figure: str) -> str:
    median = results.median(case, way, figure)
    return "" if median is None else told_with_spread(figure, results.values(case, way, figure), median)


def _told_ratio(value: float | None) -> str:
    return "" if value is None else f"{significant(value)} ×"


def _told_rate(results: Results, case: str, way: str) -> str:
    rates = ((figure, results.rate(case, way, figure)) for figure in ("rows", "files"))
    return next((f"{significant(rate)} {figure}" for figure, rate in rates if rate is not None), "")


def time_to(results: Results, case: str, way: str, other: str) -> float | None:
    """A way's seconds over another's, per row where the ways did not do as many."""
    seconds = ratio(results.median(case, way, "seconds"), results.median(case, other, "seconds"))
    rows = ratio(results.median(case, way, "rows"), results.median(case, other, "rows"))
    return ratio(seconds, 1 if rows is None else rows)


def targets_of(scenario: str) -> Sequence[Target]:
    """The targets that a scenario's module has."""
    targets: Sequence[Target] = importlib.import_module(f"scripts.benchmarks.{scenario}").TARGETS
    return targets


def target_sheet(targets: Iterable[tuple[Target, Results]]) -> Sheet:
    """What, how much, measured, and whether that is met."""
    return Sheet(["what", "target", "measured", ""], [_target_row(*each) for each in targets], names=1)


def _target_row(target: Target, results: Results) -> list[str]:
    unit = f" {target.unit}" if target.unit else ""
    bound = f"{'≥' if target.is_least else '≤'} {target.bound:,g}{unit}"
    value = target.measured(results)
    if value is None:
        return [target.what, bound, "", "not measured"]
    return [
        target.what,
        bound,
        f"{significant(value)}{unit}",
        "met" if target.is_met(value) else "MISSED",
    ]


def all_targets(records: Iterable[Record]) -> Iterator[tuple[Target, Results]]:
    for record in records:
        for target in targets_of(record.scenario):
            yield target, record.results


def save_record(record: Record, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record.scenario}.json").write_text(to_json([record]), encoding="utf-8")


def load_records(folder: Path) -> list[Record]:
    """The records in a folder, in the order of the scenarios."""
    paths = [folder / f"{scenario}.json" for scenario in SCENARIOS]
    return [
        record for path in paths if path.exists() for record in from_json(path.read_text(encoding="utf-8"))
    ]


def marks(part: str) -> tuple[str, str]:
    """Between these stands a part of the document: a scenario, `targets`, `machine` or
    `estimate`."""
    return f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"


def render(document: Path = DOCUMENT) -> None:
    """Draw plots, and write tables into a document, from the records in the folder beside it of its name."""
    from scripts.benchmarks import estimate, plots  # matplotlib is slow to import

    folder = document.with_suffix("")
    records = load_records(folder)
    by_name = {record.scenario: record for record in records}
    drawn = plots.draw(by_name)
    for name, image in drawn.items():
        (folder / name).write_bytes(image)
    parts = {record.scenario: _section(record, list(drawn), folder.name) for record in records}
    if records:
        parts["targets"] = target_sheet(all_targets(records)).to_markdown()
        parts["machine"] = tell_machines(records)
    if costs := estimate.measured_costs(by_name):
        parts["estimate"] = estimate.tell(costs)
    text = document.read_text(encoding="utf-8")
    for part, content in parts.items():
        text = put_between(text, marks(part), content)
    document.write_text(text, encoding="utf-8")


def _section(record: Record, drawn: Sequence[str], folder: str) -> str:
    from scripts.benchmarks.plots import PLOTS

    head = f"`{record.command}`, {record.day}, {significant(record.minutes)} minutes:"
    images = [
        f"\n![{plot.title}]({folder}/{plot.file})\n"
        for plot in PLOTS
        if plot.scenario == record.scenario and plot.file in drawn
    ]
    return f"{head}\n\n{sheet(record).to_markdown()}{''.join(images)}"


def tell_machines(records: Sequence[Record]) -> str:
    """The machine, or each with what ran on it; a line each."""
    scenarios: dict[str, list[str]] = {}
    for record in records:
        scenarios.setdefault(told_machine(record.machine), []).append(record.scenario)
    if len(scenarios) == 1:
        return f"{next(iter(scenarios))}.\n"
    return "".join(f"- {', '.join(names)}: {machine}.\n" for machine, names in scenarios.items())


def told_machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = told_bytes(machine["memory_bytes"])
    return f"{machine['cores']} cores of {machine['processor']}, {memory}, {machine['kernel']}, {versions}"
