"""What every column of every model is made from, and what decides which rows a model has.

Each model's SQL, read by SQLMesh with every column resolved, is walked scope by scope. A column and the rows
of a scope are each known by a digest of all that makes them, in which a column that is read stands as the
digest of what it is made from, whatever its name: two revisions give the same digests as long as they compute
the same thing in the same way. The value of an aggregate or a window depends on the rows it looks at, so
their digest is part of its own.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp
from sqlglot.optimizer.scope import Scope, build_scope

from scripts.model_reader import plain_name

if TYPE_CHECKING:
    from sqlmesh.core.model import Model

# a table's plain name and a column's
Column = tuple[str, str]
SET_RETURNING = ("generate_subscripts", "regexp_split_to_table", "jsonb_array_elements", "jsonb_each")


@dataclass(frozen=True)
class Part:
    """A column, or the rows of a query.

    digest: of all that makes it.
    columns: of other tables, that its values are made from; of rows: that choose them.
    tables: whose rows it counts, orders or picks from.
    chosen_by: columns of other tables that decide which rows those are.
    """

    digest: str
    columns: frozenset[Column] = frozenset()
    tables: frozenset[str] = frozenset()
    chosen_by: frozenset[Column] = frozenset()


# of one side of a union by name
MISSING = Part("missing")


@dataclass(frozen=True)
class Shape:
    """The columns and the rows that a query gives; `ordered`: the columns of a select by position, as a union
    puts them side by side whatever their names."""

    columns: Mapping[str, Part]
    rows: Part
    ordered: tuple[Part, ...] = ()


@dataclass(frozen=True)
class ColumnGraph:
    """The shape of every model by name. `made` knows a model by what it does itself: what it reads are names;
    `grown` by all that is upstream as well: what it reads is what that is made from in turn."""

    made: dict[str, Shape]
    grown: dict[str, Shape]


def graph_columns(models: Mapping[str, Model]) -> ColumnGraph:
    """The graph of models by plain name. One whose columns SQLMesh could not resolve is one lump: each of its
    columns changes with its SQL and with everything that it reads."""
    named = AnyTable()
    graph = ColumnGraph({}, {})
    for name in _in_order(models):
        graph.made[name] = _shape_of(models[name], named)
        graph.grown[name] = _shape_of(models[name], ChainMap(graph.grown, named))
    return graph


def _in_order(models: Mapping[str, Model]) -> list[str]:
    """Names of the models, each after those that it reads."""
    read = {
        name: {plain_name(fqn) for fqn in model.depends_on} & models.keys() - {name}
        for name, model in models.items()
    }
    return list(TopologicalSorter(read).static_order())


class AnyTable(dict[str, Shape]):
    """Every table is there, and its rows and columns are known by their names."""

    def __missing__(self, table: str) -> Shape:
        return Shape(_AnyColumn(table), Part(digest("rows", table)))


class _AnyColumn(dict[str, Part]):
    def __init__(self, table: str) -> None:
        super().__init__()
        self.table = table

    def __missing__(self, column: str) -> Part:
        return Part(digest("column", self.table, column))


class _EveryColumn(dict[str, Part]):
    """Of a table function: what makes it makes each of its columns."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def __missing__(self, column: str) -> Part:
        return replace(self.part, digest=digest(self.part.digest, column))


