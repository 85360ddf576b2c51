"""What a change does to every table and column, before it is merged: python -m scripts.assess_impact [BASE]

The working tree is compared with BASE, a git revision (default: where it left the main branch). Each changed
model is told with its category, the columns that it changes, whether its rows may change, and the columns and
public tables downstream that it reaches:

    additive    new columns or models: what is there stays as it is
    cosmetic    another description, or the same computation written differently
    breaking    a column is gone or computed differently, other rows are chosen, or it is built in another way

Both revisions are read by SQLMesh, never executed, and linted: a column that staging lost and a mart still
uses is an error. Ends with status 2 where something is breaking that CHANGELOG.md does not name under
`Unreleased`, in a line of this change such as: - **Breaking** `fct_daily_network`: what its readers must do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from ingestion.settings import Settings
from scripts.command import run_command
from scripts.impact import CATEGORIES, EVERY_ROW, OTHER_ROWS, Change, Impact, assess_impact
from scripts.revisions import default_base

UNACKNOWLEDGED = 2
# of a model's columns downstream, and of models, in the text
SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", nargs="?", metavar="BASE", help="git revision to compare with")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for machines")
    form.add_argument("--markdown", action="store_true", help="for a pull request or a job summary")
    arguments = parser.parse_args()

    def assess(settings: Settings) -> None:
        impact = assess_impact(arguments.base or default_base())
        if arguments.json:
            print(json.dumps(asdict(impact), indent=2, ensure_ascii=False))
        else:
            print("\n".join(as_markdown(impact) if arguments.markdown else as_text(impact)))
        if impact.unacknowledged:
            raise SystemExit(UNACKNOWLEDGED)

    run_command(assess)


def as_text(impact: Impact) -> Iterator[str]:
    """Lines for a terminal."""
    yield f"{_summary(impact)} (compared with {impact.base[:10]})"
    for change in impact.changes:
        known = ", acknowledged" if change.is_acknowledged else ""
        yield f"\n{change.category}{known}: {change.name} ({change.path})"
        yield from (f"    {line}" for line in _told(change))
    if impact.warnings:
        yield "\nLook at:"
        yield from (f"    {warning}" for warning in impact.warnings)
    if impact.rebuilt:
        yield f"\n{_cost(impact)}"
    if impact.unacknowledged:
        yield f"\n{_next_step(impact)}"


def as_markdown(impact: Impact) -> Iterator[str]:
    """Lines for a pull request."""
    yield f"## {_summary(impact)}\n"
    yield f"Compared with `{impact.base[:10]}`."
    for change in impact.changes:
        known = " (acknowledged)" if change.is_acknowledged else ""
        yield f"\n### {change.category}{known}: `{change.name}`\n"
        yield f"`{change.path}`\n"
        yield from (f"- {line}" for line in _told(change))
    if impact.warnings:
        yield "\n### Look at\n"
        yield from (f"- {warning}" for warning in impact.warnings)
    if impact.rebuilt:
        yield f"\n{_cost(impact)}"
    if impact.unacknowledged:
        yield f"\n**Next:** {_next_step(impact)}"


def _summary(impact: Impact) -> str:
    if not impact.changes:
        return "Impact: no table and no column changes"
    counts = {name: sum(each.category == name for each in impact.changes) for name in CATEGORIES}
    return "Impact: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _told(change: Change) -> Iterator[str]:
    yield from (reason for reason in change.reasons if reason != OTHER_ROWS)
    named = {
        "columns added": change.columns_added,
        "columns removed": change.columns_removed,
        "columns changed": change.columns_changed,
    }
    yield from (f"{what}: {', '.join(columns)}" for what, columns in named.items() if columns)
    if change.rows_may_change:
        yield "its rows may change"
    if change.reaches:
        reached = "; ".join(f"{model} ({_shortened(columns)})" for model, columns in change.reaches.items())
        yield f"reaches: {reached}"
    if change.public_tables:
        yield f"public tables: {', '.join(change.public_tables)}"


def _shortened(columns: list[str]) -> str:
    told = ["its rows" if column == EVERY_ROW else column for column in columns]
    more = len(told) - SHOWN
    return ", ".join(told[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _cost(impact: Impact) -> str:
    names, more = ", ".join(impact.rebuilt[:SHOWN]), len(impact.rebuilt) - SHOWN
    return f"Every day is rebuilt once of: {names}{f' and {more} models more' if more > 0 else ''}."


def _next_step(impact: Impact) -> str:
    names = ", ".join(f"`{change.name}`" for change in impact.unacknowledged)
    return (
        "Mend what is breaking without need. Of what is meant, tell those who read these tables: add to "
        f"CHANGELOG.md, under Unreleased: - **Breaking** {names}: what changes for them and what to do."
    )


if __name__ == "__main__":
    main()
