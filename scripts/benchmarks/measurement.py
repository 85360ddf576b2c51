"""What every scenario shares: observations, targets, processes that are measured, and scratch places."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

from ingestion.settings import PROJECT_ROOT, Settings, load_settings
from scripts.command import CommandError
from scripts.start_postgres import running_postgres
from scripts.start_s3 import S3Server

INHERITED = ("HOME", "LANG", "LC_ALL", "TMPDIR")
# set to nothing in every place, or a .env file would be read
SETTINGS = re.findall(r"^#([A-Z0-9_]+)=", (PROJECT_ROOT / ".env.example").read_text(), re.MULTILINE)


class BenchmarkError(CommandError):
    """A measured process failed, or ways that must agree do not; the message says which and why."""


@dataclass(frozen=True)
class Observation:
    """One measurement. Figures carry their unit at the end of their name: seconds, cpu_seconds, p95_seconds,
    peak_bytes, read_bytes, written_bytes, rows, files, objects, requests."""

    scenario: str  # the module of scripts/benchmarks
    case: str  # what was done, as the report says it: "archive to bronze"
    way: str  # by whom or under what: project, limit, usual, dlt-only; "files", "S3 + 20 ms"; …
    repeat: int  # 1 for the first
    figures: dict[str, float]


@dataclass(frozen=True)
class Results:
    """Every observation of one call of the benchmark."""

    observations: Sequence[Observation]

    def values(self, case: str, way: str, figure: str) -> list[float]:
        """That figure of each repeat that has it."""
        return [
            one.figures[figure]
            for one in self.observations
            if (one.case, one.way) == (case, way) and figure in one.figures
        ]

    def median(self, case: str, way: str, figure: str) -> float | None:
        """The median over the repeats; None where it was not measured."""
        found = self.values(case, way, figure)
        return statistics.median(found) if found else None

    def rate(self, case: str, way: str, figure: str) -> float | None:
        """So much of a figure per second, such as rows, by the medians."""
        count, seconds = self.median(case, way, figure), self.median(case, way, "seconds")
        return count / seconds if count is not None and seconds else None


def ratio(one: float | None, other: float | None) -> float | None:
    """One over the other; None where either was not measured."""
    return one / other if one is not None and other else None


@dataclass(frozen=True)
class Target:
    """What a figure is to be: at most (or, where `is_least`, at least) `bound`."""

    what: str  # as the report says it
    bound: float
    measured: Callable[[Results], float | None]
    unit: str = ""  # "×" for a ratio, "s", "ms", "MB", "files/s", …
    is_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound


@dataclass(frozen=True)
class Usage:
    """What one process took from its start to its end, by the system's own account."""

    seconds: float
    cpu_seconds: float  # user and system
    peak_bytes: int  # of resident memory
    read_bytes: int  # by read calls, from disk, cache and sockets
    written_bytes: int  # by write calls, to disk, cache and sockets
    said: dict[str, Any] = field(
        default_factory=dict
    )  # what it printed as its last line, where that was JSON

    @property
    def figures(self) -> dict[str, float]:
        """All that is a number, what the process said of itself included."""
        own = {name: value for name, value in vars(self).items() if name != "said"}
        return own | {name: value for name, value in self.said.items() if isinstance(value, int | float)}


def run_measured(command: Sequence[str | Path], environment: Mapping[str, str]) -> Usage:
    """Run a command in the project's root and account for it. Its last line on standard output, where that is
    a JSON object, is what it says of itself.

    Raises `BenchmarkError` with what it printed where it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=PROJECT_ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        with process.stdout as stream:
            printed = stream.read().decode(errors="replace")
    except BaseException:  # such as Ctrl-C: it would go on in a place that is removed
        process.kill()
        process.wait()
        raise
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.perf_counter() - started
    counted = Path(f"/proc/{process.pid}/io").read_text()  # until it is reaped
    traffic = {name: int(value) for name, value in (line.split(": ") for line in counted.splitlines())}
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BenchmarkError(
            f"A measured process ended with {process.returncode}: {' '.join(map(str, command))}. "
            f"Mend what it says and run again.\n{printed[-4000:]}"
        )
    return Usage(
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_bytes=used.ru_maxrss * 1024,
        read_bytes=traffic["rchar"],
        written_bytes=traffic["wchar"],
        said=_last_object(printed),
    )


def _last_object(printed: str) -> dict[str, Any]:
    last = printed.strip().rpartition("\n")[2]
    try:
        said = json.loads(last)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def python(module: str, *arguments: str | Path) -> list[str | Path]:
    """The command that runs a module of the project."""
    return [sys.executable, "-m", module, *arguments]


@dataclass(frozen=True)
class Place:
    """A scratch place that jobs work in: its folder, and all of their environment."""

    folder: Path
    environment: dict[str, str]

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment)

    def with_settings(self, **values: str) -> Place:
        """The same place under further settings."""
        return Place(self.folder, self.environment | values)


@dataclass(frozen=True)
class Bench:
    """What a scenario is given: how much to measure, and where."""

    folder: Path  # scratch, removed afterwards
    days: int
    cadence_minutes: float
    stations: int
    free_bikes: int
    error_share: float  # of the snapshots that hold damage, 0 to 1
    repeats: int
    postgres: Settings  # of the benchmark's own server
    lines: Sequence[int] = (1_000_000, 10_000_000, 100_000_000)  # of the lakes that `scale` builds

    def place(self, name: str, s3: S3Server | None = None, **settings: str) -> Place:
        """An empty place of that name with a database of its own; its lake in files, or in S3."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        database = "bench_" + "".join(letter if letter.isalnum() else "_" for letter in name.lower())
        with closing(psycopg2.connect(**self.postgres.postgres_parameters())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"drop database if exists {database} (force)")
                cursor.execute(f"create database {database}")
        socket = quote(str(self.postgres.postgres_socket_dir), safe="")
        unset = {name: "" for name in SETTINGS if name != "AWS_CA_BUNDLE"}  # botocore takes "" for a file
        environment = (
            unset
            | {name: os.environ[name] for name in INHERITED if name in os.environ}
            | {
                "DATA_DIR": str(folder / "data"),
                "POSTGRES_URL": f"postgresql://postgres:@{socket}:5432/{database}",
                "WRM_FEED_URL": "http://127.0.0.1:9/wrm",  # nobody answers there
                "WRM_FAILURES_URL": "http://127.0.0.1:9/failures",
                "FETCH_ATTEMPTS": "1",
                "LOG_LEVEL": "WARNING",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            }
        )
        if s3 is not None:
            environment |= s3.environment | {"LAKE_URL": f"{s3.environment['LAKE_URL']}-{database}"}
        return Place(folder, environment | settings)


@contextmanager
def open_bench(folder: Path, **options: Any) -> Iterator[Bench]:
    """A bench in a scratch folder, with a PostgreSQL of its own, for the length of a `with` block."""
    server = load_settings({"DATA_DIR": str(folder / "server")})
    with running_postgres(server):
        yield Bench(folder=folder, postgres=server, **options)
