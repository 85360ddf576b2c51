"""What a change does to models and columns: two revisions compared, by SQLMesh's categories and the columns'
graph.

SQLMesh tells an additive change of a query from any other. The digests of `column_graph` say which columns
and whether the rows of a model are made differently, and its edges what that reaches. A change is breaking
when either says so; a query that is only written differently, with every digest as it was, is cosmetic.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.command import CommandError
from scripts.macro_changes import Macros, changed_files, changed_in_sql, changed_machinery, read_macros
from scripts.model_reader import CONFIGURATION, PROJECTS, Reading, plain_name, read_revision
from scripts.revisions import changed_paths, commit_of, export_revision

if TYPE_CHECKING:
    from scripts.column_graph import Column, ColumnGraph, Shape

# before anything imports SQLMesh, which would tell its makers of each use
os.environ["SQLMESH__DISABLE_ANONYMIZED_ANALYTICS"] = "true"

CATEGORIES = ("breaking", "additive", "cosmetic")
# in place of a column: the rows of a table
EVERY_ROW = "*"
# of Jinja, or a variable of the run
BRANCH = re.compile(
    r"\{%-?\s*if\b|\{\{[^}]*\bif\b"
    r"|\bis_incremental\b|\benv_var\b|\bvar\(|\btarget\.|\bflags\."
)
OTHER_ROWS = "other rows may be chosen"
READ = ("transform/", "exports/", "ingestion/schemas.py")


class LintError(CommandError):
    """SQL that reads a column which is not there."""


@dataclass(frozen=True)
class Change:
    """A changed model, seed, bronze table or file behind the models.

    category: additive, cosmetic or breaking. reaches: by model downstream its columns, `*` for its rows.
    """

    name: str  # of a file behind the models its path
    path: str
    category: str
    reasons: list[str]
    columns_added: list[str] = field(default_factory=list)
    columns_removed: list[str] = field(default_factory=list)
    columns_changed: list[str] = field(default_factory=list)
    rows_may_change: bool = False
    reaches: dict[str, list[str]] = field(default_factory=dict)
    public_tables: list[str] = field(default_factory=list)
    is_acknowledged: bool = False


@dataclass(frozen=True)
class Impact:
    """What a change does; the worst first.

    base: hash of the commit that it is compared with. rebuilt: the models of the lake whose days are built
    anew, because their SQL or that of what they read is another.
    """

    base: str
    changes: list[Change]
    warnings: list[str]
    rebuilt: list[str] = field(default_factory=list)

    @property
    def unacknowledged(self) -> list[Change]:
        return [each for each in self.changes if each.category == "breaking" and not each.is_acknowledged]


def assess_impact(base: str) -> Impact:
    """The impact of the working tree on a revision. Raises `LintError`, `ModelsError`, `RevisionError`."""
    base = commit_of(base)
    if not any(path.startswith(READ) for path in changed_paths(base)):
        read_and_graph(None)  # linted all the same
        return Impact(base, [], [])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        before, after = pool.map(read_and_graph, (base, None))
    with tempfile.TemporaryDirectory(prefix="impact-") as scratch:
        trees = Path(scratch) / "base", Path(scratch) / "change"
        for revision, tree in zip((base, None), trees, strict=True):
            export_revision(revision, tree)
        return _Comparison(Revision.of(*before, trees[0]), Revision.of(*after, trees[1])).impact(base)


def read_and_graph(revision: str | None) -> tuple[Reading, ColumnGraph]:
    """The models of a revision and their columns. Raises `LintError` for those of the working tree."""
    from scripts.column_graph import graph_columns

    reading = read_revision(revision)
    if revision is None and reading.violations:
        raise LintError("SQL reads columns that are not there.\n" + "\n".join(reading.violations))
    return reading, graph_columns(reading.models)


@dataclass(frozen=True)
class Revision:
    """All that is known of one side."""

    reading: Reading
    graph: ColumnGraph
    tree: Path
    macros: dict[str, Macros]

    @classmethod
    def of(cls, reading: Reading, graph: ColumnGraph, tree: Path) -> Revision:
        return cls(reading, graph, tree, {project: read_macros(tree, project) for project in PROJECTS})

    def macros_of(self, name: str) -> Macros:
        """The macros of a model's project."""
        return self.macros[self.reading.projects[name]]

    def configuration(self, name: str) -> dict[str, Any]:
        """How dbt builds a model, but for the version of its macros."""
        configured = self.reading.configured.get(name, {})
        return {key: value for key, value in configured.items() if key != "code_version"}

    def code_version(self, name: str) -> Any:
        """What a model states of the macros in its SQL, whose bodies are not in its fingerprint."""
        return self.reading.configured.get(name, {}).get("code_version")

    def sql(self, name: str) -> str:
        """The file of a model without its configuration, of a seed all of it."""
        return CONFIGURATION.sub("", self.text(name).decode())

    def text(self, name: str) -> bytes:
        return (self.tree / self.reading.paths[name]).read_bytes()

    @property
    def change_log(self) -> str:
        path = self.tree / "CHANGELOG.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def types(self, name: str) -> dict[str, str]:
        """The types that a model's YAML declares, by column."""
        columns = self.reading.described.get(name, {}).get("columns", [])
        return {each["name"]: str(each["data_type"]) for each in columns if "data_type" in each}

    def is_resolved(self, name: str) -> bool:
        """Whether the columns of a model and of all that it reads are known."""
        read = map(plain_name, self.reading.models[name].depends_on)
        known = [self.graph.made[each].columns for each in (name, *read) if each in self.graph.made]
        return all(known)

    @cached_property
    def snapshots(self) -> dict[str, Any]:
        """SQLMesh's snapshots, which it compares, by name."""
        from sqlmesh.core.snapshot import Snapshot

        nodes = {model.fqn: model for model in self.reading.models.values()}
        cache: dict[str, Any] = {}
        return {
            name: Snapshot.from_node(model, nodes=nodes, cache=cache)
            for name, model in self.reading.models.items()
        }

    @cached_property
    def readers(self) -> dict[Column, set[Column]]:
        """What reads a column, or the rows of a table, directly."""
        found: dict[Column, set[Column]] = {}
        for name, shape in self.graph.made.items():
            for column, part in {EVERY_ROW: shape.rows, **shape.columns}.items():
                rows = {(table, EVERY_ROW) for table in part.tables}
                for read in part.columns | part.chosen_by | rows:
                    found.setdefault(read, set()).add((name, column))
        return found


