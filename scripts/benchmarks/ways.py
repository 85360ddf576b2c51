"""The steps of compare_ways: each is prepared first, then done and measured, in a process of its own.

    python -m scripts.benchmarks.ways project-to-bronze ARCHIVE

Settings are read from the environment, as by any job. The last line that a step prints is a JSON object of
what it took and what it says.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingestion.lake import quoted
from ingestion.settings import load_settings
from scripts.benchmarks.archive import first_files

# two hours of minutes: the slow ways take 10 to 20 seconds for them, and would take minutes for a day
FIRST_SNAPSHOTS = 120

# what the project and its tools import only once they need it
DLT = (
    *("ingestion.wrm", "pandas"),
    *("dlt._workspace.cli", "dlt.common.libs.pyarrow", "dlt.sources.helpers.requests"),
)
DBT = (
    *("dbt.cli.main", "dbt.task.build", "dbt.adapters.postgres", "pandas"),
    *("dbt.adapters.duckdb.environments.local", "transform.plugins.lake"),
)

Job = Callable[[], dict[str, Any]]  # what is measured; gives what the step says


def _project_to_bronze(archive: str) -> Job:
    settings = load_settings()
    run_pipeline = _with_libraries(*DLT)
    return lambda: {"rows": run_pipeline.import_archive(settings, archive).taken}


def _limit_to_bronze(archive: str, target: str) -> Job:
    from scripts.benchmarks import limit

    return lambda: limit.archive_to_bronze(Path(archive), Path(target))


def _project_compaction() -> Job:
    from scripts.compact_bronze import compact

    settings = load_settings()
    return lambda: {"rows": sum(folded.rows for folded in compact(settings))}


def _parse(*projects: str) -> Job:
    from scripts.run_dbt import run_dbt

    settings = load_settings()
    return lambda: {"parsed": [run_dbt(settings, project, "--quiet", "parse") for project in projects]}


def _project_to_marts() -> Job:
    settings = load_settings()
    run_pipeline = _with_libraries(*DBT)

    def job() -> dict[str, Any]:
        run_pipeline.transform(settings)
        return {}

    return job


def _limit_to_marts(script: str, lake: str) -> Job:
    from scripts.benchmarks import limit

    settings = load_settings()
    return lambda: limit.bronze_to_marts(Path(script), Path(lake), settings)


def _bare_script(folder: str) -> Job:
    from scripts.benchmarks.bare_script import write_bare_script

    settings = load_settings()
    return lambda: {"script": str(write_bare_script(settings, Path(folder)))}


def _project_to_postgres(day: str) -> Job:
    settings = load_settings()
    run_pipeline = _with_libraries(*DLT, *DBT)

    def job() -> dict[str, Any]:
        run_pipeline.import_archive(settings, day)
        run_pipeline.export_readings(settings)
        return {}

    return job


def _limit_to_postgres(day: str) -> Job:
    from scripts.benchmarks import limit

    settings = load_settings()
    return lambda: limit.archive_to_postgres(Path(day), settings)


def _usual_to_postgres(day: str) -> Job:
    from scripts.benchmarks import usual

    settings = load_settings()
    files, _ = first_files(Path(day), FIRST_SNAPSHOTS)
    return lambda: usual.archive_to_postgres(files, settings)


def _dlt_only_to_postgres(day: str) -> Job:
    settings = load_settings()
    files, _ = first_files(Path(day), FIRST_SNAPSHOTS)
    # dlt reads the configuration of the folder that it is imported in, which is not to be the project's
    os.chdir(settings.data_dir.parent)
    os.environ |= {"DLT_DATA_DIR": str(settings.data_dir / "dlt"), "RUNTIME__DLTHUB_TELEMETRY": "false"}
    from scripts.benchmarks import dlt_only

    return lambda: dlt_only.archive_to_postgres(files, settings)


def _with_libraries(*modules: str) -> Any:
    """scripts.run_pipeline, with modules imported that it would else import at work."""
    for module in modules:
        importlib.import_module(module)
    return importlib.import_module("scripts.run_pipeline")


def _digest_bronze(folder: str) -> Job:
    """Rows of bronze, and a checksum of what each snapshot is."""
    import duckdb

    query = (
        "select count(*), sum(hash(epoch_us(observed_at), payload_bytes, sha256(payload))::hugeint)::varchar "
        f"from read_parquet({quoted(folder + '/dt=*/*.parquet')})"
    )
    return lambda: {"snapshots": duckdb.sql(query).fetchall()}


def _digest_marts(lake: str) -> Job:
    """Rows of every model, and a checksum of all columns but the measured ones."""
    return lambda: {
        folder.name: _digest_model(folder)
        for folder in sorted([*Path(lake).glob("silver/*"), *Path(lake).glob("gold/*")])
        if any(folder.glob("dt=*/data.parquet"))
    }


def _digest_model(folder: Path) -> list[Any]:
    import duckdb

    rows = f"read_parquet({quoted(f'{folder}/dt=*/data.parquet')}, hive_partitioning = true)"
    columns = [
        f'"{name}"::float' if kind == "DOUBLE" else f'"{name}"'
        for name, kind, *_ in duckdb.sql(f"describe from {rows}").fetchall()
        if not name.endswith("silver_seconds")
    ]
    digest = f"sum(hash({', '.join(columns)})::hugeint)::varchar"
    [found] = duckdb.sql(f"select count(*), {digest} from {rows}").fetchall()
    return list(found)


STEPS: dict[str, Callable[..., Job]] = {
    "project-to-bronze": _project_to_bronze,
    "limit-to-bronze": _limit_to_bronze,
    "digest-bronze": _digest_bronze,
    "project-compaction": _project_compaction,
    "project-to-marts": _project_to_marts,
    "limit-to-marts": _limit_to_marts,
    "digest-marts": _digest_marts,
    "bare-script": _bare_script,
    "parse": _parse,
    "project-to-postgres": _project_to_postgres,
    "limit-to-postgres": _limit_to_postgres,
    "usual-to-postgres": _usual_to_postgres,
    "dlt-only-to-postgres": _dlt_only_to_postgres,
}


def counters() -> dict[str, float]:
    """What this process has taken until now."""
    traffic = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {
        "seconds": time.perf_counter(),
        "cpu_seconds": time.process_time(),
        "read_bytes": int(traffic["rchar"]),
        "written_bytes": int(traffic["wchar"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    job = STEPS[given.step](*given.arguments)
    before = counters()
    said = job()
    taken = {figure: after - before[figure] for figure, after in counters().items()}
    print(json.dumps(taken | said))


if __name__ == "__main__":
    main()
