"""Where the time of one cycle of `watch` goes: a table by stage, dbt's nodes, and a profile by function.

    python -m scripts.benchmarks.watch_latency profile --stations 235 --free-bikes 115

The stages are means of a few cycles without a profiler, which slows Python down and not SQL.
"""

from __future__ import annotations

import cProfile
import functools
import io
import pstats
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from ingestion import bronze, wrm
from ingestion.settings import Settings
from scripts import pipeline_run, run_dbt, run_pipeline, watch_lake
from scripts.benchmarks.driven_watch import DrivenWatch, Round, driven_watch

FUNCTIONS, FUNCTIONS_WITH_CALLERS = 40, 20
MODELS = 30
# in which threads do nothing but wait for others
WAITING = ("acquire", "poll", "SimpleQueue", "_handle_tasks")

StagePath = tuple[str, ...]  # of names, from the outside in


class Stopwatch:
    """Wall and CPU seconds of stages, by where they stand within each other."""

    def __init__(self) -> None:
        self.path: StagePath = ()
        self.spent: dict[StagePath, list[float]] = {}

    def timed(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """The function, each call of which is a stage of that name."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(name(*arguments)):
                return function(*arguments, **options)

        return call

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        outer, self.path = self.path, (*self.path, name)
        spent = self.spent.setdefault(self.path, [0, 0])  # in the order in which stages begin
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent[0] += time.perf_counter() - wall
            spent[1] += time.process_time() - cpu
            self.path = outer

    def table(self, cycles: int) -> str:
        """Milliseconds per cycle, stage by stage, and what of a stage none of its parts accounts for."""
        lines = [f"{'stage':<44}{'wall ms':>9}{'CPU ms':>9}"]
        for path in self._in_order():
            parts = [spent for other, spent in self.spent.items() if other[:-1] == path]
            lines.append(_line(path, self.spent[path], cycles))
            if parts:
                rest = [total - sum(part[i] for part in parts) for i, total in enumerate(self.spent[path])]
                lines.append(_line((*path, "(the rest)"), rest, cycles))
        return "\n".join(lines)

    def _in_order(self) -> list[StagePath]:
        """Each stage before its parts."""
        began = {path: number for number, path in enumerate(self.spent)}
        return sorted(began, key=lambda path: [began[path[: i + 1]] for i in range(len(path))])


def _line(path: StagePath, spent: list[float], cycles: int) -> str:
    name = "  " * (len(path) - 1) + path[-1]
    return f"{name:<44}{spent[0] * 1000 / cycles:>9.1f}{spent[1] * 1000 / cycles:>9.1f}"


@contextmanager
def timed_stages(stopwatch: Stopwatch) -> Iterator[None]:
    """Have the stages of every cycle timed for the length of a `with` block."""
    from dbt.cli import requires
    from dbt.task.run import RunTask
    from dbt.task.runnable import GraphRunnableTask

    stages: list[tuple[str, object, str]] = [
        ("poll", watch_lake, "take_snapshot"),
        ("open the pipeline", bronze, "open_pipeline"),
        ("fetch", wrm, "fetch"),
        ("dlt", bronze, "load_day"),
        ("normalize", bronze, "_normalize"),
        ("load", bronze, "_load"),
        ("finish a compaction", watch_lake, "recover"),
        ("readings to PostgreSQL", watch_lake, "export_readings"),
        ("silver and gold", watch_lake, "transform"),
        ("marts to PostgreSQL", watch_lake, "export_marts"),
        ("reconciliation", watch_lake, "reconcile"),
        ("health", watch_lake, "measure_health"),
        ("record of the run", pipeline_run, "_record"),
        ("profile", requires, "load_profile"),
        ("project", requires, "load_project"),
        ("manifest", requires, "setup_manifest"),
        ("selection", GraphRunnableTask, "_runtime_initialize"),
        ("before the nodes", RunTask, "before_run"),
        ("nodes", GraphRunnableTask, "execute_nodes"),
        ("after the nodes", RunTask, "after_run"),
    ]
    with ExitStack() as stack:
        for name, owner, attribute in stages:
            timed = stopwatch.timed(getattr(owner, attribute), lambda *_, name=name: name)
            stack.enter_context(patch.object(owner, attribute, timed))
        of_project = stopwatch.timed(run_dbt.run_dbt, lambda settings, project, *_: f"dbt {project}")
        stack.enter_context(patch.object(run_pipeline, "run_dbt", of_project))
        yield


@contextmanager
def profiled() -> Iterator[pstats.Stats]:
    """Profile every thread that is at work in a `with` block: dbt builds models in threads of its own. The
    statistics are whole when it ends."""
    profiles = [cProfile.Profile()]
    run = threading.Thread.run

    def run_profiled(thread: threading.Thread) -> None:
        own = cProfile.Profile()
        profiles.append(own)
        own.runcall(run, thread)

    found = pstats.Stats()
    with patch.object(threading.Thread, "run", run_profiled):
        profiles[0].enable()
        try:
            yield found
        finally:
            profiles[0].disable()
    for profile in profiles:
        profile.create_stats()
        found.add(profile)
    for function in [*found.stats]:  # type: ignore[attr-defined]  # by file, line and name
        if any(word in function[2] for word in WAITING):
            del found.stats[function]  # type: ignore[attr-defined]


def profile(settings: Settings, cycles: int) -> None:
    """Drive some cycles and print where their time went."""
    stopwatch = Stopwatch()
    with driven_watch(settings) as watch:
        watch.warm_up()
        with timed_stages(stopwatch):
            rounds = [_timed_cycle(watch, stopwatch) for _ in range(cycles)]
        with profiled() as statistics:
            watch.cycle()
    print(f"Means of {cycles} cycles\n\n{stopwatch.table(cycles)}\n\n{_nodes(rounds)}\n")
    print(_functions(statistics))


def _timed_cycle(watch: DrivenWatch, stopwatch: Stopwatch) -> Round:
    with stopwatch.stage("cycle"):
        return watch.cycle()


def _nodes(rounds: list[Round]) -> str:
    """What the nodes of dbt that did something took, the longest first; several are at work at a time."""
    spent: dict[str, float] = defaultdict(float)
    for one in rounds:
        for step in one.steps:
            if step.kind == "dbt_node":
                name = f"{step.project}: {step.name}"
                spent[name] += (step.ended_at - step.started_at).total_seconds() / len(rounds)
    longest = sorted(spent.items(), key=lambda item: -item[1])[:MODELS]
    return "\n".join(f"{name:<64}{seconds * 1000:>9.1f} ms" for name, seconds in longest)


def _functions(statistics: pstats.Stats) -> str:
    """Those that took longest themselves, and who called the first of them."""
    printed = io.StringIO()
    statistics.stream = printed  # type: ignore[attr-defined]  # what Stats(stream=…) sets
    statistics.sort_stats("tottime").print_stats(FUNCTIONS).print_callers(FUNCTIONS_WITH_CALLERS)
    return printed.getvalue()
