"""`watch` at work: how long after a snapshot was fetched it is visible, and what idle rounds cost.

The lake's day of today (UTC) holds 1 439 snapshots before: 23 objects that compaction has folded and 59 of
single polls, as `watch` leaves them. Then `scripts.watch_lake.Watch` is driven round by round, as `watch`
itself does it, each with a new snapshot of the simulated feed. Everything but the pipeline runs in processes
of its own: the feed, the S3 server, the proxy in front of it that notes requests and adds 20 ms to each,
PostgreSQL, and an observer that asks PostgreSQL every 10 ms for its newest reading. All times begin when the
feed's answer was there whole (`fetched_at`).

Cases, each on files and on S3 with 20 ms added to every request:

    fetched to bike_stations        until the observer sees the snapshot's readings (one transaction)
    fetched to every mart           until the last of the day's gold objects is published: on files the time
                                    that the file system gives to the rename, on S3 that of the answer
    fetched to every public table   until the dbt that upserts the marts has ended
    round of watch                  all of such a round, reconciliation and health included: seconds, CPU of
                                    its process, requests to S3 (`get_requests` and so on by kind), statements
                                    to PostgreSQL
    idle round: feed unchanged      a poll that finds what it found before
    idle round: nothing due         a round without anything to do
    idle round: nothing new         readings, build, marts and health looked at, with nothing to be done

    python -m scripts.benchmarks.watch_latency --stations 20 --free-bikes 5 --snapshots 60 --cycles 3
    python -m scripts.benchmarks.watch_latency profile --s3
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT, Settings
from scripts.benchmarks.driven_watch import (
    DrivenWatch,
    Logs,
    Observer,
    Round,
    driven_watch,
    observed_stations,
)
from scripts.benchmarks.measurement import (
    Bench,
    BenchmarkError,
    Observation,
    Place,
    Results,
    Target,
    open_bench,
    python,
    run_measured,
)
from scripts.benchmarks.watch_profile import profile
from scripts.benchmarks.watched_place import slow_s3, watched_place, within_one_day
from scripts.command import run_command
from scripts.start_s3 import running_s3

MARTS = {path.stem for path in (PROJECT_ROOT / "transform/models/marts/wrm").glob("*.sql")}
SCENARIO = "watch_latency"
MODULE = f"scripts.benchmarks.{SCENARIO}"
FILES, SLOW_S3 = "files", "S3 + 20 ms"
DELAY_SECONDS = 0.02
SNAPSHOTS = 1439
CYCLES = 20
IDLE_ROUNDS = 10
PROFILED_CYCLES = 5

STATIONS, EVERY_MART, PUBLIC = (
    "fetched to bike_stations",
    "fetched to every mart",
    "fetched to every public table",
)
ROUND = "round of watch"
UNCHANGED, NOTHING_DUE, NOTHING_NEW = (
    "idle round: feed unchanged",
    "idle round: nothing due",
    "idle round: nothing new",
)

Figures = dict[str, float]


def measure(bench: Bench, cycles: int = CYCLES, snapshots: int = SNAPSHOTS) -> Iterator[Observation]:
    """Both ways in turn, each repeat in a process of its own on the lake that the one before left."""
    with within_one_day(), prepared_ways(bench, snapshots) as ways:
        for repeat in range(1, bench.repeats + 1):
            for way, (place, logs) in ways.items():
                command = python(MODULE, "step", "--cycles", str(cycles), *logs)
                used = run_measured(command, place.environment)
                for case, figures in used.said.items():
                    if case == ROUND:
                        figures["peak_bytes"] = used.peak_bytes
                    yield Observation(SCENARIO, case, way, repeat, figures)


Ways = dict[str, tuple[Place, list[str | Path]]]


@contextmanager
def prepared_ways(bench: Bench, snapshots: int, wanted: Sequence[str] = (FILES, SLOW_S3)) -> Iterator[Ways]:
    """By way the place that is ready to be watched, and the options that name the logs to count in."""
    statements: list[str | Path] = ["--statements", bench.postgres.postgres_data_dir / "server.log"]
    ways: Ways = {}
    with ExitStack() as stack:
        if FILES in wanted:
            ways[FILES] = (
                stack.enter_context(watched_place(bench, "watch_files", snapshots)),
                statements,
            )
        if SLOW_S3 in wanted:
            server = stack.enter_context(running_s3(bench.folder / "watch_s3_server"))
            place = stack.enter_context(watched_place(bench, "watch_s3", snapshots, server))
            log = bench.folder / "watch_s3_requests.log"
            slow = stack.enter_context(slow_s3(place, log, DELAY_SECONDS))
            ways[SLOW_S3] = (slow, [*statements, "--requests", log])
        yield ways


@dataclass(frozen=True)
class Cycle:
    """A round with a new snapshot; seconds since that was fetched, of the round, and what it took."""

    to_stations: float
    to_marts: float
    to_public: float
    round: Round
    requests: Counter[str]  # to S3, by kind
    statements: int


def measure_cycles(settings: Settings, cycles: int, logs: Logs) -> dict[str, Figures]:
    """The figures of every case, of this process's own `watch`. On files there are no requests to count."""
    with driven_watch(settings) as watch:
        watch.warm_up()
        with observed_stations() as observer:
            logs.counts()
            measured = [measure_cycle(watch, observer, logs) for _ in range(cycles)]
        idle = {case: measure_idle(watch, case, logs) for case in IDLE}
    return {
        STATIONS: spread([cycle.to_stations for cycle in measured]),
        EVERY_MART: spread([cycle.to_marts for cycle in measured]),
        PUBLIC: spread([cycle.to_public for cycle in measured]),
        ROUND: {
            "seconds": statistics.median(cycle.round.seconds for cycle in measured),
            "cpu_seconds": statistics.median(cycle.round.cpu_seconds for cycle in measured),
            "requests": statistics.median(cycle.requests.total() for cycle in measured),
            **requests_by_kind([cycle.requests for cycle in measured]),
            "statements": statistics.median(cycle.statements for cycle in measured),
        },
        **idle,
    }


