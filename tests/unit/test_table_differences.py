"""What differs between two states of a table, and how it is told."""

import io
import json

import duckdb
import pytest
from rich.console import Console

from scripts.difference_report import Preview, show_text, to_json, to_markdown
from scripts.table_differences import Example, TableDifference, compare_tables

EQUAL = {"added": 0, "removed": 0, "changed": 0, "columns_changed": {}, "examples": ()}
SAME_COLUMNS = {"columns_added": {}, "columns_removed": {}, "columns_retyped": {}}


@pytest.fixture
def compare(tmp_path):
    """Compares two queries that each go through a Parquet file; None: there is no such table."""
    with duckdb.connect() as conn:

        def compare(before, after, *key, **options):
            for schema, query in (("before", before), ("after", after)):
                conn.execute(f"create schema {schema}")
                if query is not None:
                    conn.execute(f"copy ({query}) to '{tmp_path}/{schema}.parquet' (format parquet)")
                    conn.execute(f"create table {schema}.\"gold.t\" as from '{tmp_path}/{schema}.parquet'")
            return compare_tables(conn, "gold.t", key, **options)

        yield compare


def difference(rows_before, rows_after, *key, **values):
    return TableDifference("gold.t", key, rows_before, rows_after, **(EQUAL | SAME_COLUMNS | values))


def rows(*values, names="id, name, x"):
    return f"select * from (values {', '.join(values)}) as t ({names})"


def test_equal_rows_do_not_differ_whatever_their_order(compare):
    before = rows("(1, 'a', 0.1::double)", "(2, null, 'nan'::double)", "(null, 'c', null)")
    found = compare(before, f"{before} order by id desc nulls first", "id")
    assert found == difference(3, 3, "id")
    assert not found.is_different


def test_rows_are_added_removed_and_changed_by_the_key(compare):
    before = rows("(1, 'a', 1.5::double)", "(2, 'b', null)", "(3, 'c', 3)", "(5, 'e', 5)", "(6, 'f', 6)")
    after = rows("(1, 'a', 1.5::double)", "(2, 'b', 2)", "(4, 'd', 4)", "(5, null, 5)", "(6, 'g', 6.1)")
    assert compare(before, after, "id") == difference(
        5,
        5,
        "id",
        added=1,
        removed=1,
        changed=3,
        columns_changed={"name": 2, "x": 2},
        examples=(
            Example("removed", {"id": "3"}),
            Example("added", {"id": "4"}),
            Example("changed", {"id": "2"}, {"x": (None, "2.0")}),
            Example("changed", {"id": "5"}, {"name": ("e", None)}),
            Example("changed", {"id": "6"}, {"name": ("f", "g"), "x": ("6.0", "6.1")}),
        ),
    )


def test_so_many_examples_of_each_kind_are_given(compare):
    before = "select range as id, 0 as x from range(10)"
    found = compare(before, "select range as id, range % 2 as x from range(5, 15)", "id", examples=2)
    assert (found.removed, found.added, found.changed) == (5, 5, 3)
    assert [(example.kind, example.key["id"]) for example in found.examples] == [
        *(("removed", "0"), ("removed", "1"), ("added", "10"), ("added", "11")),
        *(("changed", "5"), ("changed", "7")),
    ]


def test_rows_that_share_a_key_are_paired_in_the_order_of_their_values(compare):
    before = rows("(1, 'a', 1)", "(1, 'a', 2)", "(null, 'n', 1)")
    after = rows("(1, 'a', 3)", "(1, 'a', 1)", "(1, 'a', 4)", "(null, 'n', 2)")
    assert compare(before, after, "id") == difference(
        3,
        4,
        "id",
        added=1,
        changed=2,
        columns_changed={"x": 2},
        examples=(
            Example("added", {"id": "1"}),
            Example("changed", {"id": "1"}, {"x": ("2", "3")}),
            Example("changed", {"id": None}, {"x": ("1", "2")}),
        ),
    )


def test_without_a_key_whole_rows_are_counted(compare):
    before = rows("(1, 'a', 1)", "(1, 'a', 1)", "(2, 'b', null)")
    after = rows("(1, 'a', 1)", "(2, 'b', null)", "(2, 'b', null)")
    assert compare(before, after) == difference(
        3,
        3,
        added=1,
        removed=1,
        examples=(
            Example("removed", {"id": "1", "name": "a", "x": "1"}),
            Example("added", {"id": "2", "name": "b", "x": None}),
        ),
    )


def test_columns_that_come_go_or_change_their_type_are_told(compare):
    before = "select 1 as id, 2 as number, 3 as text, 4 as gone, 5 as silver_seconds"
    after = "select 1 as id, 2::double as number, 'three' as text, 'x' as came, 6 as silver_seconds"
    found = compare(before, after, "id", left_out=("silver_seconds",))
    assert found == difference(
        1,
        1,
        "id",
        changed=1,
        columns_changed={"text": 1},
        columns_added={"came": "VARCHAR"},
        columns_removed={"gone": "INTEGER"},
        columns_retyped={"number": ("INTEGER", "DOUBLE"), "text": ("INTEGER", "VARCHAR")},
        examples=(Example("changed", {"id": "1"}, {"text": ("3", "three")}),),
    )


