"""What every dbt model owes its readers."""

import csv
import re

import pytest
import yaml

from ingestion.settings import PROJECT_ROOT

MODELS = sorted(PROJECT_ROOT.glob("*/models/**/*.sql"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_is_described_by_its_grain_in_the_yaml_of_its_folder(path):
    described = {
        model["name"]: model
        for file in path.parent.glob("_*.yml")
        for model in yaml.safe_load(file.read_text()).get("models", [])
    }
    model = described[path.stem]
    assert model["description"].startswith("One row per ")
    if path.parent.parent.name == "landing" and "columns as in " in model["description"]:
        assert "columns" not in model  # a copy of the mart or public table that it names
    else:
        assert model["columns"] and all(column["description"] for column in model["columns"])


def described(folder):
    """{model: {column: description}} of a project's models."""
    return {
        model["name"]: {column["name"]: column["description"] for column in model.get("columns", [])}
        for file in PROJECT_ROOT.glob(f"{folder}/models/**/_*.yml")
        for model in yaml.safe_load(file.read_text()).get("models", [])
    }


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
        for test in yaml.safe_load(file.read_text())["unit_tests"]
        for row in test["expect"]["rows"]
    ]
    tested = {code for row in expected for code in re.findall(r"\w+", row.get("rejection_reasons", ""))}
    tested |= {re.sub("^(is|has)_", "", name) for row in expected for name in row if row[name] is True}
    assert {rule["code"] for rule in rules} - tested == set()


def test_exposures_name_every_public_table_mart_and_landing_model():
    exposed = {
        reference
        for file in PROJECT_ROOT.glob("*/models/**/_*exposures.yml")
        for exposure in yaml.safe_load(file.read_text())["exposures"]
        for reference in exposure["depends_on"]
    }
    patterns = (
        "exports/models/*/*.sql",
        "transform/models/marts/*/*.sql",
        "transform/models/landing/*/*.sql",
    )
    named = {f"ref('{path.stem}')" for pattern in patterns for path in PROJECT_ROOT.glob(pattern)}
    assert exposed == named