def measure_cycle(watch: DrivenWatch, observer: Observer, logs: Logs) -> Cycle:
    """One round with a new snapshot, and when others see what it brought."""
    one = watch.cycle()
    seen = observer.next()
    requests_made, statements = logs.counts()
    lake = Lake.of(watch.settings)
    published = (
        published_in_files(Path(lake.root), seen.fetched_at)
        if lake.is_local
        else published_on_s3(requests_made)
    )
    if MARTS - set(published):
        missing = ", ".join(sorted(MARTS - set(published)))
        raise BenchmarkError(f"A new snapshot did not reach every mart: {missing} stayed as they were.")
    exported = max(
        step.ended_at for step in one.steps if step.kind == "dbt_invocation" and step.project == "exports"
    )
    return Cycle(
        seen.seen_at - seen.fetched_at,
        max(published[mart] for mart in MARTS) - seen.fetched_at,
        exported.timestamp() - seen.fetched_at,
        one,
        Counter(line.split(" ", 2)[1] for line in requests_made),
        statements,
    )


def requests_by_kind(cycles: Sequence[Counter[str]]) -> Figures:
    """Medians of the requests of each kind."""
    verbs = sorted(set().union(*cycles))
    return {f"{verb.lower()}_requests": statistics.median(cycle[verb] for cycle in cycles) for verb in verbs}


def published_in_files(lake: Path, since: float) -> dict[str, float]:
    """By gold model when the last of its days was published (Unix seconds), of those that were since then."""
    published: dict[str, float] = {}
    for path in lake.glob("gold/*/dt=*/data.parquet"):
        renamed_at = path.stat().st_ctime  # a rename leaves the other times alone
        if renamed_at >= since:
            model = path.parts[-3]
            published[model] = max(published.get(model, 0), renamed_at)
    return published


def published_on_s3(lines: Sequence[str]) -> dict[str, float]:
    """The same by the lines of the proxy's log."""
    published: dict[str, float] = {}
    for line in lines:
        moment, verb, key = line.split(" ", 2)
        if verb in ("PUT", "POST") and "/gold/" in key and key.endswith("/data.parquet"):
            published[key.split("/")[-3]] = float(moment)
    return published


def spread(values: Sequence[float]) -> Figures:
    """Of seconds: their median, the 95th percentile and the longest."""
    ordered = sorted(values)
    return {
        "p50_seconds": statistics.median(ordered),
        "p95_seconds": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max_seconds": ordered[-1],
        "cycles": len(ordered),
    }


def feed_unchanged(watch: DrivenWatch) -> Round:
    requests.post(watch.settings.wrm_feed_url, params={"kind": "unchanged"}, timeout=10).raise_for_status()
    return watch.round(watch.state.raw, watch.state.archive)


def nothing_new(watch: DrivenWatch) -> Round:
    state = watch.state
    return watch.round(state.archive, state.export, state.build, state.health)


