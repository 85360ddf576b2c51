"""The project's own generic dbt tests find what they are for, and nothing else."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dbt.cli.main import dbtRunner

from scripts.run_dbt import _dbt_environment, _folders

CASES = {
    # a key twice, and one that is not whole
    "test_unique_key('(from (values (1, 2), (1, 2), (1, 3), (null, 4)) as rows (dt, a))', ['dt', 'a'])": 2,
    "test_coordinates_on_earth('(from (values (1, 51, 17), (1, 91, 17), (1, 51, null)) "
    "as rows (dt, latitude, longitude))')": 2,
    # three of four on one day, one of four on the other
    "test_within_capacity('(from (values (1, 11, 10), (1, 11, 10), (1, 11, 10), (1, 9, 10), "
    "(2, 11, 10), (2, 1, 1), (2, 0, 1), (2, 1, null)) as rows (dt, bikes_count, docks_count))', 50)": 1,
    "test_monotone_time('(from (values (1, 1), (2, 3), (3, 2), (4, null), (5, 4)) as rows (seen, newest))', "
    "'newest', 'seen')": 1,
    "test_few_stations_frozen('(from (values (1, 10, 5, null), (2, 10, 6, null)) "
    "as rows (dt, stations_count, frozen_stations_count, frozen_station_ids))', 50)": 1,
    # one of severity reject, one that is a flag, one that nobody knows
    "test_known_rejection_reasons('(select 1 as dt, "
    "[\\'no_header\\', \\'name_mended\\', \\'made_up\\'] as reasons)', 'reasons', ref('cleaning_rules'))": 2,
}


def failures(settings, cases):
    """How many rows each of some calls of generic tests finds."""
    counted = " union all ".join(
        f"select {number} as number, count(*) as failures from (\n{{{{ {case} }}}}\n)"
        for number, case in enumerate(cases)
    )
    inline = ("--limit", "10", "--inline", f"{counted} order by 1")
    with _dbt_environment(settings):
        done = dbtRunner().invoke(["--quiet", "show", *inline, *_folders(settings, "transform")])
    assert done.success, done.exception
    return [int(row["failures"]) for row in done.result.results[0].agate_table.rows]


def test_generic_tests_find_what_they_are_for(workplace):
    assert dict(zip(CASES, failures(workplace.settings, CASES), strict=True)) == CASES


@pytest.mark.parametrize(("days", "found"), [([[1, 2], [1, 2]], 0), ([[1, 2], [3, 3, 3], [4, None], [5]], 2)])
def test_a_key_is_looked_at_day_by_day(workplace, tmp_path, days, found):
    objects = [tmp_path / f"dt=2025-05-{number + 10}" / "data.parquet" for number in range(len(days))]
    for path, values in zip(objects, days, strict=True):
        path.parent.mkdir()
        pq.write_table(pa.table({"a": values}), path)
    listed = ", ".join(f"\\'{path}\\'" for path in objects)
    read = f"(select * from read_parquet([{listed}], hive_partitioning = true)) as days_built"
    assert failures(workplace.settings, [f"test_unique_key('{read}', ['dt', 'a'])"]) == [found]
