"""Try to break every promise of docs/reliability.md: kill jobs, spoil their servers, feed them nonsense.

    python -m scripts.torture_pipeline                          everything, in less than an hour on two cores
    python -m scripts.torture_pipeline --points 10 --seed 7     fewer kills, at other moments
    python -m scripts.torture_pipeline --write                  puts the figures into docs/reliability.md

What is chosen by chance is chosen by the seed: the same seed tries the same again. Ends with status 1 where a
promise was broken.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from xml.etree import ElementTree

from ingestion.settings import PROJECT_ROOT, Settings
from scripts.command import CommandError, run_command
from scripts.marked_text import put_between

REPORT = PROJECT_ROOT / "docs" / "reliability.md"
MARKS = ("<!-- figures -->\n", "<!-- end of figures -->\n")
WORKERS = 3  # on two cores: many tests wait for a fault to pass


@dataclass(frozen=True)
class Profile:
    """How hard to try, as pytest's options of the same names say it."""

    points: int
    cases: int
    payloads: int
    seed: int

    @property
    def options(self) -> list[str]:
        return [word for name, value in vars(self).items() for word in (f"--{name}", str(value))]

    @property
    def command(self) -> str:
        """What people type to try the same again."""
        return f"scripts/just torture {' '.join(self.options)}"


@dataclass
class Figures:
    """What one file of tests did: tests by outcome, their seconds, and what they counted."""

    passed: int = 0
    failed: int = 0
    seconds: float = 0
    counts: dict[str, int] = field(default_factory=dict)


def torture(profile: Profile, workers: int) -> tuple[int, dict[str, Figures]]:
    """Run the tests of tests/torture; pytest's exit status, and figures by file."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        spread = ["--numprocesses", str(workers), "--dist", "worksteal"]
        command = [sys.executable, "-m", "pytest", "tests/torture", f"--junitxml={results}", *spread]
        status = subprocess.run([*command, *profile.options], cwd=PROJECT_ROOT).returncode
        if not results.exists():
            raise CommandError(f"The tests did not run: pytest ended with {status}. Mend what it says above.")
        return status, read_figures(results)


def read_figures(results: Path) -> dict[str, Figures]:
    """Figures by file of tests, from pytest's report in JUnit's format. Properties that are numbers are added
    up, others counted."""
    figures: dict[str, Figures] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        one = figures.setdefault(case.get("classname", "").rpartition(".")[2], Figures())
        is_failed = case.find("failure") is not None or case.find("error") is not None
        one.failed += is_failed
        one.passed += not is_failed and case.find("skipped") is None
        one.seconds += float(case.get("time", 0))
        for given in case.iter("property"):
            name, value = given.get("name", ""), given.get("value", "")
            one.counts[name] = one.counts.get(name, 0) + (int(value) if value.isdigit() else 1)
    return dict(sorted(figures.items()))


def tell(figures: dict[str, Figures], profile: Profile, day: date, seconds: float) -> str:
    """The figures as a table in Markdown, with the command that makes them again."""
    lines = [
        f"`{profile.command}`, {day.isoformat()}, {seconds / 60:.0f} minutes:",
        "",
        "| tests | passed | failed | counted | minutes of work |",
        "|---|---:|---:|---|---:|",
    ]
    for name, one in figures.items():
        counted = ", ".join(f"{word}: {count:,}" for word, count in one.counts.items())
        minutes = f"{one.seconds / 60:.1f}"
        lines.append(f"| `tests/torture/{name}.py` | {one.passed} | {one.failed} | {counted} | {minutes} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=100, help="moments at which jobs are killed")
    parser.add_argument("--cases", type=int, default=1000, help="faults and the like, at most")
    parser.add_argument("--payloads", type=int, default=10_000, help="payloads that are made up")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="by default another each time"
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help="tests at once")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {REPORT.name}")
    given = parser.parse_args()

    def job(settings: Settings) -> str | None:
        profile = Profile(given.points, given.cases, given.payloads, given.seed)
        print(f"Everything by chance is chosen by the seed: --seed {profile.seed}", flush=True)
        started = datetime.now(UTC)
        status, figures = torture(profile, given.workers)
        told = tell(figures, profile, started.date(), (datetime.now(UTC) - started).total_seconds())
        print(f"\n{told}", end="")
        if given.write:
            REPORT.write_text(put_between(REPORT.read_text(), MARKS, told))
        failed = sum(one.failed for one in figures.values())
        again = f"Promises were broken: {failed} tests, see above. Try the same again: {profile.command}"
        return again if status else None

    run_command(job)


if __name__ == "__main__":
    main()
