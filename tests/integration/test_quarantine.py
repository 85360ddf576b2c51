"""Bad input of every kind lands in quarantine with its reason, and every line is accounted for."""

import csv

import pytest
from conftest import moment, raw_name, small_snapshot

from ingestion import wrm
from ingestion.settings import PROJECT_ROOT
from scripts.run_dbt import run_dbt
from scripts.run_pipeline import transform
from scripts.simulate_feed import HEADER

STATION = "15001,1747051200.9|-7200|-3600,Rynek,51.1,17.0,4,12,true,false,false,16,false,0"  # at 12:00 UTC
# (rule, the whole payload): header and one line, which breaks just this rule
BAD_PAYLOADS = [
    ("no_header", f"{HEADER[1:]}\n"),
    ("missing_required_column", f"{HEADER.replace('spaces', 'places')}\n{STATION}\n"),
    ("broken_quotes", f"{HEADER}\n{STATION.replace('Rynek', chr(34) + 'Rynek')}\n"),
    ("wrong_field_count", f"{HEADER}\n{STATION},7\n"),
    ("missing_id", f"{HEADER}\n{STATION.replace('15001', '')}\n"),
    ("oversized_id", f"{HEADER}\n{STATION.replace('15001', '1500100000')}\n"),
    ("unknown_id", f"{HEADER}\n{STATION.replace('15001', 'S-15001')}\n"),
    ("implausible_timestamp", f"{HEADER}\n{STATION.replace('1747051200.9', '1747159809')}\n"),
    ("unreadable_offset", f"{HEADER}\n{STATION.replace('-7200', 'summer')}\n"),
    ("implausible_place", f"{HEADER}\n{STATION.replace('51.1', '151.1')}\n"),
    ("implausible_count", f"{HEADER}\n{STATION.replace(',4,12,', ',-4,12,')}\n"),
    ("unknown_boolean", f"{HEADER}\n{STATION.replace('true', 'perhaps')}\n"),
]


def test_every_kind_of_bad_input_is_quarantined_with_its_reason_and_accounted_for(workplace, archive):
    with open(PROJECT_ROOT / "transform/seeds/cleaning_rules.csv", encoding="utf-8", newline="") as file:
        of_failures = {"nothing_known", "no_known_column", "oversized_file"}  # see test_failures.py
        rules = {rule["code"] for rule in csv.DictReader(file) if rule["severity"] == "reject"} - of_failures
    assert {rule for rule, _ in BAD_PAYLOADS} == rules
    texts = {raw_name(f"2025-05-12 12:{minute:02}:00"): text for minute, (_, text) in enumerate(BAD_PAYLOADS)}
    good = {raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00"))}
    wrm.import_archive(workplace.settings, str(archive(**texts, **good)))
    transform(workplace.settings)  # with the conservation test
    quarantined = workplace.lake_rows(
        "select snapshot_observed_at, line_number, rejection_reasons, line from int_wrm__lines_quarantined "
        "order by 1, 2"
    )
    assert [(at.minute, reasons) for at, _, reasons, _ in quarantined] == [
        (minute, [rule]) for minute, (rule, _) in enumerate(BAD_PAYLOADS)
    ]
    lines = [text.splitlines()[-1] for _, text in BAD_PAYLOADS]
    assert [line for *_, line in quarantined] == lines
    [(received, kept, rejected, reasons)] = workplace.lake_rows(
        "select lines_count, station_readings_count + free_bike_readings_count, quarantined_count, "
        "json_keys(quarantined_by_reason) from fct_daily_processing"
    )
    assert (received, kept, rejected, set(reasons)) == (len(lines) + 9, 9, len(lines), rules)
    [(validity,)] = workplace.lake_rows("select validity_pct from fct_daily_data_quality")
    assert validity == pytest.approx(100 * 9 / received)


@pytest.mark.parametrize("text", ["#id", "#" + ",a" * 5000 + "\n" + "x\n" * 3000, '"' * 3000 + "\n,,,\n\x00"])
def test_an_odd_payload_never_stops_the_good_ones_of_its_day(workplace, archive, text):
    folder = archive(
        **{
            raw_name("2025-05-12 12:00:00"): text,
            raw_name("2025-05-12 13:00:00"): small_snapshot(moment("2025-05-12 13:00:00")),
        }
    )
    wrm.import_archive(workplace.settings, str(folder))
    models = ("int_wrm__lines_parsed", "int_wrm__station_readings_deduplicated")
    run_dbt(workplace.settings, "transform", "--quiet", "build", "--select", *models)
    assert workplace.lake_rows("select count(*) from int_wrm__station_readings_deduplicated") == [(6,)]
