"""The differences between two builds as people and machines read them: text, Markdown, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.table_differences import Example, TableDifference

NUMBERS = ("rows before", "rows after", "added", "removed", "changed")
HEADINGS = ("table", *NUMBERS, "columns")
VALUE_CHARACTERS = 50


@dataclass(frozen=True)
class Preview:
    """How the tables of the working tree differ from those of the base, a full commit hash."""

    base: str
    notes: list[str]
    tables: list[TableDifference]  # every table that was compared

    @property
    def title(self) -> str:
        return f"Rows of the working tree against base {self.base[:10]}, on made-up data"

    @property
    def different(self) -> list[TableDifference]:
        return [table for table in self.tables if table.is_different]

    def closing_lines(self) -> list[str]:
        """What is equal, and what else to know."""
        equal = [table for table in self.tables if not table.is_different]
        rows = sum(table.rows_after or 0 for table in equal)
        other = " other" if self.different else ""
        return [f"No differences in {len(equal)}{other} tables, {rows:,} rows.", *self.notes]


def show_text(found: Preview, console: Console) -> None:
    """The tables that differ, then examples as `key: column before → after`."""
    if found.different:
        table = Table(title=found.title, title_justify="left")
        for heading in HEADINGS:
            is_number = heading in NUMBERS
            table.add_column(heading, justify="right" if is_number else "left", no_wrap=heading == "table")
        for difference in found.different:
            table.add_row(*(escape(cell) for cell in _cells(difference)))
        console.print(table)
    for difference in found.different:
        if difference.examples:
            console.print(f"[bold]{escape(difference.table)}[/]")
        for example in difference.examples:
            console.print(f"  {escape(_example_line(example))}", soft_wrap=True)
    for line in found.closing_lines():
        console.print(escape(line), soft_wrap=True)


def to_markdown(found: Preview) -> str:
    """The same for a comment on the change."""
    lines = [f"## {found.title}", ""]
    if found.different:
        rules = ("--:" if heading in NUMBERS else "---" for heading in HEADINGS)
        lines += [_row(HEADINGS), _row(rules), *(_row(_cells(table)) for table in found.different), ""]
    for difference in found.different:
        if difference.examples:
            examples = [f"- {_plain(_example_line(example))}" for example in difference.examples]
            lines += [f"**{_plain(difference.table)}**", "", *examples, ""]
    return "\n".join([*lines, *(_plain(line) for line in found.closing_lines())]) + "\n"


def to_json(found: Preview) -> str:
    """All that was compared, equal or not, for machines."""
    return json.dumps(asdict(found), indent=2, ensure_ascii=False)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for nothing but text."""
    for character in "\\`*_|[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def _cells(difference: TableDifference) -> list[str]:
    rows = (difference.rows_before, difference.rows_after)
    counts = (difference.added, difference.removed, difference.changed)
    told = ["no table" if count is None else f"{count:,}" for count in (*rows, *counts)]
    return [difference.table, *told, ", ".join(_told_columns(difference))]


def _told_columns(difference: TableDifference) -> list[str]:
    """Columns with another value, and in how many rows; then those that are new, gone or of another type."""
    return [
        *(f"{name} {count:,}" for name, count in difference.columns_changed.items()),
        *(f"+{name} {kind}" for name, kind in difference.columns_added.items()),
        *(f"-{name} {kind}" for name, kind in difference.columns_removed.items()),
        *(f"{name} {before} → {after}" for name, (before, after) in difference.columns_retyped.items()),
    ]


def _example_line(example: Example) -> str:
    key = ", ".join(f"{name} {_shown(value)}" for name, value in example.key.items())
    changes = ", ".join(f"{name} {_change(*pair)}" for name, pair in example.values.items())
    return f"{key}: {changes or example.kind}"


def _change(before: str | None, after: str | None) -> str:
    """`before → after`; of long texts the part where they begin to differ."""
    pairs = list(zip(before or "", after or "", strict=False))
    start = next((place for place, (old, new) in enumerate(pairs) if old != new), len(pairs))
    return f"{_shown(before, start)} → {_shown(after, start)}"


def _shown(value: str | None, around: int = 0) -> str:
    if value is None:
        return "null"
    first = max(min(around - VALUE_CHARACTERS // 2, len(value) - VALUE_CHARACTERS), 0)
    last = first + VALUE_CHARACTERS
    return f"{'…' if first else ''}{value[first:last]}{'…' if last < len(value) else ''}"
