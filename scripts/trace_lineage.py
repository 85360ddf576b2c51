"""Where a column comes from, down to the raw payload: python -m scripts.trace_lineage MODEL.COLUMN

A tree of the columns that its values are made from, through both dbt projects to bronze. Where a value
depends on which rows there are (an aggregate, a window), their table is told and what chooses among them.
MODEL is any model or public table: bike_stations.bikes, fct_daily_network.turnover. SQLMesh reads the SQL;
nothing is executed.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from ingestion.settings import Settings
from scripts.command import CommandError, run_command
from scripts.impact import read_and_graph

if TYPE_CHECKING:
    from scripts.column_graph import Column, ColumnGraph
    from scripts.model_reader import Reading


WIDTH = 200  # characters of a line, where there is no terminal


class UnknownColumnError(CommandError):
    """No model has this column."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("column", metavar="MODEL.COLUMN", help="as bike_stations.bikes")
    parser.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args()

    def trace(settings: Settings) -> None:
        reading, graph = read_and_graph(None)
        column = find_column(graph, arguments.column)
        traced = trace_column(reading, graph, column)
        if arguments.json:
            print(json.dumps(traced, indent=2, ensure_ascii=False))
        else:
            console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
            console.print(_as_tree(traced))

    run_command(trace)


def find_column(graph: ColumnGraph, text: str) -> Column:
    """The column that `model.column` names. Raises `UnknownColumnError` with what is near."""
    model, _, column = text.rpartition(".")
    columns = graph.made[model].columns if model in graph.made else {}
    if column in columns:
        return model, column
    known = columns if columns else graph.made
    near = difflib.get_close_matches(column if columns else model or text, known, n=3, cutoff=0.5)
    what = f"{model} has no such column" if columns else "no such model"
    known_ones = ", ".join(near or sorted(known)[:5])
    raise UnknownColumnError(f"The column is not known, {what}: {text}. Try one of: {known_ones}.")


def trace_column(
    reading: Reading, graph: ColumnGraph, column: Column, told: set[Column] | None = None
) -> dict[str, Any]:
    """A column and what its values are made from, as nested objects: {column, path, description, rows_of,
    chosen_by, made_from}; `made_from` is null where the column was told before."""
    told = set() if told is None else told
    model, name = column
    part = graph.made[model].columns[name] if model in graph.made else None
    traced = {
        "column": f"{model}.{name}",
        "path": reading.paths.get(model),
        "description": _description(reading, model, name),
        "rows_of": sorted(part.tables) if part else [],
        "chosen_by": sorted(map(".".join, part.chosen_by)) if part else [],
    }
    if column in told:
        return traced | {"made_from": None}
    told.add(column)
    inputs = sorted(part.columns) if part else []
    return traced | {"made_from": [trace_column(reading, graph, each, told) for each in inputs]}


def _description(reading: Reading, model: str, name: str) -> str | None:
    columns = reading.described.get(model, {}).get("columns", [])
    told = next((each.get("description") for each in columns if each["name"] == name), None)
    return " ".join(told.split()) if told else None


def _as_tree(traced: dict[str, Any], parent: Tree | None = None) -> Tree:
    lines = [f"[bold]{escape(traced['column'])}[/]  [dim]{escape(traced['path'] or '')}[/]"]
    if traced["made_from"] is None:
        lines[0] += "  [dim](as above)[/]"
    else:
        lines += [f"[dim]{escape(traced['description'])}[/]"] if traced["description"] else []
        if traced["rows_of"]:
            chosen = f", chosen by {', '.join(traced['chosen_by'])}" if traced["chosen_by"] else ""
            lines.append(f"over rows of {escape(', '.join(traced['rows_of']) + chosen)}")
    tree = parent.add("\n".join(lines)) if parent else Tree("\n".join(lines))
    for each in traced["made_from"] or []:
        _as_tree(each, tree)
    return tree


if __name__ == "__main__":
    main()
