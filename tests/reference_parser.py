"""What becomes of every line of a payload, worked out once more: plain loops over Python values, no SQL.

Written from the design, the descriptions of the models and the seed `cleaning_rules` alone, so that a mistake
would have to be made twice.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from reference import is_outside

EPOCH, FIRST_MOMENT = datetime(1970, 1, 1), datetime(2008, 1, 1)
AHEAD_AT_MOST = timedelta(days=1)
MOST_COUNTED = 10_000
STAMP = "timestamp|gmt_local_diff_sec|gmt_servertime_diff_sec"
REQUIRED = ("id", STAMP, "name", "lat", "lon", "bikes", "spaces")
BATTERY = "givesbonus_acceptspedelecs_fbbattlevel"
FLAGS = ("installed", "locked", "temporary")
KNOWN = (*REQUIRED, *FLAGS, "total_docks", BATTERY, "pedelecs")
MOST_EXTRA_COLUMNS = 100

# of any width: Unicode's category Zs
_SPACES = "".join(chr(code) for code in range(0x3001) if unicodedata.category(chr(code)) == "Zs")
_LINE_ENDS = re.compile(r"\r\n|\n|\r")
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")
_FIELD = re.compile(r'"((?:[^"]|"")*)"(?=,|\Z)|([^,"]*)(?=,|\Z)')


@dataclass(frozen=True)
class Line:
    """A line received: why it is rejected, or what it tells."""

    number: int
    text: str
    reasons: tuple[str, ...] = ()
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> tuple[str, datetime]:
        """What a good line is a reading of."""
        told = dict(self.values)
        return told["id"], told["observed_at"]


def read_payload(text: str, mended_names: str | None, observed_at: datetime) -> list[Line]:
    """The lines of a payload's text, header and blank lines left out; `observed_at` is naive, in UTC."""
    lines = _LINE_ENDS.split(text.removeprefix("\ufeff"))
    header = _header(lines[0])
    mended = json.loads(mended_names) if mended_names else {}
    return [
        _read(number, line, header, mended, observed_at)
        for number, line in enumerate(lines, 1)
        if line.strip(" \t") and not (number == 1 and header is not None)
    ]


def _header(line: str) -> list[str] | None:
    return [name.strip(_SPACES) for name in line[1:].split(",")] if line.startswith("#") else None


def fields_of(line: str) -> list[str] | None:
    """The fields of a line of CSV; None where a quote is out of place."""
    fields, place = [], 0
    while match := _FIELD.match(line, place):
        fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        place = match.end() + 1
        if place > len(line):
            return fields
    return None


def _read(
    number: int, text: str, header: list[str] | None, mended: dict[str, str], observed_at: datetime
) -> Line:
    fields = fields_of(text)
    if header is None:
        return Line(number, text, ("no_header",))
    if not set(REQUIRED) <= set(header):
        return Line(number, text, ("missing_required_column",))
    if fields is None:
        return Line(number, text, ("broken_quotes",))
    if len(fields) != len(header):
        return Line(number, text, ("wrong_field_count",))
    told: dict[str, str] = {}
    for name, value in zip(header, fields, strict=True):
        told.setdefault(name, value)  # of a name that stands twice the first counts
    told["id"] = told["id"].strip(_SPACES)
    values = _values(told, mended)
    reasons = _reasons(told, values, observed_at)
    return Line(number, text, reasons) if reasons else Line(number, text, (), tuple(values.items()))


def _values(told: dict[str, str], mended: dict[str, str]) -> dict[str, Any]:
    seconds, local, server = ([*told[STAMP].split("|"), "", ""])[:3]
    is_bike = told["id"].startswith("fb")
    docks, bikes, spaces = (integer(told.get(name, "")) for name in ("total_docks", "bikes", "spaces"))
    battery = integer(told.get(BATTERY, "")) if is_bike else None
    latitude, longitude = number(told["lat"]), number(told["lon"])
    extra = sorted(name for name in told if name not in KNOWN)[:MOST_EXTRA_COLUMNS]
    return {
        "kind": "free_bike" if is_bike else "station",
        "id": told["id"],
        "observed_at": moment_of(seconds),
        "name": mended.get(told["name"], told["name"]),
        "is_name_mended": told["name"] in mended,
        "latitude": latitude,
        "longitude": longitude,
        "bikes_count": bikes,
        "spaces_count": spaces,
        "docks_count": docks,
        "pedelecs_count": integer(told.get("pedelecs", "")),
        "battery_pct": battery if battery is not None and 0 <= battery <= 100 else None,
        **{f"is_{name}": boolean(told.get(name, "")) for name in FLAGS},
        "local_offset_seconds": integer(local),
        "server_offset_seconds": integer(server),
        "is_outside_service_area": None not in (latitude, longitude) and is_outside((latitude, longitude)),
        "extra_fields": {name: told[name] for name in extra} or None,
        "is_over_capacity": None not in (docks, bikes) and bikes > docks,
        "has_capacity_mismatch": None not in (docks, bikes, spaces) and bikes + spaces != docks,
    }


def _reasons(told: dict[str, str], values: dict[str, Any], observed_at: datetime) -> tuple[str, ...]:
    id_reason = _id_reason(told["id"])
    moment = values["observed_at"]
    counts = [told["bikes"], told["spaces"], *(told.get(name) or "0" for name in ("total_docks", "pedelecs"))]
    broken = {
        "missing_id": id_reason == "missing_id",
        "oversized_id": id_reason == "oversized_id",
        "unknown_id": id_reason == "unknown_id",
        "implausible_timestamp": moment is None or not FIRST_MOMENT <= moment <= observed_at + AHEAD_AT_MOST,
        "unreadable_offset": None in (values["local_offset_seconds"], values["server_offset_seconds"]),
        "implausible_place": not (
            _is_within(values["latitude"], 90) and _is_within(values["longitude"], 180)
        ),
        "implausible_count": not all(_is_count(integer(count)) for count in counts),
        "unknown_boolean": any(name in told and boolean(told[name]) is None for name in FLAGS),
    }
    return tuple(reason for reason, is_broken in broken.items() if is_broken)


def _id_reason(text: str) -> str | None:
    if not text:
        return "missing_id"
    match = re.fullmatch(r"(fb)([0-9]+)|()(0|[1-9][0-9]*)", text)
    if match is None:
        return "unknown_id"
    digits, most = (match[2], 18) if match[1] else (match[4], 9)
    return "oversized_id" if len(digits) > most else None


def integer(text: str) -> int | None:
    """A whole number that fits in 32 bits, in ASCII digits; None for anything else."""
    if not _INTEGER.fullmatch(text):
        return None
    return value if -(2**31) <= (value := int(text)) < 2**31 else None


def boolean(text: str) -> bool | None:
    """True or false, in small or capital letters, spaces around them aside; None for anything else."""
    return {"true": True, "false": False}.get(text.strip(_SPACES).lower())


def number(text: str) -> float | None:
    """A finite number in ASCII digits; None for anything else."""
    if not _NUMBER.fullmatch(text):
        return None
    return value if abs(value := float(text)) != float("inf") else None


def moment_of(seconds: str) -> datetime | None:
    """Unix seconds as a moment in UTC, to the microsecond; None where they cannot be read."""
    if not _NUMBER.fullmatch(seconds):
        return None
    try:
        return EPOCH + timedelta(microseconds=round(Decimal(seconds) * 1_000_000))
    except OverflowError:
        return None


def _is_within(degrees: float | None, most: float) -> bool:
    return degrees is not None and -most <= degrees <= most


def _is_count(count: int | None) -> bool:
    return count is not None and 0 <= count <= MOST_COUNTED
