"""psql on the warehouse, embedded or not: python -m scripts.open_psql -Atc "select 1"

Every argument goes to psql.
"""

from __future__ import annotations

import subprocess
import sys

from ingestion.settings import Settings
from scripts.command import run_command
from scripts.start_postgres import psql_command, running_postgres


def main() -> None:
    run_command(_open)


def _open(settings: Settings) -> None:
    command, environment = psql_command(settings, sys.argv[1:])
    with running_postgres(settings):
        done = subprocess.run(command, env=environment)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
