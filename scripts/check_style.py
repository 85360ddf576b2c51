"""Check all that is text, in seconds: python -m scripts.check_style [TOOL …]

Each tool runs by itself, all at the same time. Nothing but one line is said when all is well; else each that
found something tells what, and how to repair it. It needs neither lake nor PostgreSQL nor a network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ingestion.settings import PROJECT_ROOT

FAILED = 1
SQL = ("transform/models", "transform/data_tests", "exports/models", "exports/data_tests")
# what checks itself: no conftest, whose servers are not needed
LAWS = ("-m", "pytest", "--quiet", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-r", "N")


@dataclass(frozen=True)
class Tool:
    """A command that ends with another status than 0 where something is wrong, and what to do then."""

    name: str
    command: tuple[str, ...]
    remedy: str


def all_tools() -> list[Tool]:
    """Every tool, those that take longest first."""
    processes = f"--processes={os.cpu_count() or 1}"
    return [
        Tool("types", ("mypy", "--no-error-summary"), "mend the types where mypy says so, then: mypy"),
        Tool(
            "sql",
            ("sqlfluff", "lint", "--nocolor", "--disable-progress-bar", processes, *SQL),
            f"sqlfluff fix {' '.join(SQL)}, and by hand what it leaves",
        ),
        Tool(
            "names",
            (
                sys.executable,
                *LAWS,
                "-k",
                "not breach",
                "tests/unit/test_names.py",
                "tests/unit/test_models.py",
            ),
            "rename or describe what is told, then: scripts/just check names",
        ),
        Tool(
            "documents",
            (sys.executable, *LAWS, "-k", "test_a_document", "tests/unit/test_documents.py"),
            "mend the link or name in the document, then: scripts/just check documents",
        ),
        Tool("format", ("ruff", "format", "--check", "."), "ruff format ."),
        Tool("lint", ("ruff", "check", "--output-format=concise", "."), "ruff check --fix ."),
        Tool("yaml", ("yamllint", "--strict", "."), "mend the lines that yamllint names"),
        Tool(
            "dbt",
            ("check-jsonschema", "--schemafile", _dbt_schema(), *_found("*/models/**/_*.yml")),
            "mend the YAML by dbt's schema of resources",
        ),
        Tool(
            "workflows",
            (
                "check-jsonschema",
                "--builtin-schema",
                "vendor.github-workflows",
                *_found(".github/workflows/*.yml"),
            ),
            "mend the workflow by GitHub's schema",
        ),
        Tool("hooks", ("pre-commit", "validate-config"), "mend .pre-commit-config.yaml"),
        Tool("justfile", ("just", "--fmt", "--check", "--unstable"), "just --fmt --unstable"),
    ]


def _found(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(PROJECT_ROOT)) for path in PROJECT_ROOT.glob(pattern))


def _dbt_schema() -> str:
    """The schema that dbt itself holds its YAML against."""
    package = find_spec("dbt.jsonschemas")
    assert package is not None and package.origin is not None
    return str(Path(package.origin).parent / "resources" / "latest.json")


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
    done = subprocess.run(tool.command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    return None if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip()


def main() -> None:
    tools = {tool.name: tool for tool in all_tools()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tool", nargs="*", help=f"only some of: {', '.join(tools)}")
    given = parser.parse_args().tool
    if unknown := [name for name in given if name not in tools]:
        parser.error(f"there is no such tool: {', '.join(unknown)}. Give some of: {', '.join(tools)}.")
    started = time.monotonic()
    chosen = [tools[name] for name in given or tools]
    if not check(chosen):
        raise SystemExit(FAILED)
    print(f"All is well by {', '.join(tool.name for tool in chosen)}: {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
