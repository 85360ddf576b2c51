"""Measure the project against the limit and against the usual ways: scripts/just bench [SCENARIO …]

    scripts/just bench                           every scenario but `scale`, which takes long: name it
    scripts/just bench cold_run --repeats 5      one of them; scripts/benchmarks has a module for each
    scripts/just bench scale --lines 1000000     one lake of about a million lines
    scripts/just bench --write                   puts the results into docs/performance.md and its folder
    scripts/just bench --render                  draws tables and plots once more from what is there

Each scenario works in a scratch folder below TMPDIR and says its results as soon as it has ended. Ends with
status 1 where ways that must agree do not, or a process fails; a target that is missed is no failure.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ingestion.archive import absolute_location
from scripts.benchmarks.measurement import Bench, Observation, open_bench
from scripts.benchmarks.report import (
    DOCUMENT,
    SCENARIOS,
    Record,
    all_targets,
    describe_machine,
    render,
    save_record,
    sheet,
    target_sheet,
    to_json,
    told,
)
from scripts.command import run_command

NAMED_ONLY = ("scale",)
OPTIONS = {
    "days": "--days",
    "cadence_minutes": "--cadence",
    "stations": "--stations",
    "free_bikes": "--free-bikes",
    "error_share": "--error-share",
    "repeats": "--repeats",
    "lines": "--lines",
}
WIDTH = 180  # where it is no terminal

logger = logging.getLogger("bike-data-flow")


def run_scenario(scenario: str, options: dict[str, object], command: str) -> Record:
    """Measure one scenario. Raises `BenchmarkError`."""
    module = importlib.import_module(f"scripts.benchmarks.{scenario}")
    started, day = time.monotonic(), datetime.now(UTC).date()
    observations = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        open_bench(Path(folder), **options) as bench,
    ):
        for observation in module.measure(bench):
            _log(observation)
            observations.append(observation)
    minutes = (time.monotonic() - started) / 60
    return Record(scenario, command, day.isoformat(), minutes, options, describe_machine(), observations)


def _log(one: Observation) -> None:
    seconds = f": {told('seconds', one.figures['seconds'])}" if "seconds" in one.figures else ""
    logger.info("%s, %s, %s, repeat %d%s", one.scenario, one.case, one.way, one.repeat, seconds)


def bench(
    scenarios: Sequence[str], options: dict[str, object], json_file: Path | None, is_written: bool
) -> None:
    """Measure scenarios one after another; what one gave is told, and kept, before the next begins."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    records: list[Record] = []
    for scenario in scenarios:
        record = run_scenario(scenario, options, command_for(scenario, options))
        records.append(record)
        console.print(sheet(record).to_rich(f"{scenario}, {record.minutes:.1f} minutes"))
        if json_file:
            json_file.write_text(to_json(records), encoding="utf-8")
        if is_written:
            save_record(record, DOCUMENT.with_suffix(""))
            render()
    console.print(target_sheet(all_targets(records)).to_rich("Targets"))


def command_for(scenario: str, options: dict[str, object]) -> str:
    """What people type to measure the same again; options that are as by default go without saying."""
    words = ["scripts/just", "bench", scenario]
    for name, default in vars(option_parser().parse_args([])).items():
        value = options[name]
        if value != default:
            words += [OPTIONS[name], *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def option_parser() -> argparse.ArgumentParser:
    """How much to measure: options for the fields of a bench."""
    parser = argparse.ArgumentParser(add_help=False)

    def add(name: str, kind: Callable[[str], object], default: object, help: str, **more: Any) -> None:
        given: dict[str, Any] = {"type": kind, "default": default, "help": help, "metavar": "N"}
        parser.add_argument(OPTIONS[name], dest=name, **given, **more)

    add("days", _number(int, 1), 30, "of the archive")
    add("cadence_minutes", _number(float, 0.1, 1440), 1.0, "minutes between snapshots")
    add("stations", _number(int, 1), 235, "of the simulated city")
    add("free_bikes", _number(int, 0), 115, "of the simulated city")
    add("error_share", _number(float, 0, 1), 0.02, "of the snapshots that hold damage, 0 to 1")
    add("repeats", _number(int, 1), 3, "of every measurement, interleaved")
    add("lines", _number(int, 1), list(Bench.lines), "of each of scale's lakes", nargs="+")
    return parser


def _number(kind: type[int] | type[float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """What reads an option's value, and refuses one out of bounds."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            bounds = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"out of bounds: {text!r}. Give {bounds}.")
        return value

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, parents=[option_parser()]
    )
    parser.add_argument("scenario", nargs="*", help=f"some of: {', '.join(SCENARIOS)}")
    parser.add_argument("--json", metavar="FILE", help="put all that was observed into a file")
    parser.add_argument("--write", action="store_true", help=f"put the results into {DOCUMENT.name}")
    parser.add_argument(
        "--render", action="store_true", help=f"draw {DOCUMENT.name} anew and measure nothing"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.scenario if name not in SCENARIOS]:
        parser.error(
            f"there is no such scenario: {', '.join(unknown)}. Give some of: {', '.join(SCENARIOS)}."
        )
    scenarios = given.scenario or [name for name in SCENARIOS if name not in NAMED_ONLY]
    options = {name: value for name, value in vars(given).items() if name in OPTIONS}
    # `just` runs recipes in the project's root: a relative file is meant from where it was called
    called_from = os.environ.get("CALLED_FROM") or os.getcwd()
    json_file = given.json and Path(absolute_location(given.json, called_from))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or servers would stay
    if given.render:
        run_command(lambda _: render())
    else:
        run_command(lambda _: bench(scenarios, options, json_file, given.write))


if __name__ == "__main__":
    main()