class _Comparison:
    def __init__(self, before: Revision, after: Revision) -> None:
        self.before, self.after = before, after
        self.written = {
            model: macros
            for project in PROJECTS
            for model, macros in changed_in_sql(before.macros[project], after.macros[project]).items()
        }
        self.acknowledged = acknowledged_names(after.change_log, before.change_log)

    def impact(self, base: str) -> Impact:
        changes = [
            replace(each, is_acknowledged=each.category == "breaking" and self._is_acknowledged(each))
            for each in (*self._machinery(), *self._models())
        ]
        changes.sort(key=lambda each: (CATEGORIES.index(each.category), each.path))
        return Impact(base, changes, list(self._warnings()), self._rebuilt())

    def _is_acknowledged(self, change: Change) -> bool:
        """Whether the change log names it, or all the files of macros that it changed through."""
        if {change.name, change.path} & self.acknowledged:
            return True
        macros = self.written.get(change.name, [])
        if not macros or self.before.sql(change.name) != self.after.sql(change.name):
            return False
        paths = self.after.macros_of(change.name).paths
        return {paths[name] for name in macros} <= self.acknowledged

    def _machinery(self) -> Iterator[Change]:
        found = changed_files(self.before.tree, self.after.tree)
        for project in PROJECTS:
            found |= changed_machinery(self.before.macros[project], self.after.macros[project])
        public = self._public(self.after.reading.projects)
        for path, what in found.items():
            yield Change(path, path, "breaking", [what], rows_may_change=True, public_tables=public)

    def _models(self) -> Iterator[Change]:
        before, after = self.before.reading, self.after.reading
        for name in sorted(before.models.keys() | after.models.keys()):
            if name not in before.models:
                columns = list(self.after.graph.made[name].columns)
                yield Change(name, after.paths[name], "additive", ["it is new"], columns_added=columns)
            elif name not in after.models:
                columns = list(self.before.graph.made[name].columns)
                change = Change(name, before.paths[name], "breaking", ["it is gone"], columns_removed=columns)
                yield self._with_reach(change, True)
            else:
                yield from self._model(name)

    def _model(self, name: str) -> Iterator[Change]:
        before, after = self.before, self.after
        old, new = before.graph.made[name], after.graph.made[name]
        types = before.types(name), after.types(name)
        declared = [each for each in types[0].keys() & types[1].keys() if types[0][each] != types[1][each]]
        computed = [
            each
            for each in old.columns.keys() & new.columns.keys()
            if old.columns[each].digest != new.columns[each].digest
        ]
        change = Change(
            name,
            after.reading.paths[name],
            "",
            [],
            columns_added=[each for each in new.columns if old.columns and each not in old.columns],
            columns_removed=[each for each in old.columns if new.columns and each not in new.columns],
            columns_changed=sorted({*declared, *computed}),
            rows_may_change=old.rows.digest != new.rows.digest,
        )
        is_rebuilt = before.configuration(name) != after.configuration(name)
        is_edited = self._is_edited(name)
        differs = (
            (computed or change.rows_may_change) and before.is_resolved(name) and after.is_resolved(name)
        )
        if not (is_edited or is_rebuilt or differs):
            return  # a column more or less of what it reads: that is told as what is reached
        reasons = list(self._reasons(change, declared, computed, is_rebuilt))
        category = "breaking" if reasons else "additive" if change.columns_added else "cosmetic"
        if category == "cosmetic":
            reasons = ["it is described or written differently and computes the same"]
        if name in self.written:
            reasons.append(f"through macros: {', '.join(self.written[name])}")
        elif not (is_edited or is_rebuilt):
            reasons.append("through what it reads, of which it takes every column")
        change = replace(change, category=category, reasons=reasons)
        yield self._with_reach(change, is_rebuilt or bool(declared))

    def _is_edited(self, name: str) -> bool:
        """Whether the model's own files or a macro in its SQL differ."""
        before, after = self.before, self.after
        if before.reading.described.get(name) != after.reading.described.get(name) or name in self.written:
            return True
        if before.reading.projects[name] == "bronze":
            return _known(before.graph.made[name]) != _known(after.graph.made[name])
        return before.sql(name) != after.sql(name) or before.code_version(name) != after.code_version(name)

    def _reasons(
        self, change: Change, declared: list[str], computed: list[str], is_rebuilt: bool
    ) -> Iterator[str]:
        """Why a change of a model is breaking, if it is."""
        if change.columns_removed:
            yield "columns are gone"
        if computed:
            yield "columns are computed differently"
        if declared:
            yield "declared types are others"
        if change.rows_may_change:
            yield OTHER_ROWS
        if is_rebuilt:
            yield "it is configured differently: built in another way, or read from elsewhere"
        if computed or change.columns_removed or change.rows_may_change:
            return
        if self._has_branches(change.name):
            yield "its SQL has branches that only a run takes: what is in them is not compared"
        elif change.columns_added and self._is_breaking(change.name):
            yield "SQLMesh sees more in it than added columns"

    def _has_branches(self, name: str) -> bool:
        """Whether a model's SQL that was edited, or a macro in it that was, asks how it is run."""
        if self.after.reading.projects[name] == "bronze":
            return False
        sides = (self.before, self.after)
        edited = {side.sql(name) for side in sides}
        macros = {side.macros_of(name).texts[each] for side in sides for each in self.written.get(name, [])}
        texts = macros | (edited if len(edited) > 1 else set())
        return any(BRANCH.search(text) for text in texts)

    def _is_breaking(self, name: str) -> bool:
        from sqlmesh.core.config import CategorizerConfig
        from sqlmesh.core.snapshot import SnapshotChangeCategory
        from sqlmesh.core.snapshot.categorizer import categorize_change

        old, new = self.before.snapshots[name], self.after.snapshots[name]
        if not new.is_directly_modified(old) or new.model.is_metadata_only_change(old.model):
            return False
        category = categorize_change(new, old, config=CategorizerConfig.all_full())
        return bool(category == SnapshotChangeCategory.BREAKING)

    def _with_reach(self, change: Change, whatever_digests: bool) -> Change:
        """The change with the columns and rows downstream that it reaches: all of them, or those that are
        made from something else than before."""
        columns = [*change.columns_added, *change.columns_removed, *change.columns_changed]
        waiting = [(change.name, column) for column in columns]
        if change.rows_may_change or whatever_digests:
            waiting.append((change.name, EVERY_ROW))
        reached: set[Column] = set()
        while waiting:
            read = waiting.pop()
            for reader in self.before.readers.get(read, set()) | self.after.readers.get(read, set()):
                if reader not in reached and (whatever_digests or self._has_grown_differently(*reader)):
                    reached.add(reader)
                    waiting.append(reader)
        models: dict[str, list[str]] = {}
        for name, column in sorted(reached):
            if name != change.name:
                models.setdefault(name, []).append(column)
        own = {change.name} if change.category == "breaking" else set()
        return replace(change, reaches=models, public_tables=self._public({*models, *own}))

    def _has_grown_differently(self, name: str, column: str) -> bool:
        parts = [_grown(side.graph.grown.get(name), column) for side in (self.before, self.after)]
        return parts[0] != parts[1]

    def _public(self, names: Iterable[str]) -> list[str]:
        projects = self.before.reading.projects | self.after.reading.projects
        return sorted(name for name in names if projects.get(name) == "exports")

    def _warnings(self) -> Iterator[str]:
        for model, macros in self.written.items():
            is_in_lake = all(model in side.macros["transform"].words for side in (self.before, self.after))
            if is_in_lake and self.before.code_version(model) == self.after.code_version(model):
                yield (
                    f"{model}: days that are built stay as they are although {', '.join(macros)} changed. "
                    "Raise its code_version, or write down why not."
                )

    def _rebuilt(self) -> list[str]:
        """Models of the lake whose fingerprint changes: raw SQL, the seeds and staging that it reads, the
        version of its macros, or what of these changed upstream."""
        before, after = self.before, self.after
        built = {name: model for name, model in after.reading.models.items() if name in before.reading.models}
        found = {
            name
            for name in built
            if after.reading.projects[name] == "transform"
            and (
                before.text(name) != after.text(name) or before.code_version(name) != after.code_version(name)
            )
        }
        while True:
            readers = {
                name for name, model in built.items() if found & set(map(plain_name, model.depends_on))
            }
            if readers <= found:
                break
            found |= readers
        folders = ("transform/models/intermediate", "transform/models/marts", "transform/models/landing")
        return sorted(name for name in found if after.reading.paths[name].startswith(folders))


def _grown(shape: Shape | None, column: str) -> str | None:
    if shape is None:
        return None
    part = shape.rows if column == EVERY_ROW else shape.columns.get(column)
    return part.digest if part else None


def _known(shape: Shape) -> Mapping[str, str]:
    return {name: part.digest for name, part in shape.columns.items()}


def acknowledged_names(change_log: str, known: str = "") -> set[str]:
    """What the breaking entries of a change log's unreleased section name in backticks before their colon;
    entries that a `known` change log has as well are of earlier changes."""
    return {
        name
        for entry in _breaking_entries(change_log) - _breaking_entries(known)
        if ":" in entry
        for name in re.findall(r"`([^`]+)`", entry.partition(":")[0])
    }


def _breaking_entries(change_log: str) -> set[str]:
    section = re.search(r"^## \[?Unreleased\]?.*?$(.*?)(?=^## |\Z)", change_log, re.MULTILINE | re.DOTALL)
    entries = re.split(r"^- ", section[1] if section else "", flags=re.MULTILINE)
    return {entry.strip() for entry in entries if entry.startswith("**Breaking**")}
