"""Jobs of the pipeline in processes of their own that start at once and may be killed at any moment.

They are forked from a server that has imported dlt and dbt already: a job starts in milliseconds, where the
command line takes seconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine

from ingestion.settings import PROJECT_ROOT

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("scripts.run_pipeline", "scripts.compact_bronze", "scripts.rebuild_days", "ingestion.wrm"),
        *("transform.plugins.lake", "dbt.cli.main", "dbt.task.build", "dbt.adapters.duckdb"),
        *("dbt.adapters.postgres", "dlt.sources.helpers.requests"),
        "pandas",  # pyarrow imports it where it is installed
    ]
)
DEADLINE_SECONDS = 300  # a job that takes longer hangs


class Job:
    """A job under way: the `main` of a module of `scripts/` with its arguments.

    `environment` is all of the job's, `log` the file that gets what it prints. Where CLOCK_IS_AHEAD_SECONDS
    is set, Python's clock is wrong by so much. As a context manager it does not outlast its block.
    """

    def __init__(self, environment: dict[str, str], log: Path, module: str, *arguments: str) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = _SERVER.Process(target=_work, args=[environment, str(log), module, list(arguments)])
        self.process.start()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.join()

    @property
    def output(self) -> str:
        """What it has printed so far, standard output and errors in order."""
        return self.log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        """End it at this very moment (SIGKILL), if it has not ended. Any thread may."""
        self.process.kill()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self.process.terminate()

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Its exit status, negative for a signal's; raises `TimeoutError` where it has not ended by then."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"The job has not ended within {seconds} s. It printed:\n{self.output}")
        return self.process.exitcode


def _work(environment: dict[str, str], log: str, module: str, arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(PROJECT_ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # multiprocessing has it ignored
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *arguments]
    ahead = timedelta(seconds=float(environment.get("CLOCK_IS_AHEAD_SECONDS", "0")))
    with time_machine.travel(datetime.now(UTC) + ahead) if ahead else nullcontext():
        importlib.import_module(f"scripts.{module}").main()
