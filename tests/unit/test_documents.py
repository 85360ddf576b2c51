"""What the documents name is there: links, anchors, paths and recipes. Other sites are not asked."""

import json
import re
import subprocess
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from urllib.parse import urlsplit

import pytest

from ingestion.settings import PROJECT_ROOT

DOCUMENTS = sorted(
    str(path.relative_to(PROJECT_ROOT))
    for pattern in ("*.md", "docs/**/*.md", "scripts/**/*.md")
    for path in PROJECT_ROOT.glob(pattern)
)
FOLDERS = ("ingestion", "transform", "exports", "scripts", "tests", "docs", ".github", ".ci", ".dlt")
ENDINGS = (".py", ".md", ".yml", ".yaml", ".json", ".sql", ".csv", ".toml")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def dead_links(document, text):
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)", CODE.sub("", text))
    return [link for link in links if not leads_somewhere(PROJECT_ROOT / document, text, link)]


def leads_somewhere(document, text, link):
    address = urlsplit(link)
    if address.scheme:
        return address.scheme == "mailto" or (address.scheme in ("http", "https") and bool(address.hostname))
    target = document.parent / address.path
    if not target.exists():
        return False
    return not address.fragment or address.fragment in anchors(target.read_text() if address.path else text)


def anchors(text):
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_paths(text):
    """Words of code that mean a file or folder of the project which is not there, nor ends so."""
    words = {word for code in CODE.findall(text) for word in re.split(r"[\s`=;'\"()\[\]]+", code)}
    return sorted(word for word in words if is_path(word) and not all(map(is_there, expanded(word))))


def is_path(word):
    first, slash, _ = word.partition("/")
    if "://" in word or not re.fullmatch(r"[\w./{},<>-]+", word) or re.match(r"[<_/]|[A-Z_]+/", word):
        return False
    return bool(slash and first in FOLDERS) or word.endswith(ENDINGS)


def expanded(path):
    """The paths that one with {a,b} in it stands for; <…> may be any name."""
    parts = re.split(r"\{([^}]*)\}", re.sub(r"<[^>]+>", "*", path.rstrip(",./")))
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def is_there(path):
    return any(fnmatchcase(known, path) or fnmatchcase(known, f"*/{path}") for known in known_paths())


@cache
def known_paths():
    tops = [*PROJECT_ROOT.glob("*.*"), *(PROJECT_ROOT / folder for folder in FOLDERS)]
    below = [path for folder in FOLDERS for path in (PROJECT_ROOT / folder).rglob("*")]
    return [path.relative_to(PROJECT_ROOT).as_posix() for path in tops + below]


@cache
def recipes():
    dump = ["just", "--dump", "--dump-format", "json"]
    done = subprocess.run(dump, cwd=PROJECT_ROOT, capture_output=True, check=True)
    return set(json.loads(done.stdout)["recipes"])


def unknown_recipes(text):
    return sorted(set(re.findall(r"scripts/just ([a-z][\w-]*)", text)) - recipes())


def unknown_tests(text):
    """Words of code that name a test, as pytest does, which is not in its file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    return [f"{file}::{name}" for file, name in named if not re.search(rf"^def {name}\(", source(file), re.M)]


@cache
def source(file):
    path = PROJECT_ROOT / file
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_only_what_is_there(document):
    text = (PROJECT_ROOT / document).read_text(encoding="utf-8")
    dead = dead_links(document, text) + dead_paths(text)
    assert (document, dead, unknown_recipes(text), unknown_tests(text)) == (document, [], [], [])


def test_a_link_that_leads_nowhere_is_found():
    text = """# Top of *it*, today\n[a](#top-of-it-today) [b](docs/operations.md) [c](https://example.org/x)
        [d](#bottom) [e](docs/none.md) [f](docs/operations.md#none) [g](https://) [h](ftp://example.org)
        `[i](none.md)`"""
    dead = ["#bottom", "docs/none.md", "docs/operations.md#none", "https://", "ftp://example.org"]
    assert dead_links("README.md", text) == dead


def test_a_path_in_code_that_is_not_there_is_found():
    text = """`settings.py` `ingestion/wrm.py` `docs/` `ingestion/<slug>.py` `scripts/{just,lease.py}` none.py
        `DATA_DIR/none.json` `<lake>/_none.json` `s3://none/x.json` `tool --file=scripts/none.yml` `none.py`
        `scripts/{just,none}` `ingestion/<slug>.md`\n```sh\nscripts/nothing README.md\n```\n"""
    dead = ["ingestion/<slug>.md", "none.py", "scripts/none.yml", "scripts/nothing", "scripts/{just,none}"]
    assert dead_paths(text) == dead


def test_a_recipe_that_is_not_there_is_found():
    assert unknown_recipes("scripts/just check, `scripts/just none`, `scripts/just` lists") == ["none"]


def test_a_test_that_is_not_there_is_found():
    here = "tests/unit/test_documents.py::test_a_test_that_is_not_there_is_found"
    text = f"`{here}` `{here}_x` `tests/unit/test_none.py::test_a`"
    assert unknown_tests(text) == [f"{here}_x", "tests/unit/test_none.py::test_a"]
