"""The dbt projects of a revision as SQLMesh reads them: every model's SQL with each column resolved.

Nothing is executed and no lake, warehouse or state is opened: a copy of the projects in a scratch folder is
given an in-memory target, bronze's columns from `ingestion/schemas.py`, and `table` in place of our own
materializations. A daily partition gains the `dt` that its materialization puts in front, and the day before
is a row of nulls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scripts.command import CommandError
from scripts.revisions import export_revision

if TYPE_CHECKING:
    from sqlmesh.core.model import Model

PROJECTS = ("transform", "exports")
TARGETS = {
    "transform": {"type": "duckdb", "path": ":memory:", "threads": 1},
    "exports": {
        **{"type": "postgres", "host": "127.0.0.1", "port": 1, "user": "nobody", "password": ""},
        **{"dbname": "impact", "schema": "public", "threads": 1},
    },
}
KNOWN_MATERIALIZATIONS = ("ephemeral", "incremental", "table", "view")
OWN_SCHEMAS = ("main", "public", "landing")
# hooks within it hold braces, too, but in quotes
CONFIGURATION = re.compile(r"\{\{-?\s*config\(.*?\)\s*\}\}(?![\"'])", re.DOTALL)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LAST_SELECT = "select * from final"
SQLMESH_CONFIG = """
from pathlib import Path
from sqlmesh.core.config import LinterConfig, ModelDefaultsConfig
from sqlmesh.dbt.loader import sqlmesh_config