def digest(*parts: str) -> str:
    """Hexadecimal SHA-256 of texts, in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _shape_of(model: Model, inputs: Mapping[str, Shape]) -> Shape:
    if model.is_seed:
        return _seed_shape(model)
    if not model.is_sql:
        kinds = {name: str(kind) for name, kind in (model.columns_to_types or {}).items()}
        columns = {name: Part(digest("bronze", model.name, name, kind)) for name, kind in kinds.items()}
        return Shape(columns, Part(digest("bronze", model.name)))
    query = model.render_query()
    if query is None or query.is_star:
        return _lump(model, inputs)
    try:
        return shape_of_query(query, inputs)
    except (KeyError, ValueError):  # a column or a union that SQLGlot could not resolve
        return _lump(model, inputs)


def shape_of_query(query: exp.Expression, inputs: Mapping[str, Shape]) -> Shape:
    """What a query gives that names each column's table; `inputs`: the shapes of tables by plain name. Raises
    `KeyError` and `ValueError` for a query whose columns are not resolved."""
    scope = build_scope(query)
    if scope is None:
        raise ValueError(f"not a select: {query.sql()}")
    return _Walk(inputs).shape(scope)


def _seed_shape(model: Any) -> Shape:
    columns = {name: Part(digest("seed", str(value))) for name, value in model.column_hashes.items()}
    return Shape(columns, Part(digest("seed", str(model.seed.content.count("\n")))))


def _lump(model: Model, inputs: Mapping[str, Shape]) -> Shape:
    read = sorted(map(plain_name, model.depends_on))
    shapes = [inputs[name] for name in read]
    grown = [part.digest for shape in shapes for part in (shape.rows, *shape.columns.values())]
    sql = (model.render_query() or model.query).sql(comments=False)
    everything = Part(digest("lump", sql, *grown), tables=frozenset(read))
    return Shape(_EveryColumn(everything), everything)


class _Walk:
    """The shapes of one query's scopes; each is walked once."""

    def __init__(self, inputs: Mapping[str, Shape]) -> None:
        self.inputs = inputs
        self.shapes: dict[int, Shape] = {}

    def shape(self, scope: Scope) -> Shape:
        if id(scope) not in self.shapes:
            if isinstance(scope.expression, exp.SetOperation):
                shape = self._set_operation(scope)
            elif isinstance(scope.expression, exp.Select):
                shape = self._select(scope)
            else:  # unnest, values, a lateral function
                part = self._part(scope.expression, scope)
                shape = Shape(_EveryColumn(part), part)
            self.shapes[id(scope)] = shape
        return self.shapes[id(scope)]

    def _set_operation(self, scope: Scope) -> Shape:
        operation = scope.expression
        sides = [self.shape(each) for each in scope.union_scopes]
        if operation.args.get("by_name"):
            names = list(dict.fromkeys(name for side in sides for name in side.columns))
            aligned = [[side.columns.get(name, MISSING) for side in sides] for name in names]
        else:
            names = operation.named_selects
            aligned = [list(parts) for parts in zip(*(side.ordered for side in sides), strict=True)]
        ordered = tuple(_joined("side by side", *parts) for parts in aligned)
        is_distinct = bool(operation.args.get("distinct"))
        rows = _joined(
            f"{type(operation).__name__} {is_distinct}",
            *(side.rows for side in sides),
            *(ordered if is_distinct else ()),
            *(self._part(each, scope) for each in _given(operation, "order", "limit", "offset")),
        )
        return Shape(dict(zip(names, ordered, strict=True)), rows, ordered)

    def _select(self, scope: Scope) -> Shape:
        select = scope.expression
        values = [each.unalias() for each in select.expressions]
        parts = [self._with_windows(value, scope) for value in values]
        rows = self._rows(scope, parts)
        by_rows = [_looks_at_rows(value) or _is_grouped_away(value, select) for value in values]
        ordered = tuple(
            _of_rows(part, rows) if looks else part for part, looks in zip(parts, by_rows, strict=True)
        )
        return Shape(dict(zip(select.named_selects, ordered, strict=True)), rows, ordered)

    def _rows(self, scope: Scope, parts: list[Part]) -> Part:
        """The rows of a select, whose select list has these parts."""
        select = scope.expression
        sources = [source for _, source in scope.selected_sources.values()]
        taken = [
            self._part(each, scope)
            for node, _ in scope.selected_sources.values()
            for each in _given(node, "pivots", "sample")
        ]
        clauses = _given(
            select, "where", "group", "having", "qualify", "distinct", "limit", "offset", "sample"
        )
        if scope.parent is not None or _given(select, "distinct", "limit"):
            clauses += _given(select, "order")  # otherwise only where a row lies in its file
        rows = _joined(
            "select",
            *(self._source(source).rows for source in sources),
            *taken,
            *(self._join(join, scope) for join in _given(select, "joins")),
            *(_joined(str(clause.key), self._with_windows(clause, scope)) for clause in clauses),
            *(part for part, value in zip(parts, select.expressions, strict=True) if _chooses(value, select)),
        )
        tables = {_table_name(source) for source in sources if _is_named_table(source)}
        return replace(rows, tables=rows.tables | tables)

    def _with_windows(self, node: exp.Expression, scope: Scope) -> Part:
        """An expression, with the named windows of its select where it looks through any window."""
        part = self._part(node, scope)
        windows = _given(scope.expression, "windows")
        if not windows or node.find(exp.Window) is None:
            return part
        return _joined(part, *(self._part(window, scope) for window in windows))

    def _join(self, join: exp.Join, scope: Scope) -> Part:
        conditions = [self._part(each, scope) for each in _given(join, "on", "using")]
        return _joined(f"{join.side} {join.kind} {join.method}", *conditions)

    def _source(self, source: exp.Table | Scope) -> Shape:
        if not isinstance(source, exp.Table):
            return self.shape(source)
        if _is_named_table(source):
            return self.inputs[_table_name(source)]
        part = self._part(source.this, None)
        return Shape(_EveryColumn(part), part)

    def _part(self, node: exp.Expression, scope: Scope | None) -> Part:
        """An expression, with what it reads in place of the names that it reads it by."""
        if isinstance(node, exp.Paren):  # the tree itself says what belongs together
            return self._part(node.this, scope)
        if isinstance(node, exp.Column):
            return self._column(node, scope)
        if isinstance(node, exp.Query) and scope is not None:
            inner = next((s for s in scope.subquery_scopes if s.expression is node.unnest()), None)
            if inner is not None:
                shape = self.shape(inner)
                return _joined("query", shape.rows, *shape.columns.values())
        if isinstance(node, exp.Identifier):
            return Part(digest("name", node.name))
        children: list[Part | str] = [type(node).__name__]
        for key, value in sorted(node.args.items()):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, exp.Expression):
                    children += [key, self._part(each, scope)]
                elif each not in (None, False):
                    children += [key, str(each)]
        return _joined(*children)

    def _column(self, column: exp.Column, scope: Scope | None) -> Part:
        depth = 0
        while scope is not None:
            if column.table in scope.selected_sources:
                return self._column_of(scope, column, depth)
            scope, depth = scope.parent, depth + 1
        return Part(digest("name", column.sql(comments=False)))  # a lambda's parameter, a field of a struct

    def _column_of(self, scope: Scope, column: exp.Column, depth: int) -> Part:
        """A column of one of a scope's sources; which of several counts, as they may be the same table."""
        node, source = scope.selected_sources[column.table]
        part = self._source(source).columns[column.name]
        if _is_named_table(source):
            part = Part(part.digest, frozenset({(_table_name(source), column.name)}))
        pivots = [self._part(each, scope) for each in _given(node, "pivots")]
        if len(scope.selected_sources) == 1 and depth == 0 and not pivots:
            return part
        position = list(scope.selected_sources).index(column.table)
        return _joined(part, f"source {position} at {depth}", *pivots)


