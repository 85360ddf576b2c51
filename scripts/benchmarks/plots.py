"""The plots of docs/performance.md, drawn from what was measured: the same figures give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from scripts.benchmarks.measurement import Results
from scripts.benchmarks.report import Record, significant, targets_of
from scripts.benchmarks.scale import STAGES

# Okabe and Ito's colours, which people tell apart however they see colours
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY, BLACK = "#767676", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
MARKERS = ("o", "s", "^", "D", "v")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "bike-data-flow",
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
METADATA = ("Date", "Creator", "Format", "Type")  # that SVG has unless it is told not to
INCHES = (8, 4.4)
DOTS_PER_INCH = 100
TARGET: dict[str, Any] = {"color": BLACK, "linewidth": 2, "solid_capstyle": "butt"}
GUIDE: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": "--"}

Cell = tuple[str, str]  # a case and a way


@dataclass(frozen=True)
class Plot:
    """A picture of one scenario's results; `draw` gives none where they do not hold what it shows."""

    file: str
    title: str
    scenario: str
    draw: Callable[[Results], Figure | None]


def draw(records: Mapping[str, Record]) -> dict[str, bytes]:
    """SVG by name of file, of every plot for which there are results."""
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for plot in PLOTS:
            record = records.get(plot.scenario)
            figure = plot.draw(record.results) if record else None
            if figure is not None:
                drawn[plot.file] = as_svg(figure)
    return drawn


def as_svg(figure: Figure) -> bytes:
    """The picture without the moment and the program that drew it."""
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata=dict.fromkeys(METADATA))
    return image.getvalue()


