"""What differs between two states of a table, row by row: DuckDB compares, by full joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

BEFORE, AFTER = "before", "after"  # the schemas of the two states
EXAMPLES = 3

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")


@dataclass(frozen=True)
class Example:
    """A row that differs, as text; of a changed one also (before, after) of each column that does."""

    kind: str  # added, removed, changed
    key: dict[str, str | None]
    values: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class TableDifference:
    """What differs between the two states of one table, in rows and columns."""

    table: str
    key: tuple[str, ...]  # that rows are paired by; empty: by all columns
    rows_before: int | None  # None: there is no such table
    rows_after: int | None
    added: int
    removed: int
    changed: int
    columns_changed: dict[str, int]  # name → rows that differ in it
    columns_added: dict[str, str]  # name → type
    columns_removed: dict[str, str]
    columns_retyped: dict[str, tuple[str, str]]
    examples: tuple[Example, ...] = ()

    @property
    def is_different(self) -> bool:
        rows = (self.added, self.removed, self.changed)
        columns = (self.columns_added, self.columns_removed, self.columns_retyped)
        return any(rows) or any(columns) or None in (self.rows_before, self.rows_after)


@dataclass(frozen=True)
class _Pairing:
    """How the rows of two states are paired and compared."""

    key: tuple[str, ...]
    columns: dict[str, str]  # that both states have → how they are read, as SQL

    @property
    def paired_by(self) -> tuple[str, ...]:
        return self.key or tuple(self.columns)

    def rows(self, relation: str, name: str) -> str:
        """Each row as one struct, numbered among those with its key."""
        struct = ", ".join(f"{_named(column)}: {sql}" for column, sql in self.columns.items())
        key = ", ".join(self.columns[column] for column in self.paired_by)
        values = ", ".join(self.columns.values())
        number = f"row_number() over (partition by {key} order by {values})"
        return f"select {{{struct}}} as {name}, {number} as number from {relation}"

    def is_pair(self) -> str:
        """The SQL that tells whether two rows have the same key."""
        return " and ".join(f"{old} is not distinct from {new}" for old, new in map(_sides, self.paired_by))

    def kinds(self) -> dict[str, str]:
        """How a pair differs, and the SQL that tells it."""
        changed = " or ".join(f"({flag})" for flag in self.has_changed().values())
        return {"removed": "new is null", "added": "old is null", "changed": changed}

    def has_changed(self) -> dict[str, str]:
        """The SQL that tells, by column, whether a row that stays has another value in it."""
        return {
            column: f"old is not null and new is not null and {old} is distinct from {new}"
            for column in self.columns
            for old, new in [_sides(column)]
        }


def compare_tables(
    conn: duckdb.DuckDBPyConnection,
    table: str,
    key: Sequence[str] = (),
    left_out: tuple[str, ...] = (),
    examples: int = EXAMPLES,
) -> TableDifference:
    """Compare `before.<table>` with `after.<table>`, of which one may be missing, on the columns that both
    have; those whose names end in one of `left_out` do not count.

    Rows are paired by the key, or by all columns where either state lacks one of the key's; rows that share
    a key are paired in the order of their values. Gives so many examples of each kind, in the key's order.
    """
    before, after = (_columns(conn, schema, table, left_out) for schema in (BEFORE, AFTER))
    old, new = (f"{schema}.{_named(table)}" for schema in (BEFORE, AFTER))
    rows_before, rows_after = (_count(conn, old) if before else None, _count(conn, new) if after else None)
    if not before:
        before, old = after, f"(from {new} limit 0)"
    if not after:
        after, new = before, f"(from {old} limit 0)"
    both = {name: _readable(name, before[name], after[name]) for name in after if name in before}
    pairing = _Pairing(tuple(key) if set(key) <= set(both) else (), both)
    if both:
        rows = _compare_rows(conn, pairing, old, new, examples)
    else:  # no row of the one can be told to be one of the other
        rows = {"added": rows_after, "removed": rows_before, "changed": 0, "columns_changed": {}}
    return TableDifference(
        table,
        pairing.key,
        rows_before,
        rows_after,
        columns_added={name: after[name] for name in after if name not in before},
        columns_removed={name: before[name] for name in before if name not in after},
        columns_retyped={n: (before[n], after[n]) for n in both if before[n] != after[n]},
        **rows,
    )


def _columns(
    conn: duckdb.DuckDBPyConnection, schema: str, table: str, left_out: tuple[str, ...]
) -> dict[str, str]:
    """Names and types in order; nothing where there is no such table."""
    found = conn.execute(
        "select column_name, data_type from duckdb_columns() "
        "where schema_name = ? and table_name = ? order by column_index",
        [schema, table],
    ).fetchall()
    return {name: kind for name, kind in found if not name.endswith(left_out)}


def _readable(column: str, before: str, after: str) -> str:
    """How a column is read, as SQL: values of types that cannot be compared are compared as text."""
    are_numbers = before.startswith(_NUMBERS) and after.startswith(_NUMBERS)
    return _named(column) if before == after or are_numbers else f"{_named(column)}::varchar"


def _compare_rows(
    conn: duckdb.DuckDBPyConnection, pairing: _Pairing, old: str, new: str, examples: int
) -> dict[str, Any]:
    """What differs in the rows of two relations. The temporary table `pairs` holds (old, new): each row of
    either state as a struct, null where it has none."""
    conn.execute(f"""
        create or replace temp table pairs as
        with olds as ({pairing.rows(old, "old")}), news as ({pairing.rows(new, "new")})
        select old, new from olds full join news on olds.number = news.number and {pairing.is_pair()}""")
    kinds, flags = pairing.kinds(), pairing.has_changed()
    counted = ", ".join(f"count(*) filter ({flag})" for flag in [*kinds.values(), *flags.values()])
    [counts] = conn.execute(f"select {counted} from pairs").fetchall()
    by_column = zip(flags, counts[len(kinds) :], strict=True)
    return {
        **dict(zip(kinds, counts, strict=False)),
        "columns_changed": {name: count for name, count in by_column if count},
        "examples": _examples(conn, pairing, examples),
    }


def _examples(conn: duckdb.DuckDBPyConnection, pairing: _Pairing, limit: int) -> tuple[Example, ...]:
    kinds = pairing.kinds().items()
    return tuple(
        example for kind, flag in kinds for example in _examples_of(conn, pairing, kind, flag, limit)
    )


def _examples_of(
    conn: duckdb.DuckDBPyConnection, pairing: _Pairing, kind: str, flag: str, limit: int
) -> list[Example]:
    side = "old" if kind == "removed" else "new"
    keys = [f"{side}.{_named(column)}" for column in pairing.paired_by]
    flags = pairing.has_changed() if kind == "changed" else {}
    texts = [f"{key}::varchar" for key in keys]
    for column, is_other in flags.items():
        texts += [is_other, *(f"{value}::varchar" for value in _sides(column))]
    rows = conn.execute(
        f"select {', '.join(texts)} from pairs where {flag} order by {', '.join(keys)} limit {limit}"
    ).fetchall()
    return [_example(kind, pairing.paired_by, list(flags), row) for row in rows]


def _example(
    kind: str, key: tuple[str, ...], compared: list[str], row: tuple[str | bool | None, ...]
) -> Example:
    values = row[len(key) :]
    triples = zip(values[::3], values[1::3], values[2::3], strict=True)
    differing = {name: (old, new) for name, (flag, old, new) in zip(compared, triples, strict=True) if flag}
    return Example(kind, dict(zip(key, row, strict=False)), differing)  # type: ignore[arg-type]


def _count(conn: duckdb.DuckDBPyConnection, relation: str) -> int:
    [(count,)] = conn.execute(f"select count(*) from {relation}").fetchall()
    return int(count)


def _sides(column: str) -> tuple[str, str]:
    return f"old.{_named(column)}", f"new.{_named(column)}"


def _named(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
