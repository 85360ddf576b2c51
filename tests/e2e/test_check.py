"""The quick check: silent but for a line where all is well; else it names tool, file and remedy."""

import re
import shutil
import subprocess
import sys

import pytest

from ingestion.settings import PROJECT_ROOT

TOOLS = ("types", "sql", "documents", "format")
MODEL = "transform/models/landing/wrm/landing_wrm__coverage_gaps.sql"
# a small copy: nothing slow to type-check, one model, one document
KEPT = ("pyproject.toml", "justfile", "ingestion/__init__.py", "ingestion/settings.py", "scripts/__init__.py")
KEPT += (
    "scripts/check_style.py",
    "tests/unit/test_documents.py",
    "transform/.sqlfluff",
    "exports/.sqlfluff",
    MODEL,
)
EMPTY = ("transform/data_tests", "exports/models", "exports/data_tests", "exports/macros")


@pytest.fixture
def copy(tmp_path):
    for name in KEPT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT_ROOT / name, tmp_path / name)
    shutil.copytree(PROJECT_ROOT / "transform/macros", tmp_path / "transform/macros")
    for name in EMPTY:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "transform/plugins").mkdir()
    (tmp_path / "transform/plugins/numbers.py").write_text("ONE: int = 1\n")
    (tmp_path / "README.md").write_text("# Top\n\n[Top](#top)\n")
    return tmp_path


def check(folder, *tools):
    command = [sys.executable, "-m", "scripts.check_style", *tools]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_check_says_one_line_where_all_is_well_and_else_tool_file_and_remedy(copy):
    done = check(copy, *TOOLS)
    assert re.fullmatch(r"All is well by types, sql, documents, format: \d+ s\.\n", done.stdout), done.stdout
    assert (done.returncode, done.stderr) == (0, "")

    (copy / "transform/plugins/numbers.py").write_text("ONE: int = 'one'\n")
    (copy / "ingestion/untidy.py").write_text("a  =  1\n")
    (copy / MODEL).write_text("select  1 AS one\n")
    (copy / "README.md").write_text("# Top\n\n[Top](docs/none.md)\n")
    done = check(copy, *TOOLS)
    assert done.returncode == 1
    found = re.split(r"(?<=\n)(\w+) failed\. To repair it: (.*)\n\n", done.stdout)
    assert found[1::3] == list(TOOLS)
    told = dict(zip(TOOLS, zip(found[0::3], found[2::3], strict=False), strict=True))
    expected = {
        "types": ("transform/plugins/numbers.py:1: error", "mypy"),
        "sql": (MODEL, "sqlfluff fix"),
        "documents": ("'docs/none.md'", "mend the link"),
        "format": ("ingestion/untidy.py", "ruff format ."),
    }
    lacking = {
        name: words for name, words in expected.items() if not all(map(str.__contains__, told[name], words))
    }
    assert lacking == {}, done.stdout


def test_check_refuses_a_tool_that_it_does_not_know():
    done = check(PROJECT_ROOT, "types", "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such tool: none. Give some of: types, sql," in done.stderr
