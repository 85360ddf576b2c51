"""What the feed says is data and nothing else: no SQL, no Jinja, no markup, no formula, no line of a log."""

import csv
import io
import json
import logging
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import duckdb
import pytest
from conftest import FEW_STATIONS, bronze_rows, moment, raw_name, small_snapshot
from rich.console import Console

from ingestion import wrm
from scripts.alerts import judge_run
from scripts.command import configure_logging, visible
from scripts.export_csv import CsvError, export_csv
from scripts.health import Health, RunHealth, SourceHealth, WarehouseHealth
from scripts.pipeline_run import Run
from scripts.run_pipeline import export_readings
from scripts.show_status import find_troubles, show_screen, to_markdown

NAMES = [
    "'); drop table bike_stations; --",
    "x'; delete from landing.exported_objects; select '",
    "{{ env_var('POSTGRES_URL') }}{% do run_query('drop schema landing cascade') %}",
    "${HOME} $(reboot) `reboot` %HOME% %s %(name)s {0} {name}",
    "$$; drop schema public cascade; $$ $query$ $tag$",
    "back\\slash \\' \\\" \\x41 \\n",
    "quotes \"double\" and 'single', comma; semicolon | bar",
    '=HYPERLINK("http://evil.example","click")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "-2+3",
    "<script>alert(1)</script> <!channel> &amp; [x](javascript:alert(1))",
    "[red]not red[/red] [link=http://evil.example]click[/link]",
    "turned \u202e around \u2066 and back",
    "../../../etc/passwd NULL null N/A \\N",
    "getvariable('lake') || current_setting('s3_secret_access_key')",
]
STEERING = "\x1b[31m\x1b]0;title\x07 \x9b31m \u202e \r overwritten"
FORMULA = re.compile(r"\s*[=+\-@\t\r]")
NOW = datetime.now(UTC)


class HostileCity:
    """A city whose stations have the worst of names."""

    def snapshot(self, at, rhythm=None):
        heading, *lines = csv.reader(io.StringIO(small_snapshot(at, len(NAMES))))
        for line, name in zip(lines, NAMES, strict=False):
            line[2] = name
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows([heading, *lines])
        return written.getvalue()


HOSTILE_HEADING = 'x"); drop table bike_failures; --'
FAILURES = [
    ["numer", "nr roweru", "opis", "data zgłoszenia", "status", HOSTILE_HEADING, "{{ 1/0 }}", "=1+1"],
    ["1", "70001", NAMES[0], "2025-05-12 10:00", "'; drop table x; --", NAMES[2], NAMES[4], NAMES[7]],
]


def test_hostile_values_arrive_as_they_are_in_lake_and_postgres(
    live_workplace, feed, tmp_path, record_property
):
    record_property("hostile_values", len(NAMES) + sum(map(len, FAILURES)))
    place = live_workplace
    written = io.StringIO()
    csv.writer(written, delimiter=";", lineterminator="\n").writerows(FAILURES)
    feed.city, feed.failures_csv = HostileCity(), written.getvalue().encode()
    with place.job("run_pipeline", "run") as job:
        assert (job.wait(), job.output) == (0, job.output)
    stored = [(name,) for name in sorted(NAMES)]
    assert sorted(place.warehouse_rows("select name from bike_stations")) == stored
    assert sorted(place.lake_rows("select name from int_wrm__station_readings_deduplicated")) == stored
    [(description, status, attributes)] = place.warehouse_rows(
        "select description, status, attributes from bike_failures"
    )
    assert (description, status) == (FAILURES[1][2], FAILURES[1][4])
    assert set(FAILURES[1][5:]) <= set(attributes.values()) and len(attributes) == 3
    assert place.warehouse_rows("select lines, quarantined from processing_summary") == [(len(NAMES) + 3, 0)]
    assert_the_csv_is_harmless(place, tmp_path / "out.csv")


def assert_the_csv_is_harmless(place, path):
    """As `scripts/just csv` writes it, of names that came the whole way."""
    query = "select name, -bikes_count as n from int_wrm__station_readings_deduplicated order by 1"
    with place.job("export_csv", query, "--output", str(path)) as job:
        assert (job.wait(), job.output) == (0, "")
    [heading, *rows] = csv.reader(io.StringIO(path.read_text()))
    assert heading == ["name", "n"]
    expected = [f"'{name}" if FORMULA.match(name) else name for name in sorted(NAMES)]
    assert [name for name, _ in rows] == expected and len([n for n in expected if n[0] == "'"]) == 5
    assert all(int(number) <= 0 for _, number in rows)


