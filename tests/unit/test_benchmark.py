"""What the benchmark measured, from observations to a page: tables, targets, plots and the estimate."""

import shutil
from dataclasses import replace

import pytest

from scripts.benchmarks import estimate, plots
from scripts.benchmarks.measurement import Observation, Target
from scripts.benchmarks.report import (
    DOCUMENT,
    SCENARIOS,
    Record,
    from_json,
    load_records,
    marks,
    render,
    save_record,
    sheet,
    significant,
    target_sheet,
    tell_machines,
    told,
    told_bytes,
    told_in_words,
)
from scripts.benchmarks.scale import KEPT, STAGES
from scripts.marked_text import put_between
from scripts.run_benchmark import command_for, option_parser

MACHINE = {
    "cores": 2,
    "processor": "Example 9000",
    "memory_bytes": 8_000_000_000,
    "kernel": "Linux 6.1",
    "versions": {"Python": "3.11.0", "DuckDB": "1.5.5"},
}
TOLD_MACHINE = "2 cores of Example 9000, 8.00 GB, Linux 6.1, Python 3.11.0, DuckDB 1.5.5"


def record(scenario, *observations):
    made = [Observation(scenario, case, way, repeat, figures) for case, way, repeat, figures in observations]
    command = f"scripts/just bench {scenario}"
    return Record(scenario, command, "2025-05-12", 1.5, {"days": 2}, MACHINE, made)


WAYS = record(
    "compare_ways",
    ("to bronze", "project", 1, {"seconds": 2.0, "peak_bytes": 300e6, "rows": 4000, "text_bytes": 90e6}),
    ("to bronze", "project", 2, {"seconds": 2.2, "peak_bytes": 300e6, "rows": 4000, "text_bytes": 90e6}),
    ("to bronze", "project", 3, {"seconds": 1.9, "peak_bytes": 300e6, "rows": 4000, "text_bytes": 90e6}),
    ("to bronze", "limit", 1, {"seconds": 1.6, "rows": 4000}),
    ("to Postgres", "limit", 1, {"seconds": 1.0, "rows": 1000, "files": 10}),
    ("to Postgres", "usual", 1, {"seconds": 4.0, "rows": 100, "files": 1}),
)


def stage_figures(number, lines):
    return {"seconds": number * lines / 1e6, "peak_bytes": 1e8 * number, "rows": lines, "files": lines / 100}


def lake(lines):
    way = f"{lines / 1e6:g} million lines"
    kept = {"rows": lines, "files": lines / 100, "text_bytes": lines * 80, "bronze_bytes": lines * 2}
    kept |= {"bronze_objects": 100, "model_bytes": lines * 6, "model_objects": 900}
    kept |= {"postgres_bytes": lines * 200, "landing_bytes": 0, "days": 1}
    stages = [(stage, way, 1, stage_figures(number, lines)) for number, stage in enumerate(STAGES, 1)]
    return [*stages, (KEPT, way, 1, kept)]


SCALE = record("scale", *lake(1_000_000), *lake(10_000_000))


def test_figures_are_told_with_three_digits_in_the_unit_of_their_name():
    numbers = [significant(value) for value in (0, 0.01234, 1.2, 129.7, 999.7, 1234.5, 1_913_482)]
    assert numbers == ["0.00", "0.0123", "1.20", "130", "1,000", "1,230", "1,910,000"]
    sizes = [told_bytes(value) for value in (7, 999, 1200, 811e6, 999.9e6, 2.5e12)]
    assert sizes == ["7 B", "999 B", "1.20 kB", "811 MB", "1.00 GB", "2.50 TB"]
    figures = {
        "p95_seconds": 0.5,
        "rss_bytes_at_end": 3e8,
        "read_pct": 1.5,
        "error_share": 0.02,
        "rows": 1440,
    }
    assert [told(*one) for one in figures.items()] == ["0.500 s", "300 MB", "1.50 %", "2.00 %", "1,440"]
    words = [told_in_words(name, told(name, value)) for name, value in figures.items()]
    assert words == ["p95 0.500 s", "rss at end 300 MB", "read 1.50 %", "error 2.00 %", "1,440 rows"]


def test_a_table_has_medians_with_their_spread_and_the_time_per_row_to_that_of_the_references():
    assert sheet(WAYS).to_markdown().splitlines() == [
        "| case | way | time | peak memory | per second | time to `limit` | time to `usual` | further |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        "| to bronze | project | 2.00 s (1.90–2.20 s) | 300 MB | 2,000 rows | 1.25 × |  "
        "| 4,000 rows, text 90.0 MB |",
        "| to bronze | limit | 1.60 s |  | 2,500 rows | 1.00 × |  | 4,000 rows |",
        "| to Postgres | limit | 1.00 s |  | 1,000 rows | 1.00 × | 0.0250 × | 1,000 rows, 10 files |",
        "| to Postgres | usual | 4.00 s |  | 25.0 rows | 40.0 × | 1.00 × | 100 rows, 1 files |",
    ]


def test_targets_are_met_or_missed_or_not_measured():
    results = WAYS.results
    targets = [
        Target("fast", 2, lambda r: r.median("to bronze", "project", "seconds"), "s"),
        Target("small", 200, lambda r: r.median("to bronze", "project", "peak_bytes") / 1e6, "MB"),
        Target("many", 2000, lambda r: r.rate("to bronze", "project", "rows"), "rows/s", is_least=True),
        Target("few", 10, lambda r: r.median("to bronze", "project", "requests")),
    ]
    assert target_sheet((target, results) for target in targets).to_markdown().splitlines() == [
        "| what | target | measured |  |",
        "|---|---:|---:|---:|",
        "| fast | ≤ 2 s | 2.00 s | met |",
        "| small | ≤ 200 MB | 300 MB | MISSED |",
        "| many | ≥ 2,000 rows/s | 2,000 rows/s | met |",
        "| few | ≤ 10 |  | not measured |",
    ]


