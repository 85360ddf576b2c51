"""The full check, for every day there is: python -m scripts.verify_lake

It builds and exports what is stale, and then runs every data test of both dbt projects and compares lake and
PostgreSQL, where other jobs look only at the days that they touch. A check that fails does not keep the next
from being made; the job ends with status 1 and names those that failed.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable

from ingestion.settings import Settings
from scripts.command import run_command, the_only_job
from scripts.run_dbt import DbtError, run_dbt
from scripts.run_pipeline import export_marts, export_readings, transform
from scripts.start_postgres import running_postgres

CHECKS: dict[str, Callable[[Settings], object]] = {
    "readings in PostgreSQL": export_readings,
    "stale days": transform,
    "marts in PostgreSQL": export_marts,
    # `dbt test` looks at every day, where `dbt build` looks at those just built
    "data tests of the lake": lambda settings: run_dbt(
        settings, "transform", "--quiet", "test", "--exclude-resource-type", "unit_test"
    ),
    "data tests of PostgreSQL": lambda settings: run_dbt(settings, "exports", "--quiet", "test"),
    "reconciliation of lake and PostgreSQL": lambda settings: run_dbt(
        settings, "transform", "--quiet", "test", "--select", "tag:reconciliation"
    ),
}

logger = logging.getLogger("bike-data-flow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()

    def job(settings: Settings) -> str | None:
        with the_only_job(settings, "verify") as run:
            run.error = verify(settings)
            return run.error

    run_command(job)


def verify(settings: Settings) -> str | None:
    """Make every check; gives which of them failed and why."""
    failures: dict[str, DbtError] = {}
    with running_postgres(settings):
        for name, check in CHECKS.items():
            started = time.monotonic()
            try:
                check(settings)
            except DbtError as error:
                failures[name] = error
            verdict = "failed" if name in failures else "passed"
            seconds = time.monotonic() - started
            numbers = {"source": "verify", "seconds": round(seconds, 3)}
            logger.info("verify: %s: %s, %.1f s", name, verdict, seconds, extra=numbers)
    if not failures:
        return None
    reasons = "\n".join(f"{name}: {error}" for name, error in failures.items())
    return f"Of {len(CHECKS)} checks {len(failures)} failed: {', '.join(failures)}.\n{reasons}"


if __name__ == "__main__":
    main()
