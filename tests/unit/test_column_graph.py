"""Digests of columns and rows: what a change of a query changes, and what leaves them as they are."""

import pytest
from sqlglot import parse_one
from sqlglot.optimizer.qualify import qualify

from scripts.column_graph import AnyTable, Part, Shape, shape_of_query

SCHEMA = {
    "main": {"readings": dict.fromkeys(("day", "id", "bikes", "is_bad"), "int"), "names": {"id": "int"}}
}
EVERY = ("day", "id", "bikes", "readings_count")
BASE = """
with source as (
    select * from main.readings
),
good as (
    select day, id, bikes + 1 as bikes from source where not is_bad
),
final as (
    select day, id, sum(bikes) as bikes, count(*) as readings_count from good group by day, id
)
select * from final
"""


def shape(sql, inputs=None):
    query = qualify(parse_one(sql, dialect="duckdb"), dialect="duckdb", schema=SCHEMA)
    return shape_of_query(query, AnyTable() if inputs is None else inputs)


def difference(before, after):
    """Columns that differ or are on one side only, and `*` where the rows differ."""
    old, new = shape(before), shape(after)
    names = [*old.columns, *(name for name in new.columns if name not in old.columns)]
    columns = [
        name
        for name in names
        if old.columns.get(name, Part("")).digest != new.columns.get(name, Part("")).digest
    ]
    return columns + (["*"] if old.rows.digest != new.rows.digest else [])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("good", "kept", []),
        ("with source", "-- of the feed\nwith source", []),
        ("select * from final", "select * from final order by day", []),
        ("sum(bikes) as bikes", "sum( (bikes) )  as bikes", []),
        ("where not is_bad", "where (not (is_bad))", []),
        ("count(*) as readings_count", "count(*) as readings_count, max(day) as newest", ["newest"]),
        ("count(*) as readings_count", "count(*) as readings", ["readings_count", "readings"]),
        ("bikes + 1 as bikes", "bikes + 2 as bikes", ["bikes"]),
        ("sum(bikes) as bikes", "max(bikes) as bikes", ["bikes"]),
        # what aggregates look at
        ("not is_bad", "is_bad", ["bikes", "readings_count", "*"]),
        ("where not is_bad", "where not is_bad and bikes > 3", ["bikes", "readings_count", "*"]),
        ("group by day, id", "group by all", ["*", "bikes", "readings_count"]),
        ("select * from final", "select distinct * from final", ["*"]),
        ("select * from final", "select * from final limit 1", ["*"]),
        ("select * from final", "select * from final where bikes > 1", ["*"]),
        ("select * from final", "select * from final qualify lag(id) over (order by id) > 1", ["*"]),
        ("select * from final", "select * from final union all select * from final", [*EVERY, "*"]),
    ],
)
def test_a_change_shows_in_the_columns_and_rows_it_makes_differently(old, new, expected):
    assert old in BASE
    assert sorted(difference(BASE, BASE.replace(old, new))) == sorted(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # a join on something else, an outer one, another table
        (
            "select r.id from main.readings as r join main.names as n on r.id = n.id",
            "select r.id from main.readings as r join main.names as n on r.day = n.id",
            ["*"],
        ),
        (
            "select r.id from main.readings as r join main.names as n on r.id = n.id",
            "select r.id from main.readings as r left join main.names as n on r.id = n.id",
            ["*"],
        ),
        ("select id from main.readings", "select id from main.names", ["id", "*"]),
        # a subquery in a condition
        (
            "select id from main.readings where day > (select max(day) from main.readings)",
            "select id from main.readings where day > (select max(day) from main.readings where is_bad)",
            ["*"],
        ),
        (
            "select id from main.readings where id in (select id from main.names)",
            "select id from main.readings where id not in (select id from main.names)",
            ["*"],
        ),
        # a window looks at rows, a plain value does not
        (
            "select id, lag(id) over (order by day) as previous from main.readings",
            "select id, lag(id) over (order by day) as previous from main.readings where bikes > 0",
            ["previous", "*"],
        ),
        # an aggregate that SQLGlot does not know
        (
            "select histogram(bikes) as bikes from main.readings",
            "select histogram(bikes) as bikes from main.readings where id > 0",
            ["bikes", "*"],
        ),
        # values that become rows
        (
            "select id, unnest([day]) as day from main.readings",
            "select id, unnest([day, bikes]) as day from main.readings",
            ["day", "*"],
        ),
        # a column that only distinct rows see
        (
            "select id from (select distinct id, day from main.readings) as seen",
            "select id from (select distinct id, day, bikes from main.readings) as seen",
            ["*"],
        ),
        (
            "select id from (select id, day from main.readings union select id, 1 from main.names) as seen",
            "select id from (select id, day from main.readings union select id, 2 from main.names) as seen",
            ["*"],
        ),
        # the same table twice
        (
            "select a.id from main.readings as a, main.readings as b",
            "select b.id from main.readings as a, main.readings as b",
            ["id"],
        ),
        (
            "select a.id from main.readings as a join main.readings as b on a.bikes > b.bikes",
            "select a.id from main.readings as a join main.readings as b on b.bikes > a.bikes",
            ["*"],
        ),
        (
            "select id from main.names where exists (select 1 from main.readings as r where r.id = names.id)",
            "select id from main.names where exists (select 1 from main.readings as r where r.id = r.id)",
            ["*"],
        ),
        # windows with names
        (
            "select id, lag(id) over w as before from main.readings window w as (order by day)",
            "select id, lag(id) over w as before from main.readings window w as (order by bikes)",
            ["before"],
        ),
        (
            "select id from main.readings qualify lag(id) over w = 1 window w as (order by day)",
            "select id from main.readings qualify lag(id) over w = 1 window w as (order by bikes)",
            ["*"],
        ),
        # what a table is taken through
        ("select id from main.readings", "select id from main.readings tablesample 10%", ["*"]),
        # a column that nothing reads
        (
            "select id from (select id, day from main.readings) as seen",
            "select id from (select id, bikes as day from main.readings) as seen",
            [],
        ),
        # sides of a union are put together by position, or by name
        (
            "select id, day from main.readings union all select id, day from main.readings",
            "select id, day from main.readings union all select day, id from main.readings",
            ["id", "day"],
        ),
        (
            "select id, day from main.readings union all by name select id, day from main.readings",
            "select id, day from main.readings union all by name select day, id from main.readings",
            [],
        ),
        (
            "select * from main.names, range(3) as numbers(number)",
            "select * from main.names, range(4) as numbers(number)",
            ["number", "*"],
        ),
    ],
)
def test_each_clause_counts_where_it_has_an_effect(before, after, expected):
    assert sorted(difference(before, after)) == sorted(expected)


