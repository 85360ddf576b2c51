"""Fold the many small objects of bronze's closed UTC days into one per table and day, and those of the
current day's ended hours; remove dlt's records of loads that are older than DLT_LOADS_RETENTION_DAYS:
python -m scripts.compact_bronze

Rows stay the same, proven by a digest before the old objects go, and no closed day is built or exported anew.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from tqdm import tqdm

from ingestion import bronze, compaction
from ingestion.compaction import Folded
from ingestion.lake import Lake
from ingestion.schemas import BRONZE
from ingestion.settings import Settings
from scripts.command import run_command, the_only_job
from scripts.pipeline_run import check_lease

logger = logging.getLogger("bike-data-flow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()

    def job(settings: Settings) -> None:
        with the_only_job(settings, "compact"):
            compact(settings)

    run_command(job)


def compact(
    settings: Settings, days: Collection[date] | None = None, now: datetime | None = None
) -> list[Folded]:
    """Fold what there is to fold, with a progress bar on a terminal, and prune dlt's records of loads; for a
    job that holds the lake. With `days` only these are listed, and nothing is pruned.

    Raises `CompactionError`; what was folded until then stays folded.
    """
    check_lease()
    started = time.monotonic()
    now = now or datetime.now(UTC)
    lake = Lake.of(settings)
    compaction.recover(lake)  # what failed midway in this process stands there, too
    for source in BRONZE:
        # what a killed load left is finished first: it would bring objects once more that are folded by then
        bronze.open_pipeline(source, settings)
    parts = compaction.find_parts(lake, now, days)
    folded = _fold_all(lake, parts, settings.data_dir / "compaction")
    if days is None:
        prune_loads(settings, now)
    seconds = time.monotonic() - started
    logger.info(
        "compact: %d days folded, %d → %d objects, %d → %d bytes, %.1f s",
        len(folded),
        sum(len(each.part.objects) for each in folded),
        len(folded),
        sum(sum(each.part.objects.values()) for each in folded),
        sum(each.bytes_after for each in folded),
        seconds,
        extra=_numbers("compact", folded, seconds),
    )
    return folded


def _fold_all(lake: Lake, parts: list[compaction.Part], scratch: Path) -> list[Folded]:
    shutil.rmtree(scratch, ignore_errors=True)  # a killed job's
    scratch.mkdir(parents=True)
    folded = []
    with tqdm(parts, desc="compacting", unit=" days", disable=None, leave=False) as bar:
        for part in bar:
            started = time.monotonic()
            each = compaction.fold(lake, part, scratch, check_lease)
            folded.append(each)
            with tqdm.external_write_mode():
                _tell(each, time.monotonic() - started)
    shutil.rmtree(scratch)
    return folded


def _tell(each: Folded, seconds: float) -> None:
    part = each.part
    source = f"{part.source}.{part.table}"
    logger.info(
        "compact %s %s: %d → 1 objects, %d → %d bytes, %d rows, %.1f s",
        source,
        part.day,
        len(part.objects),
        sum(part.objects.values()),
        each.bytes_after,
        each.rows,
        seconds,
        extra=_numbers(source, [each], seconds),
    )


def _numbers(source: str, folded: list[Folded], seconds: float) -> dict[str, object]:
    return {
        "source": source,
        "rows": sum(each.rows for each in folded),
        "bytes": sum(each.bytes_after for each in folded),
        "seconds": round(seconds, 3),
    }


def prune_loads(settings: Settings, now: datetime) -> None:
    """Remove dlt's outdated records of loads, of every source."""
    before = now - timedelta(days=settings.dlt_loads_retention_days)
    for source in BRONZE:
        removed = compaction.prune_loads(Lake.of(settings), source, before)
        logger.info("compact %s: %d records of loads removed", source, removed, extra={"source": source})


if __name__ == "__main__":
    main()
