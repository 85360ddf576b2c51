"""How an impact is told, and how a change says that a breaking one is meant."""

import sys
from dataclasses import replace

import pytest

from scripts import assess_impact
from scripts.impact import Change, Impact, acknowledged_names

DROPPED = Change(
    name="fct_daily_network",
    path="transform/models/marts/wrm/fct_daily_network.sql",
    category="breaking",
    reasons=["columns are gone"],
    columns_removed=["turnover"],
    rows_may_change=True,
    reaches={"daily_network": ["*", *"abcdefg"], "landing": ["turnover"]},
    public_tables=["daily_network"],
)
ADDED = Change("fct_coverage_gaps", "gaps.sql", "additive", [], columns_added=["minutes", "hours"])
REBUILT = ["fct_coverage_gaps", "fct_daily_network"]
IMPACT = Impact(
    "0123456789abcdef", [DROPPED, ADDED], ["fct_free_bike_trips: raise its code_version."], REBUILT
)
REACHES = "reaches: daily_network (its rows, a, b, c, d, e and 2 more); landing (turnover)"
NEXT = (
    "Mend what is breaking without need. Of what is meant, tell those who read these tables: add to "
    "CHANGELOG.md, under Unreleased: - **Breaking** `fct_daily_network`: what changes for them and what to "
    "do."
)


def test_impact_is_told_in_words():
    assert list(assess_impact.as_text(IMPACT)) == [
        "Impact: 1 breaking, 1 additive (compared with 0123456789)",
        "\nbreaking: fct_daily_network (transform/models/marts/wrm/fct_daily_network.sql)",
        "    columns are gone",
        "    columns removed: turnover",
        "    its rows may change",
        f"    {REACHES}",
        "    public tables: daily_network",
        "\nadditive: fct_coverage_gaps (gaps.sql)",
        "    columns added: minutes, hours",
        "\nLook at:",
        "    fct_free_bike_trips: raise its code_version.",
        "\nEvery day is rebuilt once of: fct_coverage_gaps, fct_daily_network.",
        f"\n{NEXT}",
    ]


def test_impact_is_told_in_markdown():
    known = Impact("0123456789abcdef", [replace(DROPPED, is_acknowledged=True)], [])
    assert list(assess_impact.as_markdown(known)) == [
        "## Impact: 1 breaking\n",
        "Compared with `0123456789`.",
        "\n### breaking (acknowledged): `fct_daily_network`\n",
        "`transform/models/marts/wrm/fct_daily_network.sql`\n",
        "- columns are gone",
        "- columns removed: turnover",
        "- its rows may change",
        f"- {REACHES}",
        "- public tables: daily_network",
    ]
    assert list(assess_impact.as_markdown(IMPACT))[-1] == f"\n**Next:** {NEXT}"
    assert list(assess_impact.as_markdown(Impact("0123456789abcdef", [], []))) == [
        "## Impact: no table and no column changes\n",
        "Compared with `0123456789`.",
    ]


@pytest.mark.parametrize(
    ("change", "status"), [(DROPPED, 2), (replace(DROPPED, is_acknowledged=True), None), (ADDED, None)]
)
def test_only_a_breaking_change_that_nobody_was_told_of_ends_with_status_2(
    change, status, monkeypatch, capsys
):
    impact = Impact("0123456789abcdef", [change], [])
    monkeypatch.setattr(assess_impact, "assess_impact", lambda base: impact)
    monkeypatch.setattr(sys, "argv", ["assess_impact", "HEAD"])
    try:
        assess_impact.main()
        ended = None
    except SystemExit as end:
        ended = end.code
    assert ended == status
    assert change.name in capsys.readouterr().out


def test_breaking_entries_of_the_unreleased_section_name_what_they_acknowledge():
    text = """# Changes

## [Unreleased]

- **Breaking** `fct_daily_network`, `transform/macros/landing_table.sql`: see `docs/operations.md`.
  Read `turnover` from `fct_hourly_network`.
- Added `fct_coverage_gaps`.

## 0.1.0

- **Breaking** `bike_stations`: long ago.
"""
    assert acknowledged_names(text) == {"fct_daily_network", "transform/macros/landing_table.sql"}
    assert (
        acknowledged_names("") == acknowledged_names("# Changes\n") == acknowledged_names(text, text) == set()
    )
    again = text.replace("- Added", "- **Breaking** `fct_daily_network`: once more.\n- Added")
    assert acknowledged_names(again, text) == {"fct_daily_network"}