# in this order: after a poll that found nothing, the attempt itself is new to the lake
IDLE: dict[str, Callable[[DrivenWatch], Round]] = {
    NOTHING_DUE: lambda watch: watch.round(),
    NOTHING_NEW: nothing_new,
    UNCHANGED: feed_unchanged,
}


def measure_idle(watch: DrivenWatch, case: str, logs: Logs) -> Figures:
    """Medians of some rounds, and the most that one of them took."""
    logs.counts()
    rounds, asked = [], []
    for _ in range(IDLE_ROUNDS):
        rounds.append(IDLE[case](watch))
        asked.append(len(logs.counts()[0]))
    return {
        "seconds": statistics.median(one.seconds for one in rounds),
        "cpu_seconds": statistics.median(one.cpu_seconds for one in rounds),
        "max_cpu_seconds": max(one.cpu_seconds for one in rounds),
        "requests": statistics.median(asked),
    }


def _target(what: str, bound: float, case: str, way: str, figure: str, unit: str, times: float = 1) -> Target:
    def measured(results: Results) -> float | None:
        value = results.median(case, way, figure)
        return None if value is None else value * times

    return Target(what, bound, measured, unit)


TARGETS = [
    _target("watch: fetched → bike_stations, p95, files", 0.5, STATIONS, FILES, "p95_seconds", "s"),
    _target("watch: fetched → bike_stations, p95, S3 + 20 ms", 1, STATIONS, SLOW_S3, "p95_seconds", "s"),
    _target("watch: fetched → every mart, p95, files", 2.5, EVERY_MART, FILES, "p95_seconds", "s"),
    _target("watch: fetched → every mart, p95, S3 + 20 ms", 4, EVERY_MART, SLOW_S3, "p95_seconds", "s"),
    *(
        _target(f"watch: CPU of an {case}, {way}", 50, case, way, "cpu_seconds", "ms", 1000)
        for case in (UNCHANGED, NOTHING_DUE)
        for way in (FILES, SLOW_S3)
    ),
    *(
        _target(f"watch: S3 requests of an {case}", 10, case, SLOW_S3, "requests", "")
        for case in (UNCHANGED, NOTHING_DUE)
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    _add_size(parser)
    _add_cycles(parser, CYCLES)
    jobs = parser.add_subparsers(dest="job", metavar="")
    step = jobs.add_parser("step", help="one repeat of one way, in the place of the environment")
    _add_cycles(step, CYCLES)
    step.add_argument("--requests", type=Path, help="log of the proxy of S3")
    step.add_argument("--statements", type=Path, help="log of PostgreSQL")
    profiled = jobs.add_parser("profile", help="where the time of a cycle goes")
    _add_size(profiled)
    _add_cycles(profiled, PROFILED_CYCLES)
    profiled.add_argument("--s3", action="store_true", help="on S3 with 20 ms added, not on files")
    profiled.add_argument(
        "--here", action="store_true", help="in the place of the environment, prepared before"
    )
    given = parser.parse_args()
    if given.job == "step":
        logs = Logs.of(given.requests, given.statements)
        run_command(lambda settings: print(json.dumps(measure_cycles(settings, given.cycles, logs))))
    elif given.job == "profile" and given.here:
        run_command(lambda settings: profile(settings, given.cycles))
    elif given.job == "profile":
        _profile_anew(given)
    else:
        with _bench(given) as bench:
            for observation in measure(bench, given.cycles, given.snapshots):
                print(observation, flush=True)


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stations", type=int, default=235)
    parser.add_argument("--free-bikes", type=int, default=115)
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS, help="that the day holds before")


def _add_cycles(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--cycles", type=int, default=default, help="with a new snapshot each")


def _profile_anew(given: argparse.Namespace) -> None:
    """In a process that has the settings of a place of its own."""
    way = SLOW_S3 if given.s3 else FILES
    with _bench(given) as bench, prepared_ways(bench, given.snapshots, [way]) as ways:
        place, _ = ways[way]
        command = [str(word) for word in python(MODULE, "profile", "--here", "--cycles", str(given.cycles))]
        subprocess.run(command, cwd=PROJECT_ROOT, env=place.environment, check=True)


@contextmanager
def _bench(given: argparse.Namespace) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        open_bench(
            Path(folder),
            days=2,
            cadence_minutes=1,
            stations=given.stations,
            free_bikes=given.free_bikes,
            error_share=0,
            repeats=vars(given).get("repeats", 1),
        ) as bench,
    ):
        yield bench


if __name__ == "__main__":
    main()
