"""Which changed macros stand behind the way models are built, and which only write SQL into them.

What a macro writes into a model is seen in the model. A macro that a materialization, a hook or dbt itself
calls is not: it may change every table at once.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.model_reader import CONFIGURATION, PROJECTS

BLOCK = re.compile(r"\{%-?\s*(macro|materialization|test)\s+(\w+)(.*?)\{%-?\s*end\1\s*-?%\}", re.DOTALL)
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
SETTINGS = ("dbt_project.yml", "profiles.yml", "selectors.yml")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Macros:
    """The macros of a dbt project: text without comments and file by name, and the words of its models' SQL
    by model, without their configuration."""

    texts: dict[str, str]
    paths: dict[str, str]
    words: dict[str, frozenset[str]]

    def written_into(self, words: frozenset[str]) -> frozenset[str]:
        """The macros that some SQL calls, one through another."""
        found: set[str] = set()
        waiting = [name for name in words if name in self.texts]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [word for word in WORD.findall(self.texts[name]) if word in self.texts]
        return frozenset(found)

    @property
    def machinery(self) -> frozenset[str]:
        """The macros that something else than a model's SQL calls; dbt finds some by their names."""
        called = self.written_into(frozenset().union(*self.words.values()))
        return self.written_into(frozenset(self.texts) - called)


def read_macros(tree: Path, project: str) -> Macros:
    """The macros of the project in a folder with the files of a revision; generic tests are none."""
    texts: dict[str, str] = {}
    paths: dict[str, str] = {}
    for path in sorted((tree / project).glob("macros/**/*.sql")):
        for kind, name, text in BLOCK.findall(COMMENT.sub("", path.read_text(encoding="utf-8"))):
            if kind != "test":
                texts[name] = texts.get(name, "") + text  # a materialization may have one for each adapter
                paths[name] = str(path.relative_to(tree))
    words = {
        path.stem: frozenset(WORD.findall(CONFIGURATION.sub("", path.read_text(encoding="utf-8"))))
        for path in (tree / project).glob("models/**/*.sql")
    }
    return Macros(texts, paths, words)


def changed_machinery(before: Macros, after: Macros) -> dict[str, str]:
    """The files of macros that stand behind a project's models and differ: {path: what about it}."""
    names = sorted(before.machinery | after.machinery)
    found: dict[str, list[str]] = {}
    for name in names:
        if before.texts.get(name) != after.texts.get(name):
            found.setdefault(after.paths.get(name) or before.paths[name], []).append(name)
    return {path: f"macros that build models: {', '.join(macros)}" for path, macros in found.items()}


def changed_files(base: Path, head: Path) -> dict[str, str]:
    """The plugins and settings of both projects that differ: {path: what about it}. `base` and `head` are
    folders with the files of a revision each."""
    settings = [f"{project}/{name}" for project in PROJECTS for name in SETTINGS]
    found = {
        path: "settings of every model"
        for path in settings
        if _settings(base / path) != _settings(head / path)
    }
    plugins = sorted(_plugins(base) | _plugins(head))
    return found | {
        path: "code that dbt runs in" for path in plugins if _code(base / path) != _code(head / path)
    }


def changed_in_sql(before: Macros, after: Macros) -> dict[str, list[str]]:
    """The models in whose SQL a macro changed: {model: macros}."""
    texts = before.texts
    changed = {name for name, text in after.texts.items() if texts.get(name, text) != text}
    called = {model: sorted(changed & after.written_into(words)) for model, words in after.words.items()}
    return {model: macros for model, macros in sorted(called.items()) if macros}


def _plugins(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.glob("*/plugins/**/*.py")}


def _settings(path: Path) -> Any:
    """YAML without comments and layout, None where there is no such file."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _code(path: Path) -> str | None:
    """Python without comments and layout, None where there is no such file."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return ast.dump(ast.parse(text))
    except SyntaxError:
        return text
