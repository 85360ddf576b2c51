"""dbt on one of the two projects, with the project's settings and the embedded PostgreSQL where it is needed:

python -m scripts.run_dbt transform build --select int_wrm__lines_parsed
python -m scripts.run_dbt exports docs generate
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ingestion.lake import Lake
from ingestion.run_history import Step, note
from ingestion.settings import PROJECT_ROOT, Settings, canonical_postgres_url
from scripts.command import CommandError, made_to_stay, run_command, the_only_job
from scripts.lease import Lease
from scripts.pipeline_run import check_lease, current_run
from scripts.start_postgres import running_postgres
from scripts.torn_objects import find_torn, give_up_torn, tell_torn

if TYPE_CHECKING:  # dbt is slow to import
    from dbt.cli.main import dbtRunner
    from dbt.contracts.graph.manifest import Manifest

PROJECTS = ("transform", "exports")
# the variables that a project's manifest depends on; all others are read when a model is built
PARSED_WITH = {
    "transform": ("ENVIRONMENT",),
    "exports": ("ENVIRONMENT", "POSTGRES_URL", "POSTGRES_SCHEMA"),
}
# of `test` as well: a day that fails one is marked to be rebuilt
WRITING = ("build", "run", "test", "retry", "run-operation", "seed", "snapshot", "clone")
QUIET = ("--no-write-json", "--log-level", "none")
FAILED = ("error", "fail", "runtime error")
logger = logging.getLogger("bike-data-flow")


class DbtError(CommandError):
    """dbt ended with errors; the message names each failed node and why. Where only tests failed, everything
    else is built."""

    def __init__(self, message: str, only_tests_failed: bool = False) -> None:
        super().__init__(message)
        self.only_tests_failed = only_tests_failed


def run_dbt(settings: Settings, project: str, *arguments: str) -> dict[str, str]:
    """Run dbt in this process, so that the in-memory DuckDB and its views stay for the next call.

    Gives each node's name and message, such as {"int_wrm__lines_parsed": "built days: 2"}, but for those of
    the history of runs, which every run adds to. What dbt reports becomes steps of the run under way.
    A build makes anew what it finds torn of silver and gold. Raises `DbtError`.
    """
    given_up: set[str] = set()
    while True:
        try:
            return _invoke(settings, project, *arguments)
        except DbtError as error:
            found = find_torn(Lake.of(settings), str(error)) if project == "transform" else set()
            if not found or found <= given_up:
                raise
            _give_up(settings, found, error)
            if "build" not in arguments:
                raise DbtError(f"{error}\nRun `scripts/just transform`, which builds them anew.") from error
            given_up |= found


def _give_up(settings: Settings, torn: set[str], error: DbtError) -> None:
    """Have torn objects built anew; raises `DbtError` for those that cannot be, once the others are."""
    check_lease()
    lake = Lake.of(settings)
    lost = []
    for path in sorted(torn):
        if give_up_torn(lake, path):
            logger.warning("An object of the lake was not whole, and is read or built anew: %s.", path)
        else:
            lost.append(path)
    close_duckdb()
    if lost:
        raise DbtError("\n".join([*map(tell_torn, lost), str(error)])) from error


def close_duckdb() -> None:
    """Let go of dbt's DuckDB: after a failure it may hold broken connections and half of a build."""
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]  # dbt-duckdb tells none


_lease: Lease | None = None  # under which this process's DuckDB has come to know the lake's objects


def _forget_what_others_may_have_changed() -> None:
    """DuckDB keeps what it has learnt of objects on S3 (see the plugin), which holds for as long as nobody
    else writes to the lake: under one lease."""
    global _lease
    run = current_run.get()
    lease = run.lease if run else None
    if lease is not _lease:
        close_duckdb()
        _lease = lease


def _invoke(settings: Settings, project: str, *arguments: str) -> dict[str, str]:
    dbt_runner = _lean_dbt_runner()
    check_lease()
    _forget_what_others_may_have_changed()
    started_at = datetime.now(UTC)
    with _dbt_environment(settings):
        is_quiet = "--quiet" in arguments
        # artifacts are for people, and writing them takes as long as parsing the project
        logged = ("--log-level-file", "debug" if settings.log_level == "DEBUG" else "info")
        options = [*((*QUIET, *logged) if is_quiet else ()), *_folders(settings, project)]
        manifest = _manifest(project, options) if is_quiet else None
        runner = dbt_runner(manifest, callbacks=[_pass_warning_on] if is_quiet else [])
        result = runner.invoke([*arguments, *options])
    nodes = getattr(result.result, "results", None) or []
    _note_invocation(project, arguments, started_at, result, nodes)
    if isinstance(result.exception, KeyboardInterrupt):
        raise result.exception
    if result.exception is not None:
        raise DbtError(f"dbt failed in {project}: {result.exception}") from result.exception
    failed = [node for node in nodes if node.status in FAILED]
    if failed or not result.success:
        reasons = "\n".join(f"  {node.node.name}: {node.message}" for node in failed)
        raise DbtError(
            f"dbt failed in {project}: {len(failed)} of {len(nodes)} nodes. "
            f"Mend what they say and run again: it carries on from here. "
            f"See {settings.data_dir / 'dbt' / project / 'dbt.log'}.\n{reasons}",
            only_tests_failed=all(node.status == "fail" for node in failed),
        )
    return {node.node.name: str(node.message) for node in nodes if "history" not in node.node.tags}