def _figure(title: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def _cells(results: Results, *figures: str) -> list[Cell]:
    """Every case and way that has all of these figures, in the order in which they were measured."""
    wanted = set(figures)
    found = ((one.case, one.way) for one in results.observations if wanted <= one.figures.keys())
    return list(dict.fromkeys(found))


def _value(results: Results, case: str, way: str, figure: str) -> float:
    """The median; of what was not measured no number, which leaves a gap."""
    median = results.median(case, way, figure)
    return math.nan if median is None else median


def draw_ways(results: Results) -> Figure | None:
    """Rows per second of each way, for each case that more than one way did."""
    cells = _cells(results, "rows", "seconds")
    all_cases = [case for case, _ in cells]
    cases = [case for case in dict.fromkeys(all_cases) if all_cases.count(case) > 1]
    if not cases:
        return None
    figure, [axes] = _figure("Rows per second, by way")
    places: dict[float, str] = {}
    for case in cases:
        top = max(places, default=-2.1) + 2.1
        ways = [way for with_case, way in cells if with_case == case]
        places |= {top + number: way for number, way in enumerate(ways)}
        _draw_case(axes, results, case, ways, top)
    axes.set_yticks(list(places), list(places.values()))
    axes.set_ylim(max(places) + 0.8, -1.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.margins(x=0.1)
    axes.set_xlabel("rows per second (logarithmic); a row of bronze is a snapshot, others are lines")
    axes.grid(axis="y", visible=False)
    return figure


def _draw_case(axes: Axes, results: Results, case: str, ways: Sequence[str], top: float) -> None:
    corner = ("axes fraction", "data")
    axes.annotate(case, (0, top - 0.75), xycoords=corner, va="center", fontweight="bold")
    for number, way in enumerate(ways):
        rate = results.rate(case, way, "rows") or math.nan
        axes.barh(top + number, rate, 0.8, color=COLOURS[number % len(COLOURS)])
        axes.annotate(f" {significant(rate)}", (rate, top + number), va="center", fontsize=9)


def draw_latency(results: Results) -> Figure | None:
    """Median and 95th percentile from fetch to each place, against the target for the latter."""
    cells = [cell for cell in _cells(results, "p95_seconds") if cell[0].startswith("fetched to")]
    if not cells:
        return None
    figure, [axes] = _figure("watch: seconds from a snapshot's fetch until it is visible")
    p50, p95 = ([_value(results, *cell, f"{name}_seconds") for cell in cells] for name in ("p50", "p95"))
    places = range(len(cells))
    axes.hlines(places, p50, p95, color=GREY, linewidth=1.5, zorder=1)
    axes.scatter(p50, places, color=BLUE, marker="o", s=60, label="median")
    axes.scatter(p95, places, color=RED, marker="D", s=50, label="95th percentile")
    for place, value in enumerate(p95):
        if bound := _bound(results, "watch_latency", value):
            axes.plot([bound, bound], [place - 0.35, place + 0.35], **TARGET)
    axes.plot([], [], label="target for the 95th percentile", **TARGET)
    axes.set_yticks(places, [", ".join(cell) for cell in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _bound(results: Results, scenario: str, value: float) -> float | None:
    """The target, in seconds, that this very value is held against."""
    targets = (target for target in targets_of(scenario) if target.unit == "s")
    return next((target.bound for target in targets if target.measured(results) == value), None)


def draw_memory(results: Results) -> Figure | None:
    """Resident memory after so many cycles, and what it is to stay under."""
    notes = [one.figures for one in results.observations if {"cycles", "rss_bytes"} <= one.figures.keys()]
    held = [found for one in results.observations if (found := one.figures.get("rss_bytes_at_100"))]
    if not notes or not held:
        return None
    figure, [axes] = _figure("watch: memory over many cycles, a new snapshot in each")
    cycles, megabytes = zip(*((note["cycles"], note["rss_bytes"] / 1e6) for note in notes), strict=True)
    axes.plot(cycles, megabytes, color=BLUE, marker="o", label="resident memory")
    [target] = targets_of("long_watch")
    bound = target.bound * held[0] / 1e6
    name = f"target: {target.bound:g} × what it was after 100 cycles"
    axes.plot([100, max(cycles)], [bound, bound], label=name, **TARGET)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.1 * max(bound, *megabytes))
    axes.set_xlabel("cycles")
    axes.set_ylabel("MB")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_history(results: Results) -> Figure | None:
    """Seconds of a cold run beside those of its yardstick, and requests, by days of history."""
    cells = _cells(results, "seconds")
    if not cells:
        return None
    figure, (left, right) = _figure("One cold run for one new snapshot, by days of history in the lake", 2)
    _draw_bars(left, results, cells, "seconds")
    _draw_bars(right, results, _cells(results, "requests"), "requests")
    left.set_ylabel("seconds")
    right.set_ylabel("requests to S3")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_bars(axes: Axes, results: Results, cells: Sequence[Cell], name: str) -> None:
    """A group of bars for each way, a bar in it for each case."""
    cases, ways = (list(dict.fromkeys(words)) for words in zip(*cells, strict=True))
    width = 0.8 / len(cases)
    for number, case in enumerate(cases):
        heights = [_value(results, case, way, name) for way in ways]
        places = [place + (number - (len(cases) - 1) / 2) * width for place in range(len(ways))]
        axes.bar(places, heights, width * 0.95, color=COLOURS[number], label=case)
        for place, height in zip(places, heights, strict=True):
            axes.annotate(significant(height), (place, height), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(ways)), [way.replace(", ", "\n") for way in ways])
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)


def draw_scale(results: Results) -> Figure | None:
    """Seconds of each stage against lines, beside what grows as they do, and its peak memory."""
    cells = [cell for cell in _cells(results, "rows", "seconds", "peak_bytes") if cell[0] in STAGES]
    if not cells:
        return None
    ways = list(dict.fromkeys(way for _, way in cells))
    lines = [_value(results, cells[0][0], way, "rows") for way in ways]
    figure, (left, right) = _figure("Each stage as the lake grows", 2)
    for stage, colour, marker in zip(STAGES, COLOURS, MARKERS, strict=True):
        seconds = [_value(results, stage, way, "seconds") for way in ways]
        peaks = [_value(results, stage, way, "peak_bytes") / 1e6 for way in ways]
        left.plot(lines, seconds, color=colour, marker=marker, label=stage)
        right.plot(lines, peaks, color=colour, marker=marker)
    slowest = max(_value(results, stage, ways[-1], "seconds") for stage in STAGES)
    linear = [slowest * count / lines[-1] for count in lines]
    left.plot(lines, linear, label="ten times the lines, ten times the seconds", **GUIDE)
    _label_scale(left, right)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _label_scale(left: Axes, right: Axes) -> None:
    for axes, unit in ((left, "seconds, start-up included (logarithmic)"), (right, "peak memory in MB")):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel("lines (logarithmic)")
        axes.set_ylabel(unit)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(EngFormatter())
    right.set_ylim(bottom=0)  # memory that is flat shows best beside nothing


PLOTS = (
    Plot("ways.svg", "Rows per second of each way", "compare_ways", draw_ways),
    Plot("latency.svg", "Seconds until a snapshot is visible", "watch_latency", draw_latency),
    Plot("memory.svg", "Memory of watch over many cycles", "long_watch", draw_memory),
    Plot("history.svg", "A cold run by days of history", "cold_run", draw_history),
    Plot("scale.svg", "Seconds and memory of each stage by lines", "scale", draw_scale),
)