def test_a_value_tells_what_it_is_made_from_and_over_which_rows_chosen_by_what():
    found = shape(BASE)
    assert found.columns["day"].columns == {("readings", "day")}
    assert (found.columns["day"].tables, found.columns["day"].chosen_by) == (set(), set())
    bikes = found.columns["bikes"]
    assert bikes.columns == {("readings", "bikes")}
    assert bikes.tables == {"readings"}
    assert bikes.chosen_by == {("readings", "day"), ("readings", "id"), ("readings", "is_bad")}
    assert found.columns["readings_count"].columns == set()
    assert found.rows.tables == {"readings"}


def test_a_change_upstream_is_in_the_digests_of_what_is_made_from_it():
    def inputs(bikes, rows):
        named = AnyTable()["readings"]
        columns = {name: named.columns[name] for name in SCHEMA["main"]["readings"]}
        return {"readings": Shape(columns | {"bikes": Part(bikes)}, Part(rows))}

    before = shape(BASE, inputs("bikes", "rows"))
    value = shape(BASE, inputs("other bikes", "rows"))
    rows = shape(BASE, inputs("bikes", "other rows"))

    def changed(after):
        return [name for name in before.columns if before.columns[name].digest != after.columns[name].digest]

    assert (changed(value), value.rows.digest == before.rows.digest) == (["bikes"], True)
    assert (changed(rows), rows.rows.digest == before.rows.digest) == (["bikes", "readings_count"], False)
