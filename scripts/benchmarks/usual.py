"""The way `usual`: pandas and SQLAlchemy, file by file, as scripts that load such archives usually do it.

Each file is read with `read_csv` and appended with `to_sql` in chunks, whose `method` is the one that pandas'
own documentation shows for ON CONFLICT DO NOTHING. The tables and their keys are those of `limit`; the flags
that the project derives stay null.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy
from sqlalchemy.dialects.postgresql import insert

from ingestion.archive import observed_at_of
from ingestion.encoding import mend_names
from ingestion.settings import Settings
from scripts.benchmarks.limit import KEYS, TABLES, execute_in_postgres

CHUNK_ROWS = 1000
COLUMNS = [
    *("id", "stamp", "name", "latitude", "longitude", "bikes", "spaces"),
    *("installed", "locked", "temporary", "docks", "battery", "pedelecs"),
]


def archive_to_postgres(files: Sequence[Path], settings: Settings) -> dict[str, float]:
    """Bring files of an archive into keyed tables."""
    execute_in_postgres(settings, *TABLES.values(), *(key for keys in KEYS.values() for key in keys))
    given = settings.postgres_parameters()
    address = {"user": given["user"], "host": given["host"], "port": given["port"]}
    url = sqlalchemy.URL.create("postgresql+psycopg2", query=address, database=given["dbname"])
    engine = sqlalchemy.create_engine(url)
    for file in files:
        readings = _read(file)
        is_bike = readings["id"].str.startswith("fb")
        with engine.begin() as connection:
            for table, frame in {
                "bike_stations": _stations(readings[~is_bike]),
                "free_bikes": _bikes(readings[is_bike]),
            }.items():
                options: dict[str, Any] = {"if_exists": "append", "index": False, "chunksize": CHUNK_ROWS}
                frame.to_sql(table, connection, method=_insert_new, **options)
    return {}


def _read(file: Path) -> pd.DataFrame:
    """The good lines of a file, each reading once."""
    text = file.read_text(encoding="utf-8")
    lines = pd.read_csv(
        io.StringIO(text), header=0, names=COLUMNS, dtype=str, keep_default_na=False, on_bad_lines="skip"
    )
    is_good = lines["pedelecs"].notna()  # a torn line has fewer fields
    for column in ("installed", "locked", "temporary"):
        is_good &= lines[column].isin(["true", "false"])
    readings = lines[is_good].copy()
    stamp = readings["stamp"].str.split("|", expand=True)
    readings["timestamp"] = pd.to_datetime(stamp[0].astype(float), unit="s").dt.round("us")
    readings["timezone_1"] = stamp[1].astype(int)
    readings["timezone_2"] = stamp[2].astype(int)
    readings["name"] = readings["name"].replace(json.loads(mend_names(text) or "{}"))
    named = observed_at_of(file.name)
    assert named is not None
    readings["date"] = named[0].date()
    readings["processed_at"] = datetime.now(UTC).replace(tzinfo=None)
    return readings.drop_duplicates(["id", "timestamp"])


def _stations(readings: pd.DataFrame) -> pd.DataFrame:
    return _with_ids(readings).assign(
        station_id=readings["id"].astype(int),
        bikes=readings["bikes"].astype(int),
        spaces=readings["spaces"].astype(int),
        total_docks=readings["docks"].astype(int),
    )[
        [
            *("id", "station_id", "timestamp", "name", "bikes", "spaces", "date", "processed_at"),
            *("timezone_1", "timezone_2", "total_docks"),
        ]
    ]


def _bikes(readings: pd.DataFrame) -> pd.DataFrame:
    battery = readings["battery"].astype(int)
    return _with_ids(readings).assign(
        bike_id=readings["id"],
        latitude=readings["latitude"].astype(float),
        longitude=readings["longitude"].astype(float),
        battery_pct=battery.where(battery.between(0, 100)).astype("Int64"),
    )[
        [
            *("id", "bike_id", "timestamp", "name", "latitude", "longitude", "battery_pct"),
            *("date", "processed_at"),
        ]
    ]


def _with_ids(readings: pd.DataFrame) -> pd.DataFrame:
    return readings.assign(id=[str(uuid.uuid4()) for _ in range(len(readings))])


def _insert_new(table: Any, connection: Any, columns: list[str], rows: Iterable[tuple[Any, ...]]) -> int:
    values = [dict(zip(columns, row, strict=True)) for row in rows]
    result = connection.execute(insert(table.table).values(values).on_conflict_do_nothing())
    return int(result.rowcount)
