"""Check all that is text, in seconds: python -m scripts.check_style [TOOL …]

Each tool runs by itself, all at the same time. Nothing but one line is said when all is well; else each that
found something tells what, and how to repair it. It needs neither lake nor PostgreSQL nor a network.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ingestion.settings import PROJECT_ROOT

SQL = "transform/models transform/data_tests exports/models exports/data_tests"
# without conftest: no server is needed here
PYTEST = "python -m pytest --quiet --noconftest -p no:cacheprovider -p no:xdist -r N"
# what dbt itself holds its YAML against
DBT_SCHEMA = shlex.quote(str(resources.files("dbt.jsonschemas") / "resources" / "latest.json"))


@dataclass(frozen=True)
class Tool:
    """A command, files as patterns, that ends with another status than 0 where something is wrong, and what
    to do then."""

    name: str
    command: str
    remedy: str


# those that take longest first
TOOLS = (
    Tool("types", "mypy --no-error-summary", "mend the types where mypy says so"),
    Tool(
        "sql",
        f"sqlfluff lint --nocolor --disable-progress-bar --processes {os.cpu_count() or 1} {SQL}",
        f"sqlfluff fix {SQL}, and by hand what it leaves",
    ),
    Tool(
        "names",
        f"{PYTEST} tests/unit/test_names.py tests/unit/test_models.py -k 'not breach'",
        "rename or describe what is told",
    ),
    Tool(
        "documents",
        f"{PYTEST} tests/unit/test_documents.py -k test_a_document",
        "mend the link, path or recipe in the document",
    ),
    Tool("format", "ruff format --check .", "ruff format ."),
    Tool("lint", "ruff check --output-format=concise .", "ruff check --fix ."),
    Tool("yaml", "yamllint --strict .", "mend the lines that yamllint names"),
    Tool(
        "dbt",
        f"check-jsonschema --schemafile {DBT_SCHEMA} */models/**/_*.yml */seeds/_*.yml",
        "mend the YAML: dbt would not know what it says",
    ),
    Tool(
        "workflows",
        "check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml",
        "mend the workflow: GitHub would refuse it",
    ),
    Tool("hooks", "pre-commit validate-config .pre-commit-config.yaml", "mend .pre-commit-config.yaml"),
    Tool("justfile", "just --fmt --check --unstable", "just --fmt --unstable"),
)


def check(tools: list[Tool]) -> bool:
    """Run the tools; whether none found anything. The findings go to standard output."""
    with ThreadPoolExecutor(len(tools)) as pool:
        findings = list(pool.map(_run, tools))
    for tool, finding in zip(tools, findings, strict=True):
        if finding is not None:
            print(f"{finding}\n\n{tool.name} failed. To repair it: {tool.remedy}\n")
    return findings.count(None) == len(findings)


def _run(tool: Tool) -> str | None:
    """What a tool found, None where nothing is wrong."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": programs, "NO_COLOR": "1"}
    words = [word for given in shlex.split(tool.command) for word in _expanded(given)]
    done = subprocess.run(words, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    return None if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip()


def _expanded(word: str) -> list[str]:
    if "*" not in word:
        return [word]
    return sorted(str(path.relative_to(PROJECT_ROOT)) for path in PROJECT_ROOT.glob(word))


def main() -> None:
    tools = {tool.name: tool for tool in TOOLS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tool", nargs="*", help=f"only some of: {', '.join(tools)}")
    given = parser.parse_args().tool
    if unknown := [name for name in given if name not in tools]:
        parser.error(f"there is no such tool: {', '.join(unknown)}. Give some of: {', '.join(tools)}.")
    started = time.monotonic()
    chosen = [tools[name] for name in given or tools]
    if not check(chosen):
        raise SystemExit(1)
    print(f"All is well by {', '.join(tool.name for tool in chosen)}: {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