def _is_named_table(source: exp.Table | Scope) -> bool:
    """Whether a source is a table, and no subquery or table function."""
    return isinstance(source, exp.Table) and isinstance(source.this, exp.Identifier)


def _table_name(table: exp.Table) -> str:
    return plain_name(exp.table_name(table))


def _given(node: exp.Expression, *names: str) -> list[exp.Expression]:
    """The clauses of a query that are there."""
    values = [node.args.get(name) for name in names]
    return [
        each
        for value in values
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, exp.Expression)
    ]


def _joined(*parts: Part | str) -> Part:
    """What is made from several parts, in this order."""
    known = [part for part in parts if isinstance(part, Part)]
    return Part(
        digest(*(part.digest if isinstance(part, Part) else part for part in parts)),
        frozenset().union(*(part.columns for part in known)),
        frozenset().union(*(part.tables for part in known)),
        frozenset().union(*(part.chosen_by for part in known)),
    )


def _of_rows(part: Part, rows: Part) -> Part:
    """A value that also depends on which rows there are."""
    chosen_by = part.chosen_by | rows.columns | rows.chosen_by
    return Part(digest(part.digest, rows.digest), part.columns, part.tables | rows.tables, chosen_by)


def _chooses(value: exp.Expression, select: exp.Select) -> bool:
    """Whether a value in a select list decides which rows there are, or how many."""
    group = select.args.get("group")
    is_key = bool(group and group.args.get("all")) and not _looks_at_rows(value)
    return bool(select.args.get("distinct")) or is_key or _gives_rows(value)


def _is_grouped_away(value: exp.Expression, select: exp.Select) -> bool:
    """Whether a value is that of some row of a group, or of an aggregate that SQLGlot does not know."""
    group = select.args.get("group")
    return bool(group and not group.args.get("all") and value not in group.expressions)


def _looks_at_rows(value: exp.Expression) -> bool:
    """Whether a value is made from several rows: an aggregate or a window."""
    return any(
        isinstance(node, exp.AggFunc | exp.Window)
        or (isinstance(node, exp.Anonymous) and node.name.lower() in _aggregates())
        for node in value.walk(prune=lambda node: isinstance(node, exp.Query))
    )


def _gives_rows(value: exp.Expression) -> bool:
    """Whether a value in a select list makes several rows of one."""
    return any(
        isinstance(node, exp.Explode | exp.UDTF)
        or (isinstance(node, exp.Anonymous) and node.name.lower() in SET_RETURNING)
        for node in value.walk(prune=lambda node: isinstance(node, exp.Query))
    )


@cache
def _aggregates() -> frozenset[str]:
    """Names of DuckDB's aggregate functions: SQLGlot does not know them all."""
    query = "select distinct lower(function_name) from duckdb_functions() where function_type = 'aggregate'"
    with duckdb.connect() as connection:
        return frozenset(name for (name,) in connection.execute(query).fetchall())
