"""The defects, from the operator's undocumented file to `bike_failures`."""

import random
import shutil
from datetime import timedelta

import pyarrow as pa
from conftest import moment

from ingestion import bronze, wrm
from ingestion.schemas import FAILURES
from scripts.run_pipeline import export_marts, transform

HEADER = "numer;nr roweru;opis;data zgłoszenia;status\n"
CONTRACT = [
    ("id", "uuid"),
    ("failure_id", "text"),
    ("bike_id", "text"),
    ("station_id", "text"),
    ("type", "text"),
    ("description", "text"),
    ("reported_at", "timestamp without time zone"),
    ("resolved_at", "timestamp without time zone"),
    ("status", "text"),
    ("created_at", "timestamp without time zone"),
    ("attributes", "jsonb"),
    ("date", "date"),
    ("processed_at", "timestamp without time zone"),
]


def take(workplace, observed, text, encoding="utf-8"):
    """Put a version of the file into bronze, as seen at a moment such as 2025-05-12 06:00:00."""
    observed_at = moment(observed)
    payload = text if isinstance(text, bytes) else text.encode(encoding)
    url = workplace.settings.wrm_failures_url
    row = wrm.payload_row(payload, url, None, observed_at, observed_at + timedelta(seconds=1))
    pipeline = bronze.open_pipeline(wrm.SOURCE, workplace.settings)
    table = pa.Table.from_pylist([row], schema=FAILURES)
    bronze.load_day(pipeline, observed_at.date(), {"failures": [table]})


def build(workplace):
    transform(workplace.settings)
    export_marts(workplace.settings)


def failures(workplace, columns):
    return workplace.warehouse_rows(f"select {columns} from bike_failures order by failure_id, id")


def test_bike_failures_shows_the_file_of_the_feed_under_its_contract(live_workplace):
    wrm.take_snapshot(live_workplace.settings)
    build(live_workplace)
    columns = (
        "failure_id, type, bike_id, station_id, description, reported_at::text, resolved_at::text, status, "
        "attributes"
    )
    frozen = 'Terminal nie działa, ekran "zamarzł".\nBez zmian'
    assert failures(live_workplace, columns) == [
        (
            *("2025/0411", "rower", "602632", None, "Przebita dętka", "2025-05-11 08:15:00"),
            *("2025-05-12 14:00:00", "usunięta", {"Dzielnica": "Krzyki"}),
        ),
        (
            *("2025/0412", "stacja", None, "15014", frozen, "2025-05-12 00:00:00"),
            *(None, "w trakcie", {}),
        ),
        (
            *("2025/0413", "rower", "600043", "15002", "Luźny łańcuch", "2025-05-12 19:40:00"),
            *(None, "nowa", {"Dzielnica": "Stare Miasto"}),
        ),
    ]
    assert (
        live_workplace.warehouse_rows(
            "select column_name::text, data_type::text from information_schema.columns "
            "where table_schema = 'public' and table_name = 'bike_failures' order by ordinal_position"
        )
        == CONTRACT
    )
    indexed = live_workplace.warehouse_rows(
        "select indexdef from pg_indexes where tablename = 'bike_failures'"
    )
    assert {row[0].split(" USING ")[1] for row in indexed} == {
        *("btree (id)", "btree (failure_id)", "btree (status)"),
        *("btree (bike_id)", "btree (station_id)", "btree (reported_at)"),
    }


def test_a_repeated_file_adds_no_rows_and_the_first_sight_stays(workplace):
    text = HEADER + "1;57001;Przebita dętka;2025-05-11;nowa\n;57002;Bez siodełka;2025-05-11;nowa\n"
    take(workplace, "2025-05-12 06:00:00", text)
    build(workplace)
    columns = "id, failure_id, description, status, created_at"
    before = failures(workplace, columns)
    assert [row[1:] for row in before] == [
        ("1", "Przebita dętka", "nowa", moment("2025-05-12 06:00:00").replace(tzinfo=None)),
        (None, "Bez siodełka", "nowa", moment("2025-05-12 06:00:00").replace(tzinfo=None)),
    ]
    take(workplace, "2025-05-12 09:00:00", text)
    take(workplace, "2025-05-13 06:00:00", text)
    build(workplace)
    assert failures(workplace, columns) == before
    assert (
        failures(workplace, "date::text, processed_at::text") == [("2025-05-13", "2025-05-13 06:00:01")] * 2
    )
    days = "select dt::text, count(*) from int_wrm__failures_deduplicated group by all order by all"
    assert workplace.lake_rows(days) == [("2025-05-12", 2), ("2025-05-13", 2)]


def test_a_changed_status_updates_the_row_and_what_is_no_longer_listed_stays(workplace):
    take(workplace, "2025-05-12 06:00:00", HEADER + "1;57001;Dętka;2025-05-11;nowa\n2;57002;Rama;;nowa\n")
    build(workplace)
    before = failures(workplace, "id, failure_id, created_at")
    take(workplace, "2025-05-13 06:00:00", HEADER + "1;57001;Dętka;2025-05-11;usunięta\n3;57003;;;nowa\n")
    build(workplace)
    assert failures(workplace, "failure_id, status, created_at::text, date::text") == [
        ("1", "usunięta", "2025-05-12 06:00:00", "2025-05-13"),
        ("2", "nowa", "2025-05-12 06:00:00", "2025-05-12"),
        ("3", "nowa", "2025-05-13 06:00:00", "2025-05-13"),
    ]
    assert failures(workplace, "id, failure_id, created_at")[:2] == before


