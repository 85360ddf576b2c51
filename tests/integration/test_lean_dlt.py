import json
from datetime import date

import dlt
import pyarrow as pa
import pytest

from ingestion import bronze, lean_dlt
from ingestion.schemas import FETCH_ATTEMPTS

ATTEMPT = {"resource": "station_snapshots", "url": "http://feed", "attempt_number": 1, "is_unchanged": False}


@pytest.fixture
def reads(monkeypatch):
    """What dlt has read of a lake that stays as it is."""
    reads = []

    def noting(name, read):
        def call(*arguments):
            reads.append(name)
            return read(*arguments)

        return call

    monkeypatch.setattr(lean_dlt, "_read_versions", noting("versions", lean_dlt._read_versions))
    monkeypatch.setattr(lean_dlt, "_read_schema", noting("schema", lean_dlt._read_schema))
    return reads


def load(workplace, day):
    table = pa.Table.from_pylist([ATTEMPT], schema=FETCH_ATTEMPTS)
    bronze.load_day(bronze.open_pipeline("wrm", workplace.settings), day, {"fetch_attempts": [table]})


def days_in_bronze(workplace):
    return sorted(path.name for path in workplace.lake_folder.glob("bronze/wrm/fetch_attempts/dt=*"))


def test_what_stays_as_it_is_is_read_once(workplace, reads):
    load(workplace, date(2025, 5, 12))
    load(workplace, date(2025, 5, 13))
    assert sorted(set(reads)) == ["schema", "versions"]
    reads.clear()
    load(workplace, date(2025, 5, 14))
    assert reads == []
    assert days_in_bronze(workplace) == ["dt=2025-05-12", "dt=2025-05-13", "dt=2025-05-14"]


def test_a_schema_that_the_lake_has_lost_is_written_again(workplace):
    load(workplace, date(2025, 5, 12))
    load(workplace, date(2025, 5, 13))
    [schema] = workplace.lake_folder.glob("bronze/wrm/_dlt_version/*")
    schema.unlink()
    load(workplace, date(2025, 5, 14))
    assert len(list(workplace.lake_folder.glob("bronze/wrm/_dlt_version/*"))) == 1


def test_the_layout_of_an_older_dlt_is_brought_up_to_date(workplace):
    init = workplace.lake_folder / "bronze/wrm/init"
    init.parent.mkdir(parents=True)
    init.write_text("")  # as the first version left it
    load(workplace, date(2025, 5, 12))
    assert json.loads(init.read_text())["current_version"] == 2
    load(workplace, date(2025, 5, 13))
    assert len(days_in_bronze(workplace)) == 2


@pytest.mark.parametrize("place", ["file:///lake", "s3://lake", "hf://datasets/lake"])
def test_what_a_place_can_do_is_told_as_dlt_tells_it(place):
    destination = dlt.destinations.filesystem(bucket_url=place)
    told, expected = lean_dlt._capabilities(destination), lean_dlt._tell_capabilities(destination)
    assert dict(told) == dict(expected)
