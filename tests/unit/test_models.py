"""What the dbt models owe their readers, and each other; their names are the matter of test_names.py."""

import csv
import re

import yaml

from ingestion.settings import PROJECT_ROOT


def read(file):
    return yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)  # a tenth of the time


def described(folder):
    """{model: {column: description}} of a project's models."""
    return {
        model["name"]: {column["name"]: column["description"] for column in model.get("columns", [])}
        for file in PROJECT_ROOT.glob(f"{folder}/models/**/_*.yml")
        for model in read(file).get("models", [])
    }


def unended_lists(sql):
    """Last lines of multi-line column lists that end without a comma."""
    lists = re.findall(r"^( *)select\b.*\n((?:\1 +.*\n)+?)\1from\b", sql, re.MULTILINE)
    lasts = [re.sub(r" +-- .*", "", lines.rstrip("\n").split("\n")[-1]) for _, lines in lists]
    return [last.strip() for last in lasts if not last.endswith((",", "%}"))]


def test_lists_of_columns_end_with_a_comma():
    files = [
        *PROJECT_ROOT.glob("transform/models/**/*.sql"),
        *PROJECT_ROOT.glob("transform/data_tests/*.sql"),
    ]
    assert {file.stem: unended_lists(file.read_text()) for file in files} == {file.stem: [] for file in files}
    assert unended_lists("select\n    a,\n    b -- of c\nfrom c\n") == ["b"]


def test_what_lands_is_named_after_its_public_table():
    landing = {path.stem.split("__")[1] for path in PROJECT_ROOT.glob("transform/models/landing/*/*.sql")}
    public = {path.stem for path in PROJECT_ROOT.glob("exports/models/*/*.sql")}
    assert landing == public


def test_a_public_table_describes_its_columns_as_the_mart_that_it_copies():
    marts, tables = described("transform"), described("exports")
    copies = {
        path.stem.split("__")[1]: match[1]
        for path in PROJECT_ROOT.glob("transform/models/landing/*/*.sql")
        if (match := re.search(r"meta=\{'copies': '(\w+)'\}", path.read_text()))
    }
    assert len(copies) == 14
    differing = {
        (table, column): description
        for table, mart in copies.items()
        for column, description in tables[table].items()
        if marts[mart].get(column, description) != description
    }
    assert differing == {}


def test_every_rule_of_cleaning_has_a_unit_test():
    with open(PROJECT_ROOT / "transform/seeds/cleaning_rules.csv", encoding="utf-8", newline="") as file:
        rules = list(csv.DictReader(file))
    expected = [
        row
        for file in (PROJECT_ROOT / "transform/models/staging/wrm").glob("_*unit_tests.yml")
        for test in read(file)["unit_tests"]
        for row in test["expect"]["rows"]
    ]
    tested = {code for row in expected for code in re.findall(r"\w+", row.get("rejection_reasons", ""))}
    tested |= {re.sub("^(is|has)_", "", name) for row in expected for name in row if row[name] is True}
    assert {rule["code"] for rule in rules} - tested == set()


def test_exposures_name_every_public_table_mart_and_landing_model():
    exposed = {
        reference
        for file in PROJECT_ROOT.glob("*/models/**/_*exposures.yml")
        for exposure in read(file)["exposures"]
        for reference in exposure["depends_on"]
    }
    patterns = (
        "exports/models/*/*.sql",
        "transform/models/marts/*/*.sql",
        "transform/models/landing/*/*.sql",
    )
    named = {f"ref('{path.stem}')" for pattern in patterns for path in PROJECT_ROOT.glob(pattern)}
    assert exposed == named