def test_an_older_file_that_is_exported_late_changes_the_first_sight_alone(workplace):
    take(workplace, "2025-05-13 06:00:00", HEADER + "1;57001;Dętka;2025-05-11;usunięta\n")
    build(workplace)
    take(workplace, "2025-05-12 06:00:00", HEADER + "1;57001;Dętka;2025-05-11;nowa\n")
    build(workplace)
    assert failures(workplace, "status, created_at::text, date::text") == [
        ("usunięta", "2025-05-12 06:00:00", "2025-05-13")
    ]


def test_a_file_that_is_withdrawn_leaves_what_the_others_say(workplace):
    take(workplace, "2025-05-12 06:00:00", HEADER + "1;57001;Dętka;2025-05-11;nowa\n")
    take(workplace, "2025-05-13 06:00:00", HEADER + "1;57001;Dętka;2025-05-11;usunięta\n2;57002;;;nowa\n")
    build(workplace)
    shutil.rmtree(workplace.lake_folder / "bronze/wrm/failures/dt=2025-05-13")
    build(workplace)
    assert failures(workplace, "failure_id, status, date::text") == [("1", "nowa", "2025-05-12")]


def test_encodings_of_polish_offices_are_read(workplace):
    encodings = ("cp1250", "iso-8859-2", "utf-16", "utf-8-sig")
    for day, encoding in enumerate(encodings, 10):
        text = (
            "Numer usterki;Stacja;Opis;Zgłoszono;Dzielnica\r\n"
            f"{encoding};15001;Źle świeci żółta lampka;12.05.2025 7:30;Śródmieście\r\n"
        )
        take(workplace, f"2025-05-{day} 06:00:00", text, encoding)
    build(workplace)
    columns = "failure_id, station_id, description, reported_at::text, attributes"
    assert failures(workplace, columns) == [
        (
            *(encoding, "15001", "Źle świeci żółta lampka"),
            *("2025-05-12 07:30:00", {"Dzielnica": "Śródmieście"}),
        )
        for encoding in sorted(encodings)
    ]


def test_unknown_columns_and_unreadable_values_end_in_attributes(workplace):
    far_too_long = "x" * 1_000_000
    take(
        workplace,
        "2025-05-12 06:00:00",
        "numer|rower|opis|data_zgloszenia|Lp|Lp|\\u0000\0|\n"
        f"1|{far_too_long}|a\0b|przedwczoraj|1|2|\\u0000\0\\|c\n",
    )
    build(workplace)
    columns = "failure_id, bike_id, description, reported_at, attributes"
    assert failures(workplace, columns) == [
        (
            *("1", None, "ab", None),
            {
                **{"rower": far_too_long, "data_zgloszenia": "przedwczoraj", "Lp": "1", "Lp #6": "2"},
                **{"\\u0000": "\\u0000\\", "column #8": "c"},
            },
        )
    ]


def test_garbage_hurts_nothing_and_the_good_rows_of_its_day_arrive(workplace):
    noise = random.Random(7)
    good = HEADER + "1;57001;Dętka;2025-05-11;nowa\n"
    take(workplace, "2025-05-12 06:00:00", good)
    for minute, payload in enumerate([noise.randbytes(100_000), b"", b"\0" * 10_000, b'"\n;,' * 10_000]):
        take(workplace, f"2025-05-12 06:1{minute}:00", payload)
    take(workplace, "2025-05-12 06:20:00", HEADER.encode() + b'2;57002;"' + noise.randbytes(50_000))
    build(workplace)
    assert failures(workplace, "failure_id, description")[0] == ("1", "Dętka")
    [(rejected, unexplained)] = workplace.lake_rows(
        "select count(*), count(*) filter (len(rejection_reasons) = 0) from int_wrm__failures_quarantined"
    )
    assert rejected > 0 and unexplained == 0


def test_rejected_records_are_quarantined_with_their_text_and_reasons(workplace):
    take(workplace, "2025-05-12 06:00:00", HEADER + "1;57001;Dętka\n;;;2025-05-11;nowa\n2;57002;;;nowa\n")
    take(workplace, "2025-05-12 07:00:00", "ala;ma\nkota;dziś\n")
    build(workplace)
    assert failures(workplace, "failure_id") == [("2",)]
    assert workplace.lake_rows(
        "select file_observed_at::varchar, record_number, rejection_reasons, record "
        "from int_wrm__failures_quarantined order by 1, 2"
    ) == [
        ("2025-05-12 06:00:00", 2, ["wrong_field_count"], "1;57001;Dętka"),
        ("2025-05-12 06:00:00", 3, ["nothing_known"], ";;;2025-05-11;nowa"),
        ("2025-05-12 07:00:00", 1, ["no_known_column"], "ala;ma"),
        ("2025-05-12 07:00:00", 2, ["no_known_column"], "kota;dziś"),
    ]
    assert (
        workplace.lake_rows(
            "select unnest(rejection_reasons) as code from int_wrm__failures_quarantined "
            "except select code from cleaning_rules where severity = 'reject'"
        )
        == []
    )
