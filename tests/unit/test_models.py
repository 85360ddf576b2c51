"""What every dbt model owes its readers."""

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
