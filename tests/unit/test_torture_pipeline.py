"""The figures of the tests that try to break things, from pytest's report to a page."""

from datetime import date

from scripts.marked_text import put_between
from scripts.torture_pipeline import MARKS, REPORT, Figures, Profile, read_figures, tell

RESULTS = """<testsuites><testsuite>
<testcase classname="tests.torture.test_crashes" name="a" time="60"><properties>
  <property name="killed" value="run: before a"/><property name="killed" value="run: after b"/>
</properties></testcase>
<testcase classname="tests.torture.test_payloads" name="b" time="6"><properties>
  <property name="payloads" value="1200"/></properties></testcase>
<testcase classname="tests.torture.test_payloads" name="c" time="6"><properties>
  <property name="payloads" value="300"/></properties><failure/></testcase>
<testcase classname="tests.torture.test_payloads" name="d" time="0"><skipped/></testcase>
</testsuite></testsuites>"""


def test_figures_are_counted_and_told_with_the_command_that_makes_them_again(tmp_path):
    (tmp_path / "results.xml").write_text(RESULTS)
    figures = read_figures(tmp_path / "results.xml")
    assert figures == {
        "test_crashes": Figures(passed=1, seconds=60, counts={"killed": 2}),
        "test_payloads": Figures(passed=1, failed=1, seconds=12, counts={"payloads": 1500}),
    }
    told = tell(figures, Profile(points=2, cases=3, payloads=4, seed=5), date(2025, 5, 12), 90)
    assert told.splitlines() == [
        "`scripts/just torture --points 2 --cases 3 --payloads 4 --seed 5`, 2025-05-12, 2 minutes:",
        "",
        "| tests | passed | failed | counted | minutes of work |",
        "|---|---:|---:|---|---:|",
        "| `tests/torture/test_crashes.py` | 1 | 0 | killed: 2 | 1.0 |",
        "| `tests/torture/test_payloads.py` | 1 | 1 | payloads: 1,500 | 0.2 |",
    ]


def test_figures_take_the_place_of_the_last_ones_in_the_document():
    before = REPORT.read_text()
    assert [before.count(mark) for mark in MARKS] == [1, 1]
    after = put_between(before, MARKS, "figures\n")
    assert put_between(after, MARKS, before.partition(MARKS[0])[2].partition(MARKS[1])[0]) == before
    assert after.partition(MARKS[0])[2].partition(MARKS[1])[0] == "figures\n"
