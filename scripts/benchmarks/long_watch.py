"""The memory of `watch` over many cycles, each with a new snapshot: flat after the first hundred.

A small city on files, its cycles one after the other without waiting, so that a thousand of them (more than
sixteen hours at one a minute) take minutes. Compaction has its turn every 60 cycles and takes what lies there
for that of an hour that has ended, as it would have by then. After every 50 cycles resident memory and open
files of the process are noted.

Cases:

    memory of many cycles      resident memory after 100 cycles and after the last (`rss_bytes_at_100`,
                               `rss_bytes_at_end`), their ratio, and the most that there ever was
    memory after some cycles   the whole series, for a plot: one observation per note, by `cycles`

    python -m scripts.benchmarks.long_watch --cycles 200
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

from ingestion.compaction import Folded
from ingestion.settings import Settings
from scripts import watch_lake
from scripts.benchmarks.driven_watch import driven_watch
from scripts.benchmarks.measurement import (
    Bench,
    Observation,
    Results,
    Target,
    open_bench,
    python,
    ratio,
    run_measured,
)
from scripts.benchmarks.watched_place import watched_place
from scripts.command import run_command
from scripts.compact_bronze import compact

SCENARIO = "long_watch"
MODULE = f"scripts.benchmarks.{SCENARIO}"
WAY = "files"
CYCLES = 1000
FIRST = 100  # cycles after which memory is to be flat
EVERY = 50
CYCLES_PER_HOUR = 60
STATIONS, FREE_BIKES = 20, 5

MEMORY, SERIES = "memory of many cycles", "memory after some cycles"

Figures = dict[str, float]


def measure(bench: Bench, cycles: int = CYCLES) -> Iterator[Observation]:
    """Once, whatever the bench's repeats and the size of its city: it is long enough as it is."""
    small = replace(bench, stations=STATIONS, free_bikes=FREE_BIKES)
    with watched_place(small, SCENARIO, snapshots=0) as place:
        used = run_measured(python(MODULE, "step", "--cycles", str(cycles)), place.environment)
    series: list[Figures] = used.said["series"]
    for repeat, figures in enumerate(series, start=1):
        yield Observation(SCENARIO, SERIES, WAY, repeat, figures)
    at_first = next(figures for figures in series if figures["cycles"] >= min(FIRST, cycles))
    yield Observation(
        SCENARIO,
        MEMORY,
        WAY,
        1,
        {
            "cycles": cycles,
            "seconds": used.seconds,
            "cpu_seconds": used.cpu_seconds,
            "peak_bytes": used.peak_bytes,
            "rss_bytes_at_100": at_first["rss_bytes"],
            "rss_bytes_at_end": series[-1]["rss_bytes"],
            "open_files_at_100": at_first["open_files"],
            "open_files_at_end": series[-1]["open_files"],
        },
    )


def watch_long(settings: Settings, cycles: int) -> list[Figures]:
    """Drive so many cycles; what is noted of the process after every so many, and after the last."""
    noted = []
    started = time.perf_counter()
    with driven_watch(settings) as watch, patch.object(watch_lake, "compact", _compact_an_hour_later):
        for number in range(1, cycles + 1):
            if number % CYCLES_PER_HOUR == 0:
                watch.state.compaction.wake()
            watch.cycle()
            if number % EVERY == 0 or number == cycles:
                noted.append({"cycles": number, "seconds": time.perf_counter() - started, **_memory()})
    return noted


def _compact_an_hour_later(settings: Settings, days: Collection[date] | None) -> list[Folded]:
    """Hours pass faster here than the clock says."""
    return compact(settings, days, datetime.now(UTC) + timedelta(hours=1))


def _memory() -> Figures:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "open_files": len(os.listdir("/proc/self/fd")),
    }


def _growth(results: Results) -> float | None:
    return ratio(*(results.median(MEMORY, WAY, f"rss_bytes_at_{when}") for when in ("end", "100")))


TARGETS = [Target("watch: memory after 1 000 cycles to that after 100", 1.1, _growth, "×")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    jobs = parser.add_subparsers(dest="job", metavar="")
    step = jobs.add_parser("step", help="the cycles themselves, in the place of the environment")
    for one in (parser, step):
        one.add_argument("--cycles", type=int, default=CYCLES)
    given = parser.parse_args()
    if given.job == "step":
        run_command(lambda settings: print(json.dumps({"series": watch_long(settings, given.cycles)})))
        return
    city = {"stations": STATIONS, "free_bikes": FREE_BIKES, "error_share": 0.0}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        open_bench(Path(folder), days=1, cadence_minutes=1, repeats=1, **city) as bench,
    ):
        for observation in measure(bench, given.cycles):
            print(observation, flush=True)


if __name__ == "__main__":
    main()
