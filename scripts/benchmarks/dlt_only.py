"""The way `dlt-only`: rows as dicts straight into PostgreSQL by dlt's merge, as a user of dlt would begin.

dlt has its defaults here, not the project's `.dlt/config.toml`: whoever calls this stands in another folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import dlt

from ingestion.archive import observed_at_of
from ingestion.encoding import mend_names
from ingestion.settings import Settings

DATASET = "dlt_only"


def archive_to_postgres(files: Sequence[Path], settings: Settings) -> dict[str, float]:
    """Merge files of an archive into the tables of the schema `dlt_only`."""
    stations: list[dict[str, Any]] = []
    bikes: list[dict[str, Any]] = []
    for file in files:
        for line in _good_lines(file):
            if line["id"].startswith("fb"):
                bikes.append(_bike(line))
            else:
                stations.append(_station(line))
    pipeline = dlt.pipeline(
        "bench",
        destination=dlt.destinations.postgres(_url(settings)),
        dataset_name=DATASET,
    )
    tables = {"bike_stations": (stations, "station_id"), "free_bikes": (bikes, "bike_id")}
    pipeline.run(
        [
            dlt.resource(rows, name=table, primary_key=(key, "timestamp"), write_disposition="merge")
            for table, (rows, key) in tables.items()
        ]
    )
    return {}


def _url(settings: Settings) -> str:
    """The warehouse as dlt takes it: it would unquote a socket's folder in the place of the host."""
    given = settings.postgres_parameters()
    query = urlencode({"host": given["host"], "port": given["port"]})
    return f"postgresql://{given['user']}:{given['password']}@localhost/{given['dbname']}?{query}"


def _good_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The good lines of a file, by the names of its header, with what they share."""
    text = file.read_text(encoding="utf-8")
    mended: dict[str, str] = json.loads(mend_names(text) or "{}")
    named = observed_at_of(file.name)
    assert named is not None
    lines = csv.DictReader(text.splitlines())
    _, packed, *_ = lines.fieldnames or ()
    for line in lines:
        flags = (line["installed"], line["locked"], line["temporary"])
        # a torn line has fewer fields
        if line["pedelecs"] is None or not all(flag in ("true", "false") for flag in flags):
            continue
        seconds, timezone_1, timezone_2 = line[packed].split("|")
        yield line | {
            "id": line["#id"],
            "timestamp": datetime.fromtimestamp(float(seconds), UTC),
            "name": mended.get(line["name"], line["name"]),
            "date": named[0].date(),
            "timezone_1": int(timezone_1),
            "timezone_2": int(timezone_2),
            "processed_at": datetime.now(UTC),
        }


def _station(line: dict[str, Any]) -> dict[str, Any]:
    shared = ("timestamp", "name", "date", "timezone_1", "timezone_2", "processed_at")
    return {name: line[name] for name in shared} | {
        "station_id": int(line["id"]),
        "bikes": int(line["bikes"]),
        "spaces": int(line["spaces"]),
        "total_docks": int(line["total_docks"]),
    }


def _bike(line: dict[str, Any]) -> dict[str, Any]:
    battery = int(line["givesbonus_acceptspedelecs_fbbattlevel"])
    return {name: line[name] for name in ("timestamp", "name", "date", "processed_at")} | {
        "bike_id": line["id"],
        "latitude": float(line["lat"]),
        "longitude": float(line["lon"]),
        "battery_pct": battery if battery >= 0 else None,
    }
