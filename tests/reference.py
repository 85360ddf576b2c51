"""What the marts should hold, worked out once more from raw texts: plain loops over Python values, no SQL.

Written from the descriptions of the models alone, so that a mistake would have to be made twice. It is slow
and simple on purpose. Each function gives rows as dictionaries, named as the mart's columns; times are naive
datetimes in UTC unless they say Warsaw.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import ftfy.bad_codecs

ftfy.bad_codecs.ok()  # names the codec sloppy-windows-1250
Row = dict[str, Any]

WARSAW = ZoneInfo("Europe/Warsaw")
SEEDS = Path(__file__).parent.parent / "transform" / "seeds"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOLDS_AT_MOST = timedelta(minutes=15)
SAME_PLACE_METERS = 50
EARTH_RADIUS_METERS = 6371008.8
RANKED = 10
RANKED_MEASURES = (
    *("movements_count", "departures_count", "arrivals_count", "turnover", "average_bikes"),
    *("empty_minutes", "full_minutes", "bikes_available_pct", "spaces_available_pct"),
)


def _seed(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO((SEEDS / f"{name}.csv").read_text())))


CADENCE = timedelta(minutes=float(_seed("snapshot_cadences")[0]["minutes"]))
WEIGHTS = {row["dimension"]: float(row["weight"]) for row in _seed("quality_weights")}
BOXES = [
    {name: float(row[name]) for name in row if name.startswith(("min_", "max_"))}
    for row in _seed("service_areas")
]


def is_outside(place: tuple[float, float]) -> bool:
    """Whether a place lies in none of the service area's boxes."""
    latitude, longitude = place
    return not any(
        box["min_latitude"] <= latitude <= box["max_latitude"]
        and box["min_longitude"] <= longitude <= box["max_longitude"]
        for box in BOXES
    )


