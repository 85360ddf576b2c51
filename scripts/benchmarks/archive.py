"""The synthetic archive that the benchmark reads: raw text files of a made-up city, a file per snapshot.

    python -m scripts.benchmarks.archive FOLDER --days 31 --cadence 1 --error-share 0.02

It begins on a fixed day and holds the same bytes for the same options, so that runs can be compared. Some
snapshots hold what real feeds hold (broken names, torn lines, a repeated snapshot), spread evenly.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tqdm import tqdm

from ingestion.archive import observed_at_of
from scripts.benchmarks.measurement import Bench, BenchmarkError
from scripts.simulate_feed import City, _archive_files

FIRST_DAY = date(2025, 5, 1)
DAMAGED_LINES = 40  # the damage of a snapshot stands in its first lines


@dataclass(frozen=True)
class Archive:
    """An archive on the local disk: `folder/dt=…/…txt`."""

    folder: Path
    days: list[date]
    files: int
    text_bytes: int

    def of_day(self, day: date) -> Path:
        """The folder of one day's files."""
        return self.folder / f"dt={day.isoformat()}"


@dataclass(frozen=True)
class Recipe:
    """What an archive is made by; the same recipe gives the same bytes."""

    days: int
    cadence_minutes: float
    stations: int
    free_bikes: int
    error_share: float = 0.0  # of the snapshots that hold damage, 0 to 1

    @classmethod
    def of(cls, bench: Bench) -> Recipe:
        return cls(bench.days, bench.cadence_minutes, bench.stations, bench.free_bikes, bench.error_share)

    @property
    def cadence(self) -> timedelta:
        return timedelta(minutes=self.cadence_minutes)

    @property
    def snapshots_per_day(self) -> int:
        return int(timedelta(days=1) / self.cadence)

    def is_damaged(self, number: int) -> bool:
        """Whether the archive's snapshot of that number, 0 for the first, holds damage."""
        return int((number + 1) * self.error_share) > int(number * self.error_share)


def bench_archive(bench: Bench) -> Archive:
    """The archive of a bench's options, in its folder; written once, whichever scenario asks first."""
    return write_archive(bench.folder / "archive", Recipe.of(bench))


def write_archive(folder: Path, recipe: Recipe) -> Archive:
    """Write an archive by its recipe, a process per core; one that stands there stays as it is.

    Raises `BenchmarkError` where snapshots are too short for the damage.
    """
    if recipe.error_share and recipe.stations < DAMAGED_LINES:
        raise BenchmarkError(
            f"Too few stations for damaged snapshots: {recipe.stations}. "
            f"Give {DAMAGED_LINES} or more, or an error share of 0."
        )
    days = [FIRST_DAY + timedelta(days=number) for number in range(recipe.days)]
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        with (
            ProcessPoolExecutor() as pool,
            tqdm(total=len(days), desc="writing the archive", unit=" days", disable=None, leave=False) as bar,
        ):
            for _ in pool.map(_write_day, [unfinished] * len(days), [recipe] * len(days), range(len(days))):
                bar.update()
        os.replace(unfinished, folder)
    sizes = [file.stat().st_size for file in folder.glob("dt=*/*.txt")]
    return Archive(folder, days, len(sizes), sum(sizes))


def first_files(day: Path, snapshots: int) -> tuple[list[Path], datetime | None]:
    """The files of a day's first snapshots, and the moment of the next one; None where there is none."""
    moments: dict[datetime, list[Path]] = {}
    for path in sorted(day.glob("*.txt")):
        if named := observed_at_of(path.name):
            moments.setdefault(named[0], []).append(path)
    ordered = sorted(moments)
    first = [path for moment in ordered[:snapshots] for path in moments[moment]]
    return first, next(iter(ordered[snapshots:]), None)


def _write_day(folder: Path, recipe: Recipe, day_number: int) -> None:
    day = FIRST_DAY + timedelta(days=day_number)
    target = folder / f"dt={day.isoformat()}"
    target.mkdir(parents=True, exist_ok=True)
    city = City(stations=recipe.stations, free_bikes=recipe.free_bikes, lively=True)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    for number in range(recipe.snapshots_per_day):
        is_damaged = recipe.is_damaged(day_number * recipe.snapshots_per_day + number)
        for name, text in _archive_files(city, midnight + number * recipe.cadence, is_damaged):
            (target / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--cadence", type=float, default=10, help="minutes between snapshots")
    parser.add_argument("--stations", type=int, default=235)
    parser.add_argument("--free-bikes", type=int, default=115)
    parser.add_argument("--error-share", type=float, default=0.02, help="of the snapshots, 0 to 1")
    given = parser.parse_args()
    recipe = Recipe(given.days, given.cadence, given.stations, given.free_bikes, given.error_share)
    archive = write_archive(given.folder, recipe)
    print(f"{archive.files} files of {archive.text_bytes:,} bytes")


if __name__ == "__main__":
    main()