@pytest.mark.parametrize(
    "text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1", " =1", "\n=1", "＝1", "a;=1", "a\n=1"]
)
def test_no_cell_of_a_csv_begins_a_formula(tmp_path, text, record_property):
    record_property("hostile_values", 1)
    path = tmp_path / "out.csv"
    query = (
        "select ? as \"=head\", -5 as number, date '2025-05-12' as day, null::varchar as nothing, [1] as list"
    )
    connection = duckdb.connect()
    export_csv(connection, query.replace("?", "'" + text + "'"), path)
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == [
            ["'=head", "number", "day", "nothing", "list"],
            [text if text[0] == "a" else f"'{text}", "-5", "2025-05-12", "", "[1]"],
        ]
    # a program that takes ; for the end of a cell meets a quote before it
    assert ";" not in text or f'"{text}"' in path.read_text()
    export_csv(connection, f"select '{text}' as \"=head\", -5 as number", path, is_raw=True)
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == [["=head", "number"], [text, "-5"]]


def test_columns_of_one_name_keep_their_own_values(tmp_path):
    export_csv(duckdb.connect(), "select 1 as a, 2 as a, 'x' as \"B\", 'y' as b", tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["1", "2", "x", "y"]]


def test_a_query_that_gives_no_csv_says_so(tmp_path):
    connection = duckdb.connect()
    for query, told in (("create table t (a int)", "gives no rows"), ("select nothing", "The query failed")):
        with pytest.raises(CsvError, match=told):
            export_csv(connection, query, tmp_path / "out.csv")


def test_an_archive_of_hostile_names_is_taken_and_forges_no_log_line(workplace, archive, capfd):
    forged = 'it\'s "quoted" $(reboot)\n12:00:00 ingest wrm: snapshot taken\x1b[2K'
    day = "2025-05-12 12:00:00"
    folder = archive(forged, **{raw_name(day): small_snapshot(moment(day))})
    (folder / f"{forged.replace('/', '')}.txt").write_text("whatever")
    configure_logging(workplace.settings)
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.taken, outcome.refused) == (1, [])
    told = capfd.readouterr().err
    assert "Passed over" in told and "\x1b" not in told
    assert [line for line in told.splitlines() if line.startswith("12:00:00 ingest")] == []
    assert bronze_rows(workplace.settings, "station_snapshots", "source_key") == [
        ((folder / raw_name(day)).as_uri(),)
    ]


def test_an_object_of_a_hostile_name_is_read_as_any_other(workplace, archive):
    """Who may write to bronze alone, as the collector, has no say in the builder's SQL."""
    day = "2025-05-12 12:00:00"
    folder = archive(**{raw_name(day): small_snapshot(moment(day))})
    wrm.import_archive(workplace.settings, str(folder))
    [held] = workplace.lake_folder.glob("bronze/wrm/station_snapshots/dt=*/*.parquet")
    held.rename(held.with_name("a'] || $$ $query$ {{ 1 % 0 }}'; drop view x; --.parquet"))
    export_readings(workplace.settings)
    assert workplace.warehouse_rows("select count(*) from bike_stations") == [(FEW_STATIONS,)]
    exported = "select count(distinct object) from landing.exported_objects where object like '%; --.parquet'"
    assert workplace.warehouse_rows(exported) == [(1,)]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_line_is_one_whatever_it_quotes(workplace, capfd, form):
    workplace.configure(LOG_FORMAT=form)
    configure_logging(workplace.settings)
    logging.getLogger("bike-data-flow").warning("Passed over: %s.", f"a\n12:00:00 forged{STEERING}")
    told = capfd.readouterr().err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told)
    first, *others = told.splitlines()
    assert "Passed over: a" in first and [line for line in others if not line.startswith("    ")] == []
    if form == "json":
        assert json.loads(first)["message"] == f"Passed over: a\n12:00:00 forged{STEERING}."


def hostile_health(text):
    feed = SourceHealth(
        source="wrm", last_snapshot_at=NOW - timedelta(hours=9), age_seconds=32400.0, is_stale=True,
        failing_since=NOW, last_error=text, coverage_pct=None, gaps=[], quality_day=None, quality_score=None,
        lines_today=0, quarantined_today=0, quarantine_pct=0.0,
    )  # fmt: skip
    run = RunHealth("a", "run", "cron", NOW, 1.0, "failed", text)
    return Health(NOW, [feed], [], WarehouseHealth(text, {}, None, None), [run], None, {})


@pytest.mark.parametrize("text", [*NAMES, STEERING])
def test_screens_reports_and_alerts_show_hostile_text_as_text(workplace, text, record_property):
    record_property("hostile_values", 1)
    health, file = hostile_health(text), io.StringIO()
    troubles = find_troubles(workplace.settings, health)
    show_screen(workplace.settings, health, troubles, Console(file=file, width=2000, highlight=False))
    assert visible(text).rstrip(".?") in file.getvalue()
    assert visible(file.getvalue()) == file.getvalue()

    quality = [{"dt": date(2025, 5, 12), "quality_score": 98.76}]
    report = to_markdown(workplace.settings, health, troubles, quality)
    assert visible(report) == report and "<" not in report and "`" not in report
    assert "[" not in report and report.count("\n## ") == 8
    width = {line.count("|") for line in report.splitlines() if line.startswith("| ") and "cron" in line}
    assert width == {7}

    [finding] = judge_run(replace(Run("a", "export", "cron"), error=f"OSError: {text}"))
    assert "\n" not in finding.what and visible(finding.what) == finding.what