def test_machines_are_told_once_or_with_what_ran_on_them():
    assert tell_machines([WAYS, SCALE]) == f"{TOLD_MACHINE}.\n"
    other = replace(SCALE, machine=MACHINE | {"cores": 4})
    assert tell_machines([WAYS, other]).splitlines() == [
        f"- compare_ways: {TOLD_MACHINE}.",
        f"- scale: 4{TOLD_MACHINE[1:]}.",
    ]


def test_a_record_is_kept_as_it_is(tmp_path):
    for one in (SCALE, WAYS):
        save_record(one, tmp_path / "performance")
    assert load_records(tmp_path / "performance") == [WAYS, SCALE]
    assert from_json((tmp_path / "performance" / "scale.json").read_text()) == [SCALE]


def test_a_command_names_the_options_that_are_not_as_by_default():
    options = vars(option_parser().parse_args([]))
    assert command_for("cold_run", options) == "scripts/just bench cold_run"
    options |= {"cadence_minutes": 10.0, "lines": [1000, 2000]}
    assert command_for("scale", options) == "scripts/just bench scale --cadence 10.0 --lines 1000 2000"


def test_the_estimate_is_arithmetic_on_the_largest_lake():
    counted = {"put_requests": 30, "list_requests": 10, "get_requests": 90, "head_requests": 10}
    watch = record(
        "watch_latency",
        ("round of watch", "files", 1, {"seconds": 3.0}),
        ("round of watch", "S3 + 20 ms", 1, {"seconds": 6.0, **counted}),
    )
    costs = estimate.measured_costs({"scale": SCALE, "watch_latency": watch})
    assert costs == estimate.Costs(
        measured="10 million lines",
        cores=2,
        lines=100,
        text_bytes=8000,
        bronze_bytes=200,
        model_bytes=600,
        postgres_bytes=20_000,
        objects=0.01,
        batch_seconds=0.0015,  # 1 + 2 + 3 + 4 + 5 s for a million lines
        writing_requests=40,
        reading_requests=100,
        requests_of="round of watch",
        round_seconds=3.0,
    )
    year = estimate.Year(costs, 100)
    assert year.snapshots == 52_560_000
    assert year.of(costs.lines) == 5_256_000_000
    assert year.batch_hours == pytest.approx(21.9)
    assert year.storage_dollars == pytest.approx(52_560_000 * 800 / 1e9 * 0.0245)
    by_snapshot = 40 * 0.0054 / 1000 + 100 * 0.00043 / 1000
    assert year.request_dollars == pytest.approx(by_snapshot * 52_560_000 / 12)
    assert list(estimate.systems_held(costs).values()) == pytest.approx([20, 95.129, 40_000], rel=1e-4)
    [first, *_] = [line for line in estimate.tell(costs).splitlines() if line.startswith("- ")]
    assert first == (
        "- 20 systems: 2 cores that run `watch`, one round after another, every mart new each minute. "
        "**This is the first bottleneck.**"
    )


def test_what_was_not_measured_is_no_part_of_the_estimate():
    assert estimate.measured_costs({"compare_ways": WAYS}) is None
    costs = estimate.measured_costs({"scale": SCALE})
    assert (costs.writing_requests, costs.requests_of, costs.round_seconds) == (None, None, None)
    table = estimate.tell(costs).partition("\n\n")[0].splitlines()
    assert "| requests, a month | not measured | not measured | not measured |" in table


def test_the_document_has_a_place_for_each_part_and_is_the_same_however_often_it_is_drawn(tmp_path):
    text = DOCUMENT.read_text()
    parts = [*SCENARIOS, "targets", "machine", "estimate"]
    assert [text.count(mark) for part in parts for mark in marks(part)] == [1] * 2 * len(parts)
    document = shutil.copy(DOCUMENT, tmp_path / "performance.md")
    folder = document.with_suffix("")
    for part in parts:
        document.write_text(put_between(document.read_text(), marks(part), "None yet\n"))
    save_record(SCALE, folder)
    render(document)
    first = {path.name: path.read_bytes() for path in [document, *folder.iterdir()]}
    assert sorted(first) == ["performance.md", "scale.json", "scale.svg"]
    drawn = document.read_text()
    assert "![Seconds and memory of each stage by lines](performance/scale.svg)" in drawn
    assert [drawn.count("None yet"), drawn.count(sheet(SCALE).to_markdown())] == [len(SCENARIOS) - 1, 1]
    render(document)
    assert {path.name: path.read_bytes() for path in [document, *folder.iterdir()]} == first


def test_the_same_results_are_the_same_picture():
    [(name, image)] = plots.draw({"compare_ways": WAYS}).items()
    assert (name, image) == ("ways.svg", plots.draw({"compare_ways": WAYS})["ways.svg"])
    assert image.startswith(b"<?xml") and b"<dc:date>" not in image and b"Matplotlib" not in image
    slower = [replace(one, figures=one.figures | {"seconds": 9.0}) for one in WAYS.observations]
    assert plots.draw({"compare_ways": replace(WAYS, observations=slower)})["ways.svg"] != image