config = sqlmesh_config(
    Path(__file__).parent,
    model_defaults=ModelDefaultsConfig(start="2020-01-01"),
    linter=LinterConfig(enabled=True, rules=["ambiguousorinvalidcolumn", "invalidselectstarexpansion"]),
)
"""
# each Arrow type of bronze as one of its own
SQL_TYPES = {
    "string": "varchar",
    "binary": "blob",
    "bool": "boolean",
    "int32": "integer",
    "int64": "bigint",
    "float": "real",
    "double": "double",
    "date32[day]": "date",
    "timestamp[us]": "timestamp",
    "timestamp[us, tz=UTC]": "timestamptz",
}


class ModelsError(CommandError):
    """A dbt project that cannot be read."""


@dataclass(frozen=True)
class Reading:
    """The models of both projects of a revision.

    models: by plain name, as `fct_daily_network`; bronze tables as `wrm.station_snapshots`; among them seeds.
    projects: the dbt project of each, `bronze` for its tables.
    paths: the file of each, relative to the project's root; of a bronze table `ingestion/schemas.py`.
    described: what its YAML says of each, without tests.
    configured: how dbt is to build each: its resolved configuration, relation and constraints; of a bronze
        table where it is read from.
    violations: what `sqlmesh lint` finds, as `path:line: what. what to do next.`.
    """

    models: dict[str, Model]
    projects: dict[str, str]
    paths: dict[str, str]
    described: dict[str, dict[str, Any]]
    configured: dict[str, dict[str, Any]]
    violations: list[str]


def read_revision(revision: str | None) -> Reading:
    """The models of a revision, None being the working tree. Raises `ModelsError` and `RevisionError`.

    It takes a process of its own: dbt and SQLMesh keep one project at a time in their globals.
    """
    with tempfile.TemporaryDirectory(prefix="models-") as scratch:
        tree = Path(scratch)
        export_revision(revision, tree)
        with _kept_apart(tree):
            return _read_tree(tree, revision or "the working tree")


@contextlib.contextmanager
def _kept_apart(tree: Path) -> Iterator[None]:
    """Without the settings of a lake or warehouse, and with what dbt and SQLMesh write in the tree."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ |= {name: value for name, value in kept.items() if name in ("PATH", "TZ", "LANG")}
    os.environ |= {
        "HOME": str(tree),
        "DBT_LOG_PATH": str(tree / "logs"),
        "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true",
        "MAX_FORK_WORKERS": "1",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= kept


def _read_tree(tree: Path, revision: str) -> Reading:
    external = {
        f"memory.{source}.{table}": {field.name: _sql_type(field) for field in schema} | {"dt": "date"}
        for source, tables in _read_bronze(tree, revision).items()
        for table, schema in tables.items()
    }
    reading = Reading({}, {}, {}, {}, {}, [])
    for project in PROJECTS:
        if not (tree / project / "dbt_project.yml").is_file():
            raise ModelsError(f"There is no dbt project {project} in {revision}. Name a later revision.")
        described, sources = _make_readable(tree / project, project, external)
        found, configured, violations = _load(tree / project, revision)
        reading.described.update(described)
        reading.configured.update(configured | sources)
        reading.violations.extend(violations)
        for fqn, model in found.items():
            key = plain_name(fqn)
            if key in reading.models:
                continue  # what lands, seen from the other side
            path = None if model.kind.is_external else model._path
            reading.models[key] = model
            reading.projects[key] = project if path else "bronze"
            reading.paths[key] = str(path.relative_to(tree)) if path else "ingestion/schemas.py"
        external = {
            f"impact.landing.{key}": {column: str(kind) for column, kind in model.columns_to_types.items()}
            for key, model in reading.models.items()
            if key.startswith("landing_") and model.columns_to_types
        }
    return reading


def _read_bronze(tree: Path, revision: str) -> dict[str, dict[str, Any]]:
    """Bronze's schemas, as the revision's own code makes them."""
    path = tree / "ingestion/schemas.py"
    try:
        return dict(runpy.run_path(str(path))["BRONZE"])
    except Exception as error:  # whatever Python finds wrong with it
        told = f"{type(error).__name__}: {error}"
        raise ModelsError(
            f"ingestion/schemas.py of {revision} cannot be read: {told}. Mend it, or name another revision."
        ) from error


def plain_name(fqn: str) -> str:
    """`fct_daily_network` of `"memory"."main"."fct_daily_network"`, `wrm.runs` of `"memory"."wrm"."runs"`."""
    schema, table = fqn.replace('"', "").split(".")[-2:]
    return table if schema in OWN_SCHEMAS else f"{schema}.{table}"


def _sql_type(field: Any) -> str:
    if str(field.type) not in SQL_TYPES:
        raise ModelsError(
            f"A bronze column has a type that is not known: {field.name}, {field.type}. "
            "Add it to SQL_TYPES in scripts/model_reader.py."
        )
    return SQL_TYPES[str(field.type)]


def _make_readable(
    folder: Path, project: str, external: dict[str, dict[str, str]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Edit the copy of a project, where no line of its SQL moves; gives what is described and how the sources
    are configured, by name."""
    settings = _read_yaml(folder / "dbt_project.yml")
    built = {
        path: _materialization(settings, project, path, folder) for path in folder.glob("models/**/*.sql")
    }
    settings = {key: value for key, value in settings.items() if not key.startswith("on-run-")}
    target = {"target": "impact", "outputs": {"impact": TARGETS[project]}}
    _write_yaml(folder / "dbt_project.yml", _as_tables(settings))
    _write_yaml(folder / "profiles.yml", {project: target})
    (folder / "config.py").write_text(SQLMESH_CONFIG)
    tables = [{"name": name, "columns": columns} for name, columns in external.items()]
    _write_yaml(folder / "external_models.yaml", tables)
    for path in folder.glob("data_tests/**/*.*"):
        path.unlink()
    described: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for kind in ("models", "seeds"):
        for path in [*folder.glob(f"{kind}/**/*.yml"), *folder.glob(f"{kind}/**/*.yaml")]:
            content = _read_yaml(path)
            sources |= _configured_sources(content)
            content = _without_tests(content)
            described |= {each["name"]: each for each in content.get(kind) or []}
            described |= _described_sources(content)
            _write_yaml(path, content)
    for path, materialization in built.items():
        if materialization == "daily_partition":
            _add_day(path, described.get(path.stem, {}))
    return described, sources


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = "/".join(path.parts[-3:])
        raise ModelsError(f"YAML cannot be read: {where}. Mend what it says: {error}.") from error
    return dict(content)


def _materialization(settings: dict[str, Any], project: str, path: Path, folder: Path) -> str | None:
    """What the folders of a model say that it is built as; the nearest counts."""
    found, level = None, settings.get("models", {}).get(project, {})
    for part in ("", *path.parent.relative_to(folder / "models").parts):
        level = level.get(part, {}) if part else level
        found = level.get("+materialized", found)
    return found


def _as_tables(settings: Any) -> Any:
    """The settings with a table in place of what SQLMesh does not know, which is kept as `built_as`."""
    if not isinstance(settings, dict):
        return settings
    known = {key: _as_tables(value) for key, value in settings.items()}
    if known.get("+materialized", "table") not in KNOWN_MATERIALIZATIONS:
        known |= {"+materialized": "table", "+built_as": known["+materialized"]}
    return known


def _without_tests(description: Any) -> Any:
    """YAML without tests and without where bronze lies: only columns are asked for."""
    if isinstance(description, list):
        return [_without_tests(each) for each in description]
    if not isinstance(description, dict):
        return description
    return {
        key: _without_tests(value)
        for key, value in description.items()
        if key not in ("data_tests", "tests", "external_location", "exposures", "unit_tests")
    }


def _described_sources(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{source['name']}.{table['name']}": table
        for source in content.get("sources") or []
        for table in source.get("tables") or []
    }


def _configured_sources(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What YAML says of each source but for words and tests: above all where it is read from."""
    words = ("name", "description", "columns", "tables", "data_tests", "tests")
    return {
        f"{source['name']}.{table['name']}": {
            level: {key: value for key, value in each.items() if key not in words}
            for level, each in (("source", source), ("table", table))
        }
        for source in content.get("sources") or []
        for table in source.get("tables") or []
    }


def _add_day(path: Path, description: dict[str, Any]) -> None:
    sql = path.read_text(encoding="utf-8")
    head, last, tail = sql.rpartition(LAST_SELECT)
    if not last:
        raise ModelsError(
            f"A model has no last line for its day to be put into: {path.name}. End it with `{LAST_SELECT}`."
        )
    nulls = ", ".join(
        f"cast(null as {column.get('data_type', 'varchar')}) as {column['name']}"
        for column in [*description.get("columns", []), {"name": "dt", "data_type": "date"}]
    )
    head = head.replace("{{ day_before() }}", f"(select {nulls}) as day_before")
    path.write_text(f"{head}select {{{{ day_built() }}}} as dt, * from final{tail}", encoding="utf-8")


def _write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _load(folder: Path, revision: str) -> tuple[dict[str, Model], dict[str, dict[str, Any]], list[str]]:
    """SQLMesh's models by full name, how dbt is to build each by plain name, and what the linter finds."""
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, set_console

    set_console(NoopConsole())
    for name in ("sqlglot", "sqlmesh"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _silence():
            context = Context(paths=str(folder))
            found = context.lint_models(raise_on_error=False)
            configured = _configured(context)
    except Exception as error:  # dbt's and SQLMesh's errors have no class in common
        told = COLOURS.sub("", str(error)).strip()
        raise ModelsError(
            f"The dbt project {folder.name} of {revision} cannot be read: {told}\nMend it; "
            f"`scripts/just dbt {folder.name} parse` may say more."
        ) from error
    # a column that is lost upstream leaves everything downstream unread
    causes = [each for each in found if each.rule.name != "invalidselectstarexpansion"]
    return dict(context.models), configured, [_violation(each, folder) for each in causes or found]


def _configured(context: Any) -> dict[str, dict[str, Any]]:
    """How dbt is to build each node, by its name, but for what only documents it."""
    [loader] = context._loaders
    [project] = loader._load_projects()
    nodes = project.context.manifest._manifest.nodes.values()
    return {
        node.name: {
            **{key: value for key, value in node.config.to_dict().items() if key not in ("meta", "docs")},
            "relation": (node.schema, node.alias),
            "constraints": [str(each) for each in getattr(node, "constraints", None) or []],
            "columns": {
                column.name: [str(each) for each in column.constraints]
                for column in node.columns.values()
                if column.constraints
            },
        }
        for node in nodes
    }


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without dbt's lines on standard output, which it writes to whatever `logging` says."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _violation(found: Any, folder: Path) -> str:
    """One finding of the linter, for people."""
    path = found.model._path
    where = f"{folder.name}/{path.relative_to(folder)}"
    told = re.match(r"(Column '([^']+)' could not be resolved)\. Line: (\d+)", found.violation_msg)
    if told is None:
        return f"{where}: {found.violation_msg} Select columns that the models it reads have."
    what, column, line = told.groups()
    where += f":{_line_of(path.read_text(encoding='utf-8'), column, int(line))}"
    return f"{where}: {what}. Give it back to the model it was read from, or take it out here and downstream."


def _line_of(sql: str, column: str, rendered_line: int) -> int:
    """The line of a file that names the column, nearest to where it stands once the configuration is gone."""
    configuration = CONFIGURATION.search(sql)
    guess = rendered_line + (configuration[0].count("\n") if configuration else 0)
    named = [
        number
        for number, line in enumerate(sql.splitlines(), 1)
        if re.search(rf"\b{re.escape(column)}\b", line)
    ]
    return min(named, key=lambda number: abs(number - guess), default=guess)
