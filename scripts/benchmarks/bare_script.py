"""Writes the bare script of silver and gold: the SQL of the models as dbt compiles it, one COPY per model and
day, in an order in which each finds what it reads.

It is made from a lake that the project has built, so that it knows beforehand what the project has to find
out: which days there are, and which objects make each. So it neither plans nor remembers; `limit` runs it.
Models without any day (of the defects and of the history of runs, which an archive tells nothing of) are left
out. See transform/macros/daily_partition.sql for what the words mean.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ingestion.lake import Lake, quoted
from ingestion.schemas import BRONZE
from ingestion.settings import Settings
from scripts.run_dbt import run_dbt
from transform.plugins.lake import SEEDS, open_lake

Node = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """What a model may read: a bronze table or another model."""

    name: str
    objects: str  # below the lake, `{}` standing for the day
    rows: dict[date, int] = field(default_factory=dict)  # of each day that it has; of bronze 1

    @cached_property
    def filled(self) -> list[date]:
        """Its days that hold a row; one without counts as none for its readers."""
        return sorted(day for day, count in self.rows.items() if count)

    def read(self, day: date, reads: list[int | str]) -> list[str]:
        """The objects that make one day of a reader which reads these days, relative to its own."""
        days = (self._before(day) if read == "previous" else day + timedelta(int(read)) for read in reads)
        return [self.objects.format(each) for each in sorted(set(days) & set(self.filled))]

    def _before(self, day: date) -> date:
        return max((each for each in self.filled if each < day), default=date.min)


@dataclass(frozen=True)
class Model:
    """A daily partition: its days and what makes them."""

    table: Table
    sql: str
    inputs: list[Table]
    reads: dict[str, list[int | str]]
    carries_over: bool


def write_bare_script(settings: Settings, folder: Path) -> Path:
    """Write `build.sql` into a folder, and empty objects that stand in where a day has no input. Paths of the
    lake are relative to its root."""
    run_dbt(settings, "transform", "compile")
    manifest = json.loads((settings.data_dir / "dbt" / "transform" / "manifest.json").read_text())
    models = _models(settings, manifest)
    folder.mkdir(parents=True)
    script = folder / "build.sql"
    script.write_text("\n".join([*_opening(settings, models, folder), *_builds(models, folder)]))
    return script


def _models(settings: Settings, manifest: Node) -> list[Model]:
    """Those that have days, each after what it reads."""
    nodes: dict[str, Node] = manifest["nodes"]
    tables = _tables_of_models(settings, nodes) | _tables_of_bronze(settings, manifest["sources"])
    reads = {id: _inputs(nodes, id) for id in tables if id in nodes}
    return [
        Model(
            table=tables[id],
            sql=nodes[id]["compiled_code"],
            inputs=[tables[read] for read in reads[id]],
            reads=defaultdict(lambda: [0], nodes[id]["config"].get("reads_days") or {}),
            carries_over=bool(nodes[id]["config"].get("carries_over")),
        )
        for id in TopologicalSorter(reads).static_order()
        if id in nodes and tables[id].rows
    ]


def _inputs(nodes: dict[str, Node], id: str) -> list[str]:
    """The sources and models that one reads, through ephemeral ones."""
    found: set[str] = set()
    for read in nodes[id]["depends_on"]["nodes"]:
        if read.startswith("model.") and nodes[read]["config"]["materialized"] == "ephemeral":
            found |= set(_inputs(nodes, read))
        elif not read.startswith("seed."):
            found.add(read)
    return sorted(found)


def _tables_of_models(settings: Settings, nodes: dict[str, Node]) -> dict[str, Table]:
    tables = {}
    with closing(open_lake(settings)) as connection:
        for id, node in nodes.items():
            if node["config"]["materialized"] == "daily_partition":
                folder = f"{node['config']['layer']}/{node['name']}"
                state = quoted(f"{Lake.of(settings).root}/{folder}/_state.parquet")
                days = connection.execute(f"select dt, row_count from read_parquet({state})").fetchall()
                tables[id] = Table(node["name"], f"{folder}/dt={{}}/data.parquet", dict(days))
    return tables


def _tables_of_bronze(settings: Settings, sources: dict[str, Node]) -> dict[str, Table]:
    tables = {}
    for id, node in sources.items():
        folder = f"bronze/{node['source_name']}/{node['name']}"
        found = Path(Lake.of(settings).root, folder).glob("dt=*/*.parquet")
        days = {date.fromisoformat(path.parent.name.removeprefix("dt=")): 1 for path in found}
        tables[id] = Table(f"{node['source_name']}__{node['name']}", f"{folder}/dt={{}}/*.parquet", days)
    return tables


def _opening(settings: Settings, models: list[Model], folder: Path) -> Iterator[str]:
    """Settings, seeds, and a view of every model, which reads the objects in the variable of its name."""
    yield "set timezone = 'UTC';"
    yield "set variable inputs_build_seconds = null::double;"
    for seed in sorted(SEEDS.glob("*.csv")):
        yield f"create table {seed.stem} as from read_csv({quoted(str(seed))}, header = true);"
    for source, bronze in BRONZE.items():
        for name, schema in bronze.items():
            pq.write_table(schema.empty_table(), folder / f"{source}__{name}.parquet")
    with closing(open_lake(settings)) as connection:
        for name in (model.table.name for model in models):
            empty = _empty(folder, name)
            connection.execute(f"copy (from {name} limit 0) to {empty} (format parquet)")
            yield f"set variable {name} = [{empty}];"
            yield (
                f"create view {name} as from read_parquet(getvariable('{name}'), hive_partitioning = true);"
            )


def _builds(models: list[Model], folder: Path) -> Iterator[str]:
    """Every model of the first day, of the second, and so on."""
    days = sorted({day for model in models for day in model.table.rows})
    newest = {model.table.name: max(model.table.rows) for model in models}
    for day in days:
        yield f"set variable day_built = date '{day}';"
        for model in models:
            if day in model.table.rows:
                yield f"set variable is_newest_day = {str(day == newest[model.table.name]).lower()};"
                yield from _build(model, day, folder)


def _build(model: Model, day: date, folder: Path) -> Iterator[str]:
    for table in model.inputs:
        objects = table.read(day, model.reads[table.name])
        listed = ", ".join(map(quoted, objects)) or _empty(folder, table.name)
        yield f"set variable {table.name} = [{listed}];"
    if model.carries_over:
        before = max((each for each in model.table.rows if each < day), default=None)
        path = quoted(model.table.objects.format(before)) if before else _empty(folder, model.table.name)
        yield f"set variable day_before = [{path}];"
    yield (
        f"copy (\nselect date '{day}' as dt, * from (\n{model.sql}\n) as model_rows\n"
        f") to {quoted(model.table.objects.format(day))} "
        "(format parquet, compression zstd, row_group_size 122880);"
    )


def _empty(folder: Path, name: str) -> str:
    return quoted(str(folder / f"{name}.parquet"))
