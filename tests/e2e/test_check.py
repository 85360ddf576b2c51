"""The quick check: silent but for a line where all is well; else it names tool, file and remedy."""

import re
import shutil
import subprocess
import sys

import pytest

from ingestion.settings import PROJECT_ROOT
from scripts.check_style import TOOLS

# a small copy: nothing slow to type-check, one model, one document
MODELS = "transform/models/landing/wrm"
KEPT = (
    ".github/workflows/ci.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".yamllint",
    "exports/.sqlfluff",
    "ingestion/__init__.py",
    "ingestion/settings.py",
    "justfile",
    "pyproject.toml",
    "scripts/__init__.py",
    "scripts/check_style.py",
    "tests/unit/test_documents.py",
    "transform/.sqlfluff",
    f"{MODELS}/_wrm__landing.yml",
    f"{MODELS}/landing_wrm__coverage_gaps.sql",
)
MADE = {"transform/plugins/numbers.py": "ONE: int = 1\n", "README.md": "# Top\n\n[Top](#top)\n"}
EMPTY = ("transform/data_tests", "exports/models", "exports/data_tests", "exports/macros")
# a fault for each tool: file, what of it becomes what, and words of the finding and of the remedy
FAULTS = {
    "types": ("transform/plugins/numbers.py", "1", "'one'", "plugins/numbers.py:1: error", "mypy"),
    "sql": (f"{MODELS}/landing_wrm__coverage_gaps.sql", "from", "FROM", "coverage_gaps.sql", "sqlfluff fix"),
    "documents": ("README.md", "#top", "docs/none.md", "'docs/none.md'", "mend the link"),
    "format": (
        "scripts/check_style.py",
        "import os",
        "import  os",
        "scripts/check_style.py",
        "ruff format .",
    ),
    "lint": ("ingestion/settings.py", "import os\n", "import os, ast\n", "ingestion/settings.py:", "--fix ."),
    "yaml": (".yamllint", "rules:", "rules: ", ".yamllint", "mend the lines"),
    "dbt": (
        f"{MODELS}/_wrm__landing.yml",
        "description:",
        "descripton:",
        "_wrm__landing.yml",
        "mend the YAML",
    ),
    "workflows": (".github/workflows/ci.yml", "runs-on:", "run-on:", "workflows/ci.yml", "mend the workflow"),
    "hooks": (
        ".pre-commit-config.yaml",
        "entry:",
        "entrance:",
        ".pre-commit-config.yaml",
        "mend .pre-commit",
    ),
    "justfile": ("justfile", "set dotenv-load", "set  dotenv-load", "justfile", "just --fmt"),
}


@pytest.fixture
def copy(tmp_path):
    for name in KEPT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT_ROOT / name, tmp_path / name)
    shutil.copytree(PROJECT_ROOT / "transform/macros", tmp_path / "transform/macros")
    for name in EMPTY:
        (tmp_path / name).mkdir(parents=True)
    for name, text in MADE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def check(folder, *tools):
    command = [sys.executable, "-m", "scripts.check_style", *tools]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_check_says_one_line_where_all_is_well_and_else_tool_file_and_remedy(copy):
    done = check(copy, *FAULTS)
    assert re.fullmatch(rf"All is well by {', '.join(FAULTS)}: \d+ s\.\n", done.stdout), done.stdout
    assert (done.returncode, done.stderr) == (0, "")

    for name, old, new, *_ in FAULTS.values():
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new, 1))
    done = check(copy, *FAULTS)
    assert (done.returncode, done.stderr) == (1, "")
    told = re.split(r"(?<=\n)(\w+) failed\. To repair it: (.*)\n\n", done.stdout)
    findings, tools, remedies = told[0::3], told[1::3], told[2::3]
    assert tools == list(FAULTS)
    for (*_, found, remedy), finding, told_remedy in zip(FAULTS.values(), findings, remedies, strict=False):
        assert found in finding and remedy in told_remedy


def test_every_tool_of_check_is_broken_by_a_test():
    assert {tool.name for tool in TOOLS} == {*FAULTS, "names"}  # those break in tests/unit/test_names.py


def test_check_refuses_a_tool_that_it_does_not_know():
    done = check(PROJECT_ROOT, "types", "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such tool: none. Give some of: types, sql," in done.stderr