def meters(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Great-circle distance by the haversine formula."""
    (phi, lam), (other_phi, other_lam) = (map(math.radians, place) for place in (one, other))
    half = math.sin((other_phi - phi) / 2) ** 2
    half += math.cos(phi) * math.cos(other_phi) * math.sin((other_lam - lam) / 2) ** 2
    return 2 * EARTH_RADIUS_METERS * math.asin(min(1.0, math.sqrt(half)))


def minutes(length: timedelta) -> float:
    return length / timedelta(minutes=1)


def share(part: float | timedelta, whole: float | timedelta) -> float | None:
    """As per cent, None where there is nothing to share."""
    return 100 * (part / whole) if whole else None  # type: ignore[operator]


# --------------------------------------------------------------------------------------------- raw texts


@dataclass(frozen=True)
class Reading:
    """A good line: of a docking station, or of a free bike (with a battery then, and a text for its id)."""

    id: Any
    observed_at: datetime
    name: str
    place: tuple[float, float]
    bikes: int
    spaces: int
    docks: int
    battery: int | None
    is_mended: bool

    @property
    def is_station(self) -> bool:
        return isinstance(self.id, int)


@dataclass
class Snapshot:
    """One raw text."""

    observed_at: datetime
    payload_bytes: int
    good: list[Reading] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)  # the reason of each

    @property
    def bikes(self) -> dict[str, Reading]:
        return {reading.id: reading for reading in self.good if not reading.is_station}


def read_texts(texts: Iterable[tuple[datetime, str]]) -> list[Snapshot]:
    """The snapshots of raw texts with the moments of their observation, in order."""
    return [_read(observed_at, text) for observed_at, text in sorted(texts)]


def _read(observed_at: datetime, text: str) -> Snapshot:
    snapshot = Snapshot(observed_at.replace(tzinfo=None), len(text.encode()))
    lines = list(csv.reader(StringIO(text)))
    header = [name.lstrip("#") for name in lines[0]]
    for fields in lines[1:]:
        if not fields:
            continue
        if len(fields) != len(header):
            snapshot.rejected.append("wrong_field_count")
        elif not {fields[header.index(name)] for name in ("installed", "locked", "temporary")} <= {
            "true",
            "false",
        }:
            snapshot.rejected.append("unknown_boolean")
        else:
            snapshot.good.append(_reading(dict(zip(header, fields, strict=True))))
    return snapshot


def _reading(line: dict[str, str]) -> Reading:
    [stamp] = (value for name, value in line.items() if name.startswith("timestamp"))
    microseconds = int(Decimal(stamp.split("|")[0]) * 1_000_000)
    is_bike = line["id"].startswith("fb")
    battery = int(line["givesbonus_acceptspedelecs_fbbattlevel"]) if is_bike else -1
    name, is_mended = _mended(line["name"])
    return Reading(
        id=line["id"] if is_bike else int(line["id"]),
        observed_at=datetime(1970, 1, 1) + timedelta(microseconds=microseconds),
        name=name,
        place=(float(line["lat"]), float(line["lon"])),
        bikes=int(line["bikes"]),
        spaces=int(line["spaces"]),
        docks=int(line["total_docks"]),
        battery=battery if 0 <= battery <= 100 else None,
        is_mended=is_mended,
    )


def _mended(name: str) -> tuple[str, bool]:
    """A name that was UTF-8 read as Windows-1250 is read the right way."""
    try:
        mended = name.encode("sloppy-windows-1250").decode("utf-8")
    except UnicodeError:
        return name, False
    return mended, mended != name


def stations_of(snapshots: list[Snapshot]) -> dict[int, list[Reading]]:
    """Each station's readings in order of time, each moment once."""
    return _by_id(snapshots, lambda reading: reading.is_station)


def bikes_of(snapshots: list[Snapshot]) -> dict[str, list[Reading]]:
    """Each free bike's readings in order of time, each moment once."""
    return _by_id(snapshots, lambda reading: not reading.is_station)


def _by_id(snapshots: list[Snapshot], wanted: Any) -> dict[Any, list[Reading]]:
    found: dict[Any, dict[datetime, Reading]] = {}
    for snapshot in snapshots:
        for reading in snapshot.good:
            if wanted(reading):
                found.setdefault(reading.id, {})[reading.observed_at] = reading
    return {key: [moments[moment] for moment in sorted(moments)] for key, moments in sorted(found.items())}


# -------------------------------------------------------------------------------------------- local days


def warsaw(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC).astimezone(WARSAW).replace(tzinfo=None)


def local_day(moment: datetime) -> date:
    return warsaw(moment).date()


def midnight(day: date) -> datetime:
    """The beginning of a local day, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=WARSAW).astimezone(UTC).replace(tzinfo=None)


def day_ends(day: date) -> tuple[datetime, datetime]:
    return midnight(day), midnight(day + DAY)


def hours_of(day: date) -> Iterator[datetime]:
    """Where each hour of a local day begins, in UTC: 23, 24 or 25 of them."""
    hour, end = day_ends(day)
    while hour < end:
        yield hour
        hour += HOUR


def local_days_held(readings: Iterable[Reading]) -> list[date]:
    """The local days in which any of the readings may hold."""
    days = set()
    for reading in readings:
        days |= {local_day(reading.observed_at), local_day(reading.observed_at + HOLDS_AT_MOST)}
    return sorted(days)


# ------------------------------------------------------------------------------------------ availability


@dataclass
class Held:
    """A reading and the time in which it is the station's known state."""

    reading: Reading
    start: datetime
    end: datetime

    def within(self, start: datetime, end: datetime) -> timedelta:
        return max(timedelta(), min(self.end, end) - max(self.start, start))


def _held(readings: list[Reading]) -> list[Held]:
    until = [later.observed_at for later in readings[1:]] + [datetime.max]
    return [
        Held(reading, reading.observed_at, min(next_at, reading.observed_at + HOLDS_AT_MOST))
        for reading, next_at in zip(readings, until, strict=True)
    ]


def _changes(readings: list[Reading], day: date) -> list[tuple[datetime, int]]:
    """When the number of bikes changed on a local day, and by how much."""
    start, end = day_ends(day)
    changes = []
    for earlier, later in pairwise(readings):
        if start <= later.observed_at < end and earlier.observed_at >= start - HOUR:
            changes.append((later.observed_at, later.bikes - earlier.bikes))
    return changes


def _availability(
    held: list[Held], changes: list[tuple[datetime, int]], start: datetime, end: datetime
) -> Row | None:
    """A station between two moments; None where its state is not known for any time."""
    parts = [(each.reading, each.within(start, end)) for each in held if each.within(start, end)]
    if not parts:
        return None
    observed = sum((length for _, length in parts), timedelta())
    empty = sum((length for reading, length in parts if reading.bikes == 0), timedelta())
    full = sum((length for reading, length in parts if reading.spaces == 0), timedelta())
    inside = [change for moment, change in changes if start <= moment < end]
    departures = -sum(change for change in inside if change < 0)
    arrivals = sum(change for change in inside if change > 0)
    own = [reading.observed_at for reading, _ in parts if reading.observed_at >= start]
    last = parts[-1][0]
    return {
        "name": last.name,
        "docks_count": last.docks,
        "observed_minutes": minutes(observed),
        "average_bikes": sum(reading.bikes * minutes(length) for reading, length in parts)
        / minutes(observed),
        "min_bikes": min(reading.bikes for reading, _ in parts),
        "max_bikes": max(reading.bikes for reading, _ in parts),
        "average_spaces": sum(reading.spaces * minutes(length) for reading, length in parts)
        / minutes(observed),
        "min_spaces": min(reading.spaces for reading, _ in parts),
        "max_spaces": max(reading.spaces for reading, _ in parts),
        "empty_minutes": minutes(empty),
        "full_minutes": minutes(full),
        "bikes_available_pct": share(observed - empty, observed),
        "spaces_available_pct": share(observed - full, observed),
        "departures_count": departures,
        "arrivals_count": arrivals,
        "turnover": (departures + arrivals) / (2 * last.docks) if last.docks else None,
        "readings_count": len(own),
        "first_observed_at": own[0] if own else None,
        "last_observed_at": own[-1] if own else None,
    }


def hourly_station_availability(snapshots: list[Snapshot]) -> list[Row]:
    rows = []
    for station_id, readings in stations_of(snapshots).items():
        held = _held(readings)
        for day in local_days_held(readings):
            changes = _changes(readings, day)
            held_of_day = [each for each in held if each.within(*day_ends(day))]
            for hour in hours_of(day):
                row = _availability(held_of_day, changes, hour, hour + HOUR)
                if row:
                    rows.append(
                        {
                            "dt": day,
                            "station_id": station_id,
                            "hour_started_at": hour,
                            "hour_started_at_warsaw": warsaw(hour),
                        }
                        | row
                    )
    return rows


def daily_station_availability(snapshots: list[Snapshot]) -> list[Row]:
    rows = []
    for station_id, readings in stations_of(snapshots).items():
        held = _held(readings)
        for day in local_days_held(readings):
            row = _availability(held, _changes(readings, day), *day_ends(day))
            if row:
                row["movements_count"] = row["departures_count"] + row["arrivals_count"]
                rows.append({"dt": day, "station_id": station_id} | row)
    return rows


def daily_network(snapshots: list[Snapshot]) -> list[Row]:
    stations = daily_station_availability(snapshots)
    hours = hourly_station_availability(snapshots)
    rows = []
    for day in sorted({row["dt"] for row in stations}):
        of_day = [row for row in stations if row["dt"] == day]
        profile = [
            _network_hour(hour, [row for row in hours if row["hour_started_at"] == hour])
            for hour in sorted({row["hour_started_at"] for row in hours if row["dt"] == day})
        ]
        peak = max(profile, key=lambda hour: hour["departures"] + hour["arrivals"])  # of equals the first
        own = [row for row in of_day if row["readings_count"]]
        rows.append(
            {
                "dt": day,
                "stations_count": len(of_day),
                "docks_count": sum(row["docks_count"] for row in of_day),
                "average_docked_bikes": sum(row["average_bikes"] for row in of_day),
                "average_spaces": sum(row["average_spaces"] for row in of_day),
                "departures_count": sum(row["departures_count"] for row in of_day),
                "arrivals_count": sum(row["arrivals_count"] for row in of_day),
                "empty_pct": _pooled(of_day, "empty_minutes"),
                "full_pct": _pooled(of_day, "full_minutes"),
                "peak_hour_started_at": peak["hour_started_at"],
                "peak_hour_started_at_warsaw": warsaw(peak["hour_started_at"]),
                "stations_empty_at_peak_pct": peak["empty_pct"],
                "stations_full_at_peak_pct": peak["full_pct"],
                "hour_profile": [_profiled(hour) for hour in profile],
            }
            | _free_bikes(snapshots, day)
            | {
                "readings_count": sum(row["readings_count"] for row in of_day),
                "first_observed_at": min((row["first_observed_at"] for row in own), default=None),
                "last_observed_at": max((row["last_observed_at"] for row in own), default=None),
            }
        )
    return rows


def _pooled(rows: list[Row], column: str) -> float | None:
    return share(sum(row[column] for row in rows), sum(row["observed_minutes"] for row in rows))


def _network_hour(hour: datetime, rows: list[Row]) -> Row:
    return {
        "hour_started_at": hour,
        "average_bikes": sum(row["average_bikes"] for row in rows),
        "average_spaces": sum(row["average_spaces"] for row in rows),
        "departures": sum(row["departures_count"] for row in rows),
        "arrivals": sum(row["arrivals_count"] for row in rows),
        "empty_pct": _pooled(rows, "empty_minutes"),
        "full_pct": _pooled(rows, "full_minutes"),
    }


def _profiled(hour: Row) -> Row:
    """An hour as it stands in the JSON of hour_profile."""
    started_at = hour["hour_started_at"]
    rounded = {name: round(value, 3) for name, value in hour.items() if isinstance(value, float)}
    return (
        {"hour_started_at_warsaw": f"{warsaw(started_at):%Y-%m-%dT%H:%M}"}
        | hour
        | rounded
        | {"hour_started_at": f"{started_at:%Y-%m-%dT%H:%MZ}"}
    )


def _free_bikes(snapshots: list[Snapshot], day: date) -> Row:
    """Free bikes of a local day, counted in each snapshot that no later one of the UTC day repeats."""
    inside: set[str] = set()
    outside: set[str] = set()
    told_last: dict[tuple[date, Reading], datetime] = {}
    for snapshot in snapshots:
        for reading in snapshot.bikes.values():
            if local_day(reading.observed_at) == day and snapshot.observed_at.date() in (day - DAY, day):
                told_last[snapshot.observed_at.date(), reading] = snapshot.observed_at
    counts: dict[datetime, set[str]] = {moment: set() for moment in told_last.values()}
    for (_, reading), moment in told_last.items():
        if is_outside(reading.place):
            outside.add(reading.id)
        else:
            inside.add(reading.id)
            counts[moment].add(reading.id)
    sizes = [len(count) for count in counts.values()]
    return {
        "free_bikes_count": len(inside),
        "average_free_bikes": sum(sizes) / len(sizes) if sizes else None,
        "max_free_bikes": max(sizes, default=None),
        "free_bikes_outside_area_count": len(outside),
    }


def daily_station_ranking(snapshots: list[Snapshot]) -> list[Row]:
    stations = daily_station_availability(snapshots)
    rows = []
    for day in sorted({row["dt"] for row in stations}):
        for measure in RANKED_MEASURES:
            known = [row for row in stations if row["dt"] == day and row[measure] is not None]
            for direction, sign in (("bottom", 1), ("top", -1)):
                ranked = sorted(known, key=lambda row: (sign * round(row[measure], 9), row["station_id"]))
                for number, row in enumerate(ranked[:RANKED], start=1):
                    rows.append(
                        {
                            "dt": day,
                            "measure": measure,
                            "direction": direction,
                            "station_rank": number,
                            "station_id": row["station_id"],
                            "name": row["name"],
                            "value": row[measure],
                        }
                    )
    return rows


# -------------------------------------------------------------------------------------------- free bikes


@dataclass
class Spell:
    """A free bike standing still."""

    bike_id: str
    readings: list[Reading]

    @property
    def first(self) -> Reading:
        return self.readings[0]

    @property
    def last(self) -> Reading:
        return self.readings[-1]

    @property
    def last_battery(self) -> int | None:
        return _last_battery(self.readings)


def _last_battery(readings: list[Reading]) -> int | None:
    return next((reading.battery for reading in reversed(readings) if reading.battery is not None), None)


def spells_of(snapshots: list[Snapshot]) -> list[Spell]:
    """Every spell, in order of their beginnings."""
    spells: list[Spell] = []
    latest: dict[str, Spell] = {}
    was_missing: dict[str, bool] = {}
    for snapshot in snapshots:
        for bike_id in latest:
            if bike_id not in snapshot.bikes:
                was_missing[bike_id] = True
        for bike_id, reading in snapshot.bikes.items():
            spell = latest.get(bike_id)
            if spell and spell.last.observed_at == reading.observed_at:
                continue  # the feed stood still: this is no other sighting
            if spell and not _ends(spell.last, reading, was_missing[bike_id]):
                spell.readings.append(reading)
            else:
                latest[bike_id] = Spell(bike_id, [reading])
                spells.append(latest[bike_id])
            was_missing[bike_id] = False
    return spells


def _ends(earlier: Reading, later: Reading, was_missing: bool) -> bool:
    if meters(earlier.place, later.place) > SAME_PLACE_METERS:
        return True
    return was_missing and later.observed_at - earlier.observed_at > HOLDS_AT_MOST


def free_bike_idle_spells(snapshots: list[Snapshot]) -> list[Row]:
    spells = spells_of(snapshots)
    rows = []
    for day in sorted({local_day(reading.observed_at) for spell in spells for reading in spell.readings}):
        start, end = day_ends(day)
        last_snapshot = [each for each in snapshots if local_day(each.observed_at) == day][-1]
        for spell in spells:
            until = [reading for reading in spell.readings if reading.observed_at < end]
            of_day = [reading for reading in until if reading.observed_at >= start]
            if not of_day:
                continue
            first, last = until[0], until[-1]
            present = last_snapshot.bikes.get(spell.bike_id)
            rows.append(
                {
                    "dt": day,
                    "bike_id": spell.bike_id,
                    "started_at": first.observed_at,
                    "last_observed_at": last.observed_at,
                    "idle_minutes": minutes(last.observed_at - first.observed_at),
                    "idle_minutes_of_day": minutes(last.observed_at - max(start, first.observed_at)),
                    "has_ended": present is None or present not in of_day,
                    "latitude": last.place[0],
                    "longitude": last.place[1],
                    "is_outside_service_area": is_outside(last.place),
                    "first_battery_pct": first.battery,
                    "last_battery_pct": _last_battery(until),
                    "readings_count": len(of_day),
                }
            )
    return rows


def free_bike_trips(snapshots: list[Snapshot]) -> list[Row]:
    spells = spells_of(snapshots)
    rows = []
    for bike_id in sorted({spell.bike_id for spell in spells}):
        for before, after in pairwise(spell for spell in spells if spell.bike_id == bike_id):
            distance = meters(before.last.place, after.first.place)
            duration = after.first.observed_at - before.last.observed_at
            if distance <= SAME_PLACE_METERS or duration > DAY:
                continue
            rows.append(
                {
                    "dt": local_day(after.first.observed_at),
                    "bike_id": bike_id,
                    "departed_at": before.last.observed_at,
                    "arrived_at": after.first.observed_at,
                    "duration_minutes": minutes(duration),
                    "start_latitude": before.last.place[0],
                    "start_longitude": before.last.place[1],
                    "end_latitude": after.first.place[0],
                    "end_longitude": after.first.place[1],
                    "distance_meters": distance,
                    "speed_kmh": (distance / 1000) / (duration / HOUR),
                    "start_battery_pct": before.last_battery,
                    "end_battery_pct": after.first.battery,
                    "is_outside_service_area": is_outside(before.last.place) or is_outside(after.first.place),
                    "is_inferred": True,
                }
            )
    return rows


# --------------------------------------------------------------------------------------- station history


def bike_stations(snapshots: list[Snapshot]) -> list[Row]:
    """Periods as the end of the last UTC day knows them; each day's end decides who has vanished."""
    periods: dict[int, list[Row]] = {}
    places: dict[int, tuple[float, float]] = {}  # where each station stood last
    newest = datetime.min
    days = sorted({snapshot.observed_at.date() for snapshot in snapshots})
    for day in days:
        for station_id, readings in stations_of(
            [s for s in snapshots if s.observed_at.date() == day]
        ).items():
            for reading in readings:
                _tell(periods.setdefault(station_id, []), reading, places.get(station_id, reading.place))
                places[station_id] = reading.place
                newest = max(newest, reading.observed_at)
        for told in periods.values():
            if not told[-1]["has_vanished"] and newest - told[-1]["last_observed_at"] > DAY:
                told[-1] |= {"has_vanished": True, "valid_to": told[-1]["last_observed_at"]}
    for told in periods.values():
        for earlier, later in pairwise(told):
            earlier["is_current"] = False
            earlier["valid_to"] = earlier["valid_to"] or later["valid_from"]
        told[-1]["is_current"] = not told[-1]["has_vanished"]
    return [{"dt": days[-1]} | period for _, told in sorted(periods.items()) for period in told]


def _tell(told: list[Row], reading: Reading, place_before: tuple[float, float]) -> None:
    """Take a station's next reading into its periods."""
    current = told[-1] if told else None
    if current and reading.observed_at <= current["last_observed_at"]:
        return  # the feed stood still over midnight
    kinds = ["appeared"]
    moved_meters = None
    if current:
        moved_meters = meters(place_before, reading.place)
        changes = {
            "reappeared": current["has_vanished"],
            "renamed": current["name"] != reading.name,
            "moved": moved_meters > SAME_PLACE_METERS,
            "docks_changed": current["docks_count"] != reading.docks,
        }
        kinds = [kind for kind, holds in changes.items() if holds]
    if current and not kinds:
        current["last_observed_at"] = reading.observed_at
        current["readings_count"] += 1
        return
    told.append(
        {
            "station_id": reading.id,
            "period_number": len(told) + 1,
            "name": reading.name,
            "latitude": reading.place[0],
            "longitude": reading.place[1],
            "docks_count": reading.docks,
            "valid_from": reading.observed_at,
            "valid_to": None,
            "is_current": True,
            "has_vanished": False,
            "change_kinds": ",".join(kinds),
            "has_moved": "moved" in kinds,
            "moved_meters": moved_meters,
            "is_outside_service_area": is_outside(reading.place),
            "last_observed_at": reading.observed_at,
            "readings_count": 1,
        }
    )


# ------------------------------------------------------------------------- what came in, and its quality


def _utc_days(snapshots: list[Snapshot]) -> dict[date, list[Snapshot]]:
    days: dict[date, list[Snapshot]] = {}
    for snapshot in snapshots:
        days.setdefault(snapshot.observed_at.date(), []).append(snapshot)
    return days


def hourly_coverage(snapshots: list[Snapshot]) -> list[Row]:
    """Every hour of each UTC day observed, from the first observation until the next one is due."""
    first = snapshots[0].observed_at
    end = snapshots[-1].observed_at + CADENCE
    hours = [
        datetime.combine(day, datetime.min.time()) + n * HOUR
        for day in _utc_days(snapshots)
        for n in range(24)
    ]
    rows = []
    for hour in hours:
        if not first - HOUR < hour < end:
            continue
        seen = [s.observed_at for s in snapshots if hour <= s.observed_at < hour + HOUR]
        expected = (min(hour + HOUR, end) - max(first, hour)) / CADENCE
        rows.append(
            {
                "dt": hour.date(),
                "hour_started_at": hour,
                "expected_count": expected,
                "received_count": len(seen),
                "unchanged_count": 0,
                "failed_attempts_count": 0,
                "coverage_pct": min(100.0, 100 * len(seen) / expected),
                "first_observed_at": min(seen, default=None),
                "last_observed_at": max(seen, default=None),
            }
        )
    return rows


def coverage_gaps(snapshots: list[Snapshot]) -> list[Row]:
    rows = []
    for started_at, ended_at in pairwise(snapshot.observed_at for snapshot in snapshots):
        cadences = math.floor((ended_at - started_at) / CADENCE + 0.5)
        if cadences >= 2:
            rows.append(
                {
                    "dt": ended_at.date(),
                    "started_at": started_at,
                    "ended_at": ended_at,
                    "gap_minutes": minutes(ended_at - started_at),
                    "missing_snapshots_count": cadences - 1,
                }
            )
    return rows


def daily_station_readings(snapshots: list[Snapshot]) -> list[Row]:
    rows = []
    for day, of_day in _utc_days(snapshots).items():
        stations = stations_of(of_day)
        readings = [reading for each in stations.values() for reading in each]
        if readings:
            rows.append(
                {
                    "dt": day,
                    "readings_count": len(readings),
                    "stations_count": len(stations),
                    "first_observed_at": min(reading.observed_at for reading in readings),
                    "last_observed_at": max(reading.observed_at for reading in readings),
                    "average_bikes": sum(reading.bikes for reading in readings) / len(readings),
                    "average_spaces": sum(reading.spaces for reading in readings) / len(readings),
                }
            )
    return rows


def daily_processing(snapshots: list[Snapshot]) -> list[Row]:
    """Without what depends on the clock: seconds and fetch times."""
    rows = []
    for day, of_day in _utc_days(snapshots).items():
        good = sum(len(snapshot.good) for snapshot in of_day)
        rejected = Counter(reason for snapshot in of_day for reason in snapshot.rejected)
        stations = sum(len(readings) for readings in stations_of(of_day).values())
        bikes = sum(len(readings) for readings in bikes_of(of_day).values())
        lines = good + rejected.total()
        rows.append(
            {
                "dt": day,
                "snapshots_count": len(of_day),
                "payload_bytes": sum(snapshot.payload_bytes for snapshot in of_day),
                "lines_count": lines,
                "station_readings_count": stations,
                "free_bike_readings_count": bikes,
                "duplicates_count": good - stations - bikes,
                "quarantined_count": rejected.total(),
                "quarantined_by_reason": dict(rejected),
                "mended_names_count": sum(reading.is_mended for s in of_day for reading in s.good),
                "kept_pct": round(100 * (stations + bikes) / lines, 3) if lines else None,
                "attempts_count": 0,
                "failed_attempts_count": 0,
                "unchanged_attempts_count": 0,
                "fetch_success_pct": None,
            }
        )
    return rows


def daily_data_quality(snapshots: list[Snapshot]) -> list[Row]:
    coverage = hourly_coverage(snapshots)
    processing = {row["dt"]: row for row in daily_processing(snapshots)}
    rows = []
    for day, of_day in _utc_days(snapshots).items():
        counts = processing[day]
        good = counts["lines_count"] - counts["quarantined_count"]
        readings = [reading for each in stations_of(of_day).values() for reading in each]
        over = [reading for reading in readings if reading.bikes > reading.docks]
        mismatched = [reading for reading in readings if reading.bikes + reading.spaces != reading.docks]
        outside = [reading for reading in readings if is_outside(reading.place)]
        flagged = {(r.id, r.observed_at) for r in [*over, *mismatched, *outside]}
        hours = [row for row in coverage if row["dt"] == day]
        received = sum(min(row["received_count"], row["expected_count"]) for row in hours)
        scores = {
            "completeness": share(received, sum(row["expected_count"] for row in hours)),
            "validity": share(good, counts["lines_count"]),
            "uniqueness": share(good - counts["duplicates_count"], good),
            "consistency": share(len(readings) - len(flagged), len(readings)),
        }
        known = {name: score for name, score in scores.items() if score is not None}
        frozen = frozen_stations(snapshots, day)
        bikes = [reading for each in bikes_of(of_day).values() for reading in each]
        rows.append(
            {"dt": day}
            | {f"{name}_pct": score for name, score in scores.items()}
            | {
                "quality_score": sum(WEIGHTS[name] * score for name, score in known.items())
                / sum(WEIGHTS[name] for name in known),
                "stations_count": len({reading.id for reading in readings}),
                "frozen_stations_count": len(frozen),
                "frozen_station_ids": frozen,
                "stale_feed_minutes": minutes(_stale_feed(snapshots, day)),
                "mended_names_count": counts["mended_names_count"],
                "over_capacity_readings_count": len(over),
                "capacity_mismatch_readings_count": len(mismatched),
                "stations_outside_area_count": len({reading.id for reading in outside}),
                "bikes_outside_area_count": len({bike.id for bike in bikes if is_outside(bike.place)}),
            }
        )
    return rows


def frozen_stations(snapshots: list[Snapshot], day: date) -> list[int]:
    """Stations seen over 23 of the 24 hours up to the day's last reading, always with the same bikes and
    spaces; none where no station changed.
    """
    until = [snapshot for snapshot in snapshots if snapshot.observed_at.date() <= day]
    last = max(readings[-1].observed_at for readings in stations_of(until).values())
    same, others = [], []
    for station_id, readings in stations_of(until).items():
        since = [reading for reading in readings if reading.observed_at > last - DAY]
        states = {(reading.bikes, reading.spaces) for reading in since}
        if len(states) > 1:
            others.append(station_id)
        elif since and since[-1].observed_at - since[0].observed_at >= 23 * HOUR:
            same.append(station_id)
    return same if others else []


def _stale_feed(snapshots: list[Snapshot], day: date) -> timedelta:
    """How long the newest reading of a UTC day was over 15 minutes old when a snapshot was seen; what one
    snapshot says holds until the next of the day, at most 15 minutes.
    """
    stale = timedelta()
    newest = datetime.max
    of_day = [snapshot for snapshot in snapshots if snapshot.observed_at.date() == day]
    until = [later.observed_at for later in of_day[1:]] + [datetime.max]
    for snapshot, next_at in zip(of_day, until, strict=True):
        moments = [reading.observed_at for reading in snapshot.good]
        newest = max(moments if newest == datetime.max else [newest, *moments])
        if snapshot.observed_at - newest > HOLDS_AT_MOST:
            stale += min(next_at - snapshot.observed_at, HOLDS_AT_MOST)
    return stale