@functools.cache
def _lean_dbt_runner() -> type[dbtRunner]:
    """dbt, imported when it is first needed."""
    with made_to_stay():
        from dbt.cli.main import dbtRunner  # slow to import

        from scripts.lean_dbt import make_dbt_lean
    make_dbt_lean()
    return dbtRunner


def _manifest(project: str, options: list[str]) -> Manifest | None:
    from scripts.parsed_projects import parsed_project

    return parsed_project(
        PROJECT_ROOT / project,
        PARSED_WITH[project],
        lambda: _lean_dbt_runner()().invoke(["--quiet", "parse", *options]).result,
    )


def _note_invocation(
    project: str, arguments: tuple[str, ...], started_at: datetime, result: Any, nodes: list[Any]
) -> None:
    """One step for the call of dbt, and one for each of its nodes that did something."""
    from dbt_common.invocation import get_invocation_id

    command = next((argument for argument in arguments if not argument.startswith("-")), "dbt")
    ended_at, invocation_id = datetime.now(UTC), get_invocation_id()
    status, error = ("success" if result.success else "error"), result.exception and str(result.exception)
    invocation = Step("dbt_invocation", project, command, None, status, started_at, ended_at, error=error)
    invocation.nodes_count = len(nodes)
    steps = [invocation, *(_step_of(project, node, ended_at) for node in nodes if _did_something(node))]
    for step in steps:
        step.invocation_id = invocation_id
        note(step)


def _did_something(node: Any) -> bool:
    if node.status not in ("success", "pass", "no-op"):
        return True
    days = re.search(r"days: [1-9]", str(node.message))
    return node.node.resource_type == "model" and bool(days or _rows_affected(node))


def _rows_affected(node: Any) -> int:
    return max(node.adapter_response.get("rows_affected") or 0, 0)


def _step_of(project: str, node: Any, ended_at: datetime) -> Step:
    """A node's result; one that was skipped took no time."""
    moments = [
        moment.replace(tzinfo=UTC)
        for timing in node.timing
        for moment in (timing.started_at, timing.completed_at)
        if moment is not None
    ]
    has_failed = node.status in FAILED
    return Step(
        "dbt_node",
        project,
        node.node.name,
        str(node.node.resource_type),
        str(node.status),
        min(moments, default=ended_at),
        max(moments, default=ended_at),
        # of a test, the rows that fail it
        rows_count=node.failures if node.node.resource_type == "test" else _rows_affected(node),
        message=None if has_failed else node.message,
        error=node.message if has_failed else None,
    )


def _pass_warning_on(event: Any) -> None:
    """A warning of our macros, which dbt keeps to itself when it is quiet."""
    if event.info.name == "JinjaLogWarning":
        _warn_once(event.info.msg)


@functools.cache
def _warn_once(message: str) -> None:
    """A process may run dbt every minute: what it was told once is not told again."""
    logger.warning("%s", message)


def _folders(settings: Settings, project: str) -> list[str]:
    folder = str(PROJECT_ROOT / project)
    work = str(settings.data_dir / "dbt" / project)
    options = ("--project-dir", folder, "--profiles-dir", folder)
    return [*options, "--target-path", work, "--log-path", work]


@contextlib.contextmanager
def _dbt_environment(settings: Settings) -> Iterator[None]:
    """The settings under the names that the dbt projects read, for the length of one call."""
    values = {
        "ENVIRONMENT": settings.environment,
        "DATA_DIR": str(settings.data_dir),
        "POSTGRES_URL": canonical_postgres_url(settings),
        "POSTGRES_SCHEMA": settings.postgres_schema,
        "POSTGRES_READER_ROLE": settings.postgres_reader_role,
        "DBT_THREADS": str(settings.dbt_threads),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        with contextlib.chdir(PROJECT_ROOT):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("project", choices=PROJECTS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as for dbt itself")
    given = parser.parse_args()

    def job(settings: Settings) -> None:
        needs_postgres = given.project == "exports" or any(
            word in argument for argument in given.arguments for word in ("landing", "reconciliation")
        )
        # two builds at once would publish each other's unfinished objects, and insert each other's rows again
        is_writing = any(command in given.arguments for command in WRITING)
        with (
            the_only_job(settings, "dbt") if is_writing else contextlib.nullcontext(),
            running_postgres(settings) if needs_postgres else contextlib.nullcontext(),
        ):
            run_dbt(settings, given.project, *given.arguments)

    run_command(job)


if __name__ == "__main__":
    main()