def test_a_key_that_only_one_side_has_does_not_pair(compare):
    found = compare("select 1 as old_id, 2 as x", "select 1 as new_id, 2 as x", "new_id")
    assert found == difference(
        1, 1, columns_added={"new_id": "INTEGER"}, columns_removed={"old_id": "INTEGER"}
    )
    assert found.is_different


def test_tables_without_a_common_column_have_no_common_row(compare):
    assert compare("select 1 as a", "select 2 as b from range(2)", "a") == difference(
        1, 2, added=2, removed=1, columns_added={"b": "INTEGER"}, columns_removed={"a": "INTEGER"}
    )


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        (
            (None, "select 7 as id"),
            difference(None, 1, "id", added=1, examples=(Example("added", {"id": "7"}),)),
        ),
        (
            ("select 7 as id", None),
            difference(1, None, "id", removed=1, examples=(Example("removed", {"id": "7"}),)),
        ),
        ((None, "select 7 as id limit 0"), difference(None, 0, "id")),
    ],
)
def test_a_table_on_one_side_only_is_a_difference(compare, sides, expected):
    found = compare(*sides, "id")
    assert found == expected
    assert found.is_different


FOUND = Preview(
    "0123456789abcdef",
    ["requirements.txt differs: packages are those of [one] side."],
    [
        difference(
            1200,
            1199,
            "id",
            removed=1,
            changed=2,
            columns_changed={"x": 2},
            columns_added={"came": "INTEGER"},
            columns_removed={"gone": "DATE"},
            columns_retyped={"x": ("INTEGER", "DOUBLE")},
            examples=(
                Example("removed", {"id": "3", "name": None}),
                Example("changed", {"id": "4", "name": "a|[b]"}, {"x": (None, "2.0")}),
                Example(
                    "changed", {"id": "5", "name": "c"}, {"x": ("-" * 60 + "1", "-" * 60 + "2" + "-" * 60)}
                ),
            ),
        ),
        TableDifference("public.t", ("id",), None, 0, **(EQUAL | SAME_COLUMNS)),
        TableDifference("public.u", ("id",), 3000, 3000, **(EQUAL | SAME_COLUMNS)),
    ],
)
LONG = f"…{'-' * 49}1 → …{'-' * 25}2{'-' * 24}…"


def text_of(found):
    with io.StringIO() as file:
        show_text(found, Console(file=file, width=120))
        return file.getvalue()


def test_differences_as_text():
    table, _, rest = text_of(FOUND).partition("gold.t\n  ")
    title = table.splitlines()[0].strip()
    assert title == "Rows of the working tree against base 0123456789, on made-up data"
    assert [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line
    ] == [
        ["gold.t", "1,200", "1,199", "0", "1", "2", "x 2, +came INTEGER, -gone DATE, x INTEGER → DOUBLE"],
        ["public.t", "no table", "0", "0", "0", "0", ""],
    ]
    assert rest.splitlines() == [
        "id 3, name null: removed",
        "  id 4, name a|[b]: x null → 2.0",
        f"  id 5, name c: x {LONG}",
        "No differences in 1 other tables, 3,000 rows.",
        "requirements.txt differs: packages are those of [one] side.",
    ]


def test_differences_as_markdown():
    assert to_markdown(FOUND).splitlines() == [
        "## Rows of the working tree against base 0123456789, on made-up data",
        "",
        "| table | rows before | rows after | added | removed | changed | columns |",
        "| --- | --: | --: | --: | --: | --: | --- |",
        "| gold.t | 1,200 | 1,199 | 0 | 1 | 2 | x 2, +came INTEGER, -gone DATE, x INTEGER → DOUBLE |",
        "| public.t | no table | 0 | 0 | 0 | 0 |  |",
        "",
        "**gold.t**",
        "",
        "- id 3, name null: removed",
        r"- id 4, name a\|\[b\]: x null → 2.0",
        f"- id 5, name c: x {LONG}",
        "",
        "No differences in 1 other tables, 3,000 rows.",
        r"requirements.txt differs: packages are those of \[one\] side.",
    ]


def test_no_differences_are_one_line_and_json_has_every_table():
    found = Preview("0123456789abcdef", [], FOUND.tables[2:])
    assert text_of(found) == "No differences in 1 tables, 3,000 rows.\n"
    assert json.loads(to_json(found)) == {
        "base": "0123456789abcdef",
        "notes": [],
        "tables": [
            {"table": "public.u", "key": ["id"], "rows_before": 3000, "rows_after": 3000}
            | EQUAL
            | SAME_COLUMNS
            | {"examples": []}
        ],
    }
