"""The loop of `watch` driven round by round, and what others see of it: an observer of PostgreSQL in a
process of its own, and the logs of the servers.

    python -m scripts.benchmarks.driven_watch       that observer, of the PostgreSQL that the settings name
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import psycopg2
from psycopg2 import sql

from ingestion.run_history import Step
from ingestion.settings import PROJECT_ROOT, Settings
from scripts.benchmarks.measurement import BenchmarkError, python
from scripts.command import run_command, the_only_job
from scripts.lease import Lease
from scripts.pipeline_run import new_run_id, pipeline_run
from scripts.start_postgres import running_postgres
from scripts.watch_lake import Sensor, Troubles, Watch, count_round, note_round

MODULE = "scripts.benchmarks.driven_watch"
SETTLING_ROUNDS = 2
LOOK_SECONDS = 0.01
ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Round:
    """One round of `watch` that has ended well; CPU is that of this process."""

    seconds: float
    cpu_seconds: float
    steps: list[Step]


@dataclass(frozen=True)
class DrivenWatch:
    """The loop of `watch`, a round at a time: what is due in it is said by whoever drives."""

    settings: Settings
    state: Watch
    troubles: Troubles
    lease: Lease

    def warm_up(self) -> None:
        """The first round, in which all but compaction is due, looks at everything and builds it."""
        self.round()
        for _ in range(SETTLING_ROUNDS):
            self.cycle()

    def cycle(self) -> Round:
        """A round in which all is due that ever is beside compaction, with a new snapshot."""
        return self.round(self.state.raw, self.state.archive, self.state.health)

    def round(self, *due: Sensor) -> Round:
        """One round, as `watch` does it; raises `BenchmarkError` where something fails."""
        for sensor in due:
            sensor.wake()
        started, cpu = time.perf_counter(), time.process_time()
        with pipeline_run(self.settings, "watch round", new_run_id(), "watch", self.lease) as run:
            note_round(run, self.state.run_round(threading.Event()), self.state.is_idle)
        count_round(self.state.metrics, run)
        self.troubles.tell()
        if run.error:
            raise BenchmarkError(f"A round of watch failed: {run.error}. Mend that and run again.")
        return Round(time.perf_counter() - started, time.process_time() - cpu, run.steps)


@contextmanager
def driven_watch(settings: Settings) -> Iterator[DrivenWatch]:
    """`watch` at work for the length of a `with` block."""
    with the_only_job(settings, "watch", trigger="watch") as process, running_postgres(settings):
        state = Watch(settings)
        with state.metrics.served():
            yield DrivenWatch(settings, state, Troubles(state, process.lease.left_by), process.lease)


def observe(settings: Settings) -> None:
    """Look at `bike_stations` again and again: whenever its newest reading is another, print when that was
    seen and when it was fetched (Unix seconds)."""
    query = sql.SQL('select processed_at from {}.bike_stations order by "timestamp" desc limit 1').format(
        sql.Identifier(settings.postgres_schema)
    )
    parent, known = os.getppid(), None
    with closing(psycopg2.connect(**settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("set log_statement = 'none'")  # only those of the pipeline are counted
            while os.getppid() == parent:
                cursor.execute(query)
                [(fetched_at,)] = cursor.fetchall()
                if fetched_at != known:
                    known = fetched_at
                    print(json.dumps([time.time(), fetched_at.replace(tzinfo=UTC).timestamp()]), flush=True)
                time.sleep(LOOK_SECONDS)


@dataclass(frozen=True)
class Seen:
    """A snapshot's readings in `bike_stations`, in Unix seconds."""

    seen_at: float
    fetched_at: float


class Observer:
    """Somebody else's eyes on `bike_stations`: a process of its own, so that looking is not at the cost of
    `watch`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.next()  # what is there already

    def next(self) -> Seen:
        """What was seen next after the last that was told."""
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
            line = self.process.stdout.readline()
            if line:
                return Seen(*json.loads(line))
        raise BenchmarkError(
            f"New readings were not seen in bike_stations within {ANSWER_SECONDS} s of the round's end. "
            "Look at what the round printed."
        )


@contextmanager
def observed_stations() -> Iterator[Observer]:
    """An observer for the length of a `with` block; the table is there already."""
    command = [str(word) for word in python(MODULE)]
    # unbuffered: what was read ahead, select would not tell of
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield Observer(process)
        finally:
            process.terminate()


class Tail:
    """The lines that a file gets while somebody looks at it; of no file, none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.offset = path.stat().st_size if path else 0

    def lines(self) -> list[str]:
        """Those since the last look."""
        if self.path is None:
            return []
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            found = file.read()
        self.offset += len(found)
        return found.decode(errors="replace").splitlines()


@dataclass(frozen=True)
class Logs:
    """What the servers wrote since the last look."""

    requests: Tail
    statements: Tail

    @classmethod
    def of(cls, requests: Path | None, statements: Path | None) -> Logs:
        return cls(Tail(requests), Tail(statements))

    def counts(self) -> tuple[list[str], int]:
        """The lines of the requests to S3, and the number of statements to PostgreSQL."""
        statements = [
            line
            for line in self.statements.lines()
            if "LOG:  statement: " in line or "LOG:  execute " in line
        ]
        return self.requests.lines(), len(statements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    run_command(observe)


if __name__ == "__main__":
    main()
