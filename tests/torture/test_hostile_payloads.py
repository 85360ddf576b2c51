"""Payloads of every kind, valid and hostile: every line of them is accounted for, and is what a second
parser, written from the documentation, says it is."""

from __future__ import annotations

import multiprocessing
import random
import resource
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.configuration
import pytest
from compiled_models import CompiledModels
from conftest import Torture, Workplace, moment, small_snapshot
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from reference_parser import BATTERY, REQUIRED, STAMP, Line, read_payload

from ingestion import wrm
from ingestion.encoding import decode
from ingestion.settings import load_settings
from scripts.simulate_feed import break_encoding

PAYLOADS_PER_EXAMPLE = 10
NOON = moment("2025-05-12 12:00:00")
GOOD = [(NOON + timedelta(hours=hour), small_snapshot(NOON + timedelta(hours=hour))) for hour in (1, 2)]
GOOD_LINES = 9 * len(GOOD)
SECONDS = NOON.timestamp()
ENCODINGS = (
    *("utf-8", "utf-8", "utf-8", "utf-8-sig", "cp1250", "iso-8859-2", "cp1252", "latin-1"),
    *("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp037"),
)
NEWLINES = ("\n", "\n", "\r\n", "\r", "\n\r", "\n\n", "\r\n\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "")
HEADER = (*REQUIRED, "installed", "locked", "temporary", "total_docks", BATTERY, "pedelecs")
STATION = {
    **{"id": "15001", STAMP: f"{SECONDS:.6f}|-7200|-3600", "name": "Rynek", "lat": "51.1", "lon": "17.03"},
    **{"bikes": "4", "spaces": "12", "installed": "true", "locked": "false", "temporary": "false"},
    **{"total_docks": "16", BATTERY: "false", "pedelecs": "0"},
}
BIKE = STATION | {"id": "fb602632", "name": "BIKE 602632", "temporary": "true", "spaces": "0", BATTERY: "73"}
NUMBERS = (
    *(
        "0",
        "-0",
        "+4",
        "-1",
        "00",
        "007",
        "1.0",
        "4.",
        ".5",
        "1e3",
        "1E-3",
        "1e308",
        "-1e308",
        "1e309",
        "1e-400",
    ),
    *(
        "9999999999999999999",
        "2147483647",
        "2147483648",
        "-2147483649",
        "10000",
        "10001",
        "99999999999999999999999",
    ),
    *(
        "NaN",
        "nan",
        "-nan",
        "inf",
        "-inf",
        "Infinity",
        "٣",
        "１２",
        "1_000",
        "0x10",
        "0b1",
        "1,5",
        "½",
        "²",
        "",
        " ",
    ),
    *(
        " 4",
        "4 ",
        "\t4",
        "4\0",
        "\0",
        "true",
        "4;5",
        "90",
        "-90",
        "90.0000001",
        "180",
        "-180.0000001",
        "100",
        "101",
    ),
    *(
        "1e2",
        "4e0",
        "40e-1",
        "--4",
        "- 4",
        "4-",
        "٤٢",
        "0x1p3",
        "1'000",
        "1 000",
        "$4",
        "null",
        "NULL",
        "None",
    ),
)
IDS = (
    *("15001", "15002", "fb602632", "fb1", "0", "00", "015001", "-15001", "+15001", "15001.0", "999999999"),
    *(
        "1000000000",
        "fb999999999999999999",
        "fb1000000000000000000",
        "fb",
        "FB602632",
        "fb 1",
        "fb-1",
        "fb0x1",
    ),
    *(
        "fb01",
        "f602632",
        " 15001",
        "15001 ",
        "\u00a015001",
        "１５００１",
        "٣",
        "fb٣",
        "",
        " ",
        "\t",
        "1_5",
        "1e4",
    ),
)
STAMPS = (
    *(
        f"{SECONDS + 1.5}|-7200|-3600",
        f"{SECONDS}|-7200|-3600|9",
        f"{SECONDS}",
        f"{SECONDS}|",
        f"{SECONDS}||",
    ),
    *(
        f"{SECONDS}|-7200",
        f"{SECONDS}|1e3|0",
        f"{SECONDS}|7200.0|0",
        f"{SECONDS}| 7200|0",
        "|-7200|-3600",
        "|",
    ),
    *(f"{SECONDS}|99999999999|0", f"{SECONDS}|-2147483648|2147483647", "", "0|0|0", "-1|0|0", "1e9|0|0"),
    *("1199145600|0|0", "1199145599.999999|0|0", f"{SECONDS + 86400}|0|0", f"{SECONDS + 96400}|0|0"),
    *("9999999999|0|0", "99999999999999999999|0|0", "1e308|0|0", "nan|0|0", "inf|0|0", "-inf|0|0"),
    *(
        f"{SECONDS}.5|0|0",
        f"{SECONDS:.6f}789|0|0",
        f"{int(SECONDS)}.9999999|0|0",
        f"{int(SECONDS)}.|0|0",
        ".5|0|0",
    ),
    *("253402300800|0|0", "9223372036854775807|0|0", "1747051200947741|0|0", "2025-05-12 12:00:00|0|0"),
    *("1_747_051_200|0|0", "+1747051200|0|0", " 1747051200|0|0", "1747051200 |0|0", "0x68220000|0|0"),
    *("٣|0|0", "1747051200,5|0|0", "1747051200.5.5|0|0", "1747051200.12345678901234567890|0|0"),
)
NAMES = (
    *("Rynek", "Dworzec Główny, południe", 'Zwany "Rondem"', "Żółć / Gęśla jaźń", break_encoding("Ślężna")),
    *(
        break_encoding(break_encoding("Przejście")),
        "'; drop table x; --",
        "<script>alert(1)</script>",
        "=1+1",
    ),
    *("@SUM(A1)", "\u202eerawtfos", "\u200b", "\u2066x\u2069", "e\u0301", "🚲", "\ufeff", "\ud7ff", "\ufffd"),
    *(
        "",
        " ",
        "  Rynek ",
        "a" * 3000,
        "\0",
        "x\0y",
        "\\",
        "\\N",
        "\\u0000",
        "{}",
        "[1]",
        "%s",
        "$1",
        "{{ x }}",
    ),
    *("null", "NULL", '"', '""', "a\tb", "\x1b[31m", "\x7f", "\x85", "\u2028", "ﬁ", "Ĺš", "Ã³", "Å¼", "ĂłĹ‚"),
)
BOOLEANS = (
    "true",
    "false",
    "TRUE",
    "True",
    "t",
    "1",
    "0",
    "yes",
    "",
    " ",
    "true ",
    "maybe",
    "\0",
    "tru\u0435",
)
POOLS = {"id": IDS, STAMP: STAMPS, "name": NAMES}
POOLS |= dict.fromkeys(("installed", "locked", "temporary"), BOOLEANS)
EXTRA_COLUMNS = (
    "zone",
    "",
    " ",
    "ID",
    "Zażółć",
    "id",
    "name",
    "bikes",
    "zone",
    "a,b",
    'a"b',
    "#id",
    "\0",
    "x" * 300,
)
BARE_LINES = (
    "",
    " ",
    "\t",
    " \t ",
    "\u00a0",
    "\0",
    ",",
    '"',
    '""',
    '"\n"',
    "#",
    "#id",
    "," * 12,
    "," * 200,
    "x" * 5000,
)
MANGLINGS = (
    *(
        lambda line: line[: len(line) // 2],
        lambda line: f"{line},",
        lambda line: f",{line}",
        lambda line: f"{line}\r",
    ),
    *(
        lambda line: f'"{line}',
        lambda line: f'{line}"',
        lambda line: line.replace(",", ";"),
        lambda line: f" {line} ",
    ),
    *(
        lambda line: line.replace(",", '",'),
        lambda line: line.replace(",", ',"'),
        lambda line: line.replace(",", "\0"),
    ),
    *(lambda line: f'"{line}"', lambda line: line.upper(), lambda line: line[::-1], lambda line: line * 2),
)


def quoted(value: str, *, always: bool = False) -> str:
    """A field as well-meaning writers of CSV give it."""
    doubled = value.replace('"', '""')
    return f'"{doubled}"' if always or any(mark in value for mark in ',"') else value


@st.composite
def lines(draw: st.DrawFn, header: list[str]) -> str:
    """One line under a header: as it should be, with odd values in some fields, or none at all."""
    if draw(st.integers(0, 11)) == 0:
        return draw(st.sampled_from(BARE_LINES) | st.text(max_size=40))
    told = dict(draw(st.sampled_from((STATION, STATION, BIKE))))
    for name in draw(st.lists(st.sampled_from(header), max_size=2)):
        told[name] = draw(st.sampled_from(POOLS.get(name, NUMBERS)) | st.text(max_size=8))
    writer = draw(st.sampled_from((quoted, quoted, quoted, partial(quoted, always=True), str)))
    line = ",".join(writer(told.get(name, "7")) for name in header)
    return draw(st.sampled_from(MANGLINGS))(line) if draw(st.integers(0, 9)) == 0 else line


@st.composite
def headers(draw: st.DrawFn) -> list[str]:
    """The names of the columns: as they should be, in another order, too many or too few."""
    names = list(HEADER)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        random.Random(draw(st.integers(0, 99))).shuffle(names)
    if kind in (0, 1):
        names += draw(st.lists(st.sampled_from(EXTRA_COLUMNS) | st.text(max_size=8), max_size=3))
    if kind == 2:
        for name in draw(st.lists(st.sampled_from(HEADER), min_size=1, max_size=2, unique=True)):
            names.remove(name)
    if kind == 3:
        place = draw(st.integers(0, len(names) - 1))
        names[place] = draw(st.sampled_from((str.upper, str.title, "{} ".format, " {}".format)))(names[place])
    return names


@st.composite
def texts(draw: st.DrawFn) -> str:
    header = draw(headers())
    first = draw(st.sampled_from(("#", "#", "#", "#", "#", "#", "#", "", " #", "##", "# ", '"#')))
    writer = draw(st.sampled_from((quoted, quoted, str)))
    parts = [first + ",".join(map(writer, header)), *draw(st.lists(lines(header), max_size=4))]
    newline = draw(st.sampled_from(NEWLINES))
    ends = st.sampled_from(NEWLINES) if draw(st.integers(0, 5)) == 0 else st.just(newline)
    return "".join(part + draw(ends) for part in parts)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Bytes that a feed may give, or that nobody would."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return draw(st.text(max_size=100)).encode()
    payload = draw(texts()).encode(draw(st.sampled_from(ENCODINGS)), "replace")
    if kind == 2:
        return payload[: draw(st.integers(0, len(payload)))]
    if kind in (3, 4):
        place = draw(st.integers(0, len(payload)))
        return payload[:place] + draw(st.binary(max_size=8)) + payload[place:]
    return payload


def bronze_row(number: int, payload: bytes) -> dict[str, Any]:
    observed_at = NOON + timedelta(seconds=number)
    return wrm.payload_row(payload, "feed", None, observed_at, observed_at + timedelta(seconds=1))


def expected_lines(row: dict[str, Any]) -> list[Line]:
    text = decode(row["payload"], row["encoding"])
    return read_payload(text, row["mended_names"], row["observed_at"].replace(tzinfo=None))


COLUMNS = (
    *("kind", "id", "observed_at", "name", "is_name_mended", "latitude", "longitude", "bikes_count"),
    *("spaces_count", "docks_count", "pedelecs_count", "battery_pct", "is_installed", "is_locked"),
    *("is_temporary", "local_offset_seconds", "server_offset_seconds", "is_outside_service_area"),
    *("extra_fields", "is_over_capacity", "has_capacity_mismatch"),
)


def found_lines(models: CompiledModels) -> dict[Any, list[Line]]:
    """By the moment of the snapshot."""
    found: dict[Any, list[Line]] = {}
    for at, number, reasons, rejected, *values in models.rows(
        f"select snapshot_observed_at, line_number, rejection_reasons, rejected_line, {', '.join(COLUMNS)} "
        "from int_wrm__lines_parsed order by snapshot_observed_at, line_number"
    ):
        told = () if reasons else tuple(zip(COLUMNS, values, strict=True))
        found.setdefault(at, []).append(Line(number, rejected, tuple(reasons), told))
    return found


def without_text(line: Line) -> Line:
    """Of a good line the text is in its payload alone."""
    return line if line.reasons else Line(line.number, None, (), line.values)  # type: ignore[arg-type]


def check(models: CompiledModels, payloads: list[bytes]) -> Counter[str]:
    """Hold all that is promised of some payloads, among two good ones; how many lines became what."""
    rows = [bronze_row(number, payload) for number, payload in enumerate(payloads)]
    good = [wrm.payload_row(text.encode(), "feed", None, at, at) for at, text in GOOD]
    models.build(rows + good)
    found = found_lines(models)
    expected = [expected_lines(row) for row in rows]
    for row, wanted in zip(rows, expected, strict=True):
        got = found.pop(row["observed_at"].replace(tzinfo=None), [])
        assert [without_text(line) for line in got] == [without_text(line) for line in wanted], row["payload"]
    assert [len(got) for got in found.values()] == [9] * len(GOOD)
    assert models.unaccounted() == []
    return account(models, [line for wanted in expected for line in wanted])


def account(models: CompiledModels, wanted: list[Line]) -> Counter[str]:
    good = [line for line in wanted if not line.reasons]
    kept = len({line.key for line in good})
    counts = Counter(
        lines=len(wanted), kept=kept, duplicates=len(good) - kept, rejected=len(wanted) - len(good)
    )
    assert models.rows(
        "select lines_count, station_readings_count + free_bike_readings_count, duplicates_count, "
        "quarantined_count from fct_daily_processing"
    ) == [(counts["lines"] + GOOD_LINES, kept + GOOD_LINES, counts["duplicates"], counts["rejected"])]
    assert models.rows(
        "select count(*) from int_wrm__lines_quarantined where len(rejection_reasons) = 0 or line is null"
    ) == [(0,)]
    return counts


def test_every_line_of_any_payload_is_what_a_second_parser_says(
    workplace: Workplace, torture: Torture, tmp_path: Path, record_property: Any
) -> None:
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)  # it keeps notes, which the tree does not want
    models = CompiledModels(workplace.settings)
    total: Counter[str] = Counter()

    @seed(torture.seed)
    @settings(
        max_examples=-(-torture.payloads // PAYLOADS_PER_EXAMPLE),
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(payloads(), min_size=PAYLOADS_PER_EXAMPLE, max_size=PAYLOADS_PER_EXAMPLE))
    def holds(made_up: list[bytes]) -> None:
        total.update(check(models, made_up), payloads=len(made_up))

    holds()
    for name, count in total.items():
        record_property(name, count)
    assert total["payloads"] >= torture.payloads
    assert min(total["kept"], total["duplicates"], total["rejected"]) > 0


def test_every_odd_value_in_every_column_is_judged_as_documented(workplace: Workplace) -> None:
    odd = [
        ",".join(quoted((line | {name: value})[column]) for column in HEADER)
        for line in (STATION, BIKE)
        for name in HEADER
        for value in (*POOLS.get(name, NUMBERS), *BOOLEANS)
    ]
    payload = "\n".join(["#" + ",".join(HEADER), *odd, *BARE_LINES]).encode()
    assert check(CompiledModels(workplace.settings), [payload])["lines"] > len(odd)


MEGABYTE = 1024 * 1024
MOST_MEGABYTES = (
    1024 + 1024
)  # DuckDB's limit by default, and as much again for Python, strings and their patterns
STATION_LINE = ",".join(STATION[name] for name in HEADER)
HEADER_LINE = "#" + ",".join(HEADER)
HUGE: dict[str, Callable[[], str]] = {
    "200 000 lines": lambda: f"{HEADER_LINE}\n" + f"{STATION_LINE}\n" * 200_000,
    "fields of a megabyte": lambda: f"{HEADER_LINE}\n" + STATION_LINE.replace("Rynek", "x" * MEGABYTE) + "\n",
    "20 000 columns": lambda: f"{HEADER_LINE}{',c' * 20_000}\n" + f"{STATION_LINE}{',7' * 20_000}\n" * 20,
    "a line of 31 MB": lambda: f"{HEADER_LINE}\n" + "x" * (31 * MEGABYTE),
    "31 MB of commas": lambda: f"{HEADER_LINE}\n" + "," * (31 * MEGABYTE),
}


def take_huge(name: str, results: Any) -> None:
    """In a process of its own: what became of a huge payload beside good ones, and the memory it took."""
    payload = HUGE[name]().encode()
    lines = len(payload.splitlines()) - 1
    good = [wrm.payload_row(text.encode(), "feed", None, at, at) for at, text in GOOD]
    models = CompiledModels(load_settings())
    models.build([bronze_row(0, payload), *good])
    [(received,)] = models.rows("select lines_count from fct_daily_processing")
    [(kept,)] = models.rows(
        "select count(*) from int_wrm__lines_parsed "
        f"where not is_rejected and snapshot_observed_at > timestamp '{NOON:%Y-%m-%d %H:%M:%S}'"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    results.put((received - lines, kept, models.unaccounted(), peak))


@pytest.mark.sampled
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_payload_takes_bounded_memory_and_hurts_nobody(
    workplace: Workplace, name: str, record_property: Any
) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=take_huge, args=(name, results))
    process.start()
    received, kept, unaccounted, peak = results.get(timeout=120)
    process.join()
    record_property(f"megabytes: {name}", peak)
    assert (received, kept, unaccounted) == (GOOD_LINES, GOOD_LINES, [])
    assert peak < MOST_MEGABYTES
