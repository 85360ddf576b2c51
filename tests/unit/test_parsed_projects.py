"""dbt's parsed projects: parsed once a process, and again when what they are made from changes."""

import os
from pathlib import Path

import pytest
from dbt.contracts.graph.manifest import Manifest

from scripts.parsed_projects import parsed_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one.sql").write_text("select 1 as n")
    return tmp_path


def touch(path: Path) -> None:
    """Have a file changed a second later than it was."""
    changed = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(changed, changed))


def test_a_project_is_parsed_once(project):
    first = parsed_project(project, {"DATA_DIR"}, Manifest)
    assert isinstance(first, Manifest)
    assert parsed_project(project, {"DATA_DIR"}, lambda: pytest.fail("parsed again")) is first


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder, patch: touch(folder / "models/one.sql"), id="a file is edited"),
        pytest.param(lambda folder, patch: (folder / "models/two.yml").write_text(""), id="one is added"),
        pytest.param(lambda folder, patch: (folder / "models/one.sql").unlink(), id="one is removed"),
        pytest.param(lambda folder, patch: patch.setenv("POSTGRES_SCHEMA", "other"), id="the environment"),
    ],
)
def test_a_project_is_parsed_again_when_it_changes(project, monkeypatch, change):
    first = parsed_project(project, {"POSTGRES_SCHEMA"}, Manifest)
    change(project, monkeypatch)
    second = parsed_project(project, {"POSTGRES_SCHEMA"}, Manifest)
    assert isinstance(second, Manifest) and second is not first


def test_a_project_that_cannot_be_parsed_is_not_kept(project):
    assert parsed_project(project, set(), lambda: None) is None
    assert isinstance(parsed_project(project, set(), Manifest), Manifest)
