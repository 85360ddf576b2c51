"""Revisions of the project in git, and its working tree with all that git does not ignore."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ingestion.settings import PROJECT_ROOT
from scripts.command import CommandError

MAIN_BRANCHES = ("origin/main", "main")
NOTHING_FOUND = 1  # status of git where it finds no such revision, or none in common


class RevisionError(CommandError):
    """A revision that is not there, or a project outside git."""


def default_base() -> str:
    """The commit that the working tree is a change of: where HEAD left the main branch, which is HEAD's own
    commit on that branch. Raises `RevisionError` where git knows no such commit."""
    for branch in MAIN_BRANCHES:
        if _find_commit(branch) and (found := _git("merge-base", "HEAD", branch)):
            return found.decode().strip()
    raise RevisionError(
        f"No base is known to compare with: HEAD has no commit in common with {' or '.join(MAIN_BRANCHES)}. "
        "Name a revision, such as HEAD."
    )


def commit_of(revision: str) -> str:
    """The full hash of a revision's commit. Raises `RevisionError` where there is none."""
    found = _find_commit(revision)
    if found is None:
        raise RevisionError(
            f"The revision is not known to git: {revision}. Fetch it, or name one that `git log` knows."
        )
    return found


def _find_commit(revision: str) -> str | None:
    name = f"{revision}^{{commit}}"
    return _git("rev-parse", "--verify", "--quiet", "--end-of-options", name).decode().strip() or None


def export_revision(revision: str | None, folder: Path) -> None:
    """Put the project's files as of a revision into a folder, which is made; None: those of the working tree,
    uncommitted edits and new files among them, ignored ones not. Raises `RevisionError`."""
    if revision is None:
        _copy_working_tree(folder)
        return
    archive = _git("archive", "--format=tar", commit_of(revision))
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)


def _copy_working_tree(folder: Path) -> None:
    for path in _paths("ls-files", "-z", "--cached", "--others", "--exclude-standard"):
        if (PROJECT_ROOT / path).is_file():  # one that was removed is in the index still
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT_ROOT / path, target, follow_symlinks=False)


def changed_paths(base: str) -> list[str]:
    """The files in which the working tree differs from a revision, new and removed ones among them: paths
    relative to the project's root, sorted. Raises `RevisionError`."""
    tracked = _paths("diff", "-z", "--name-only", "--no-renames", "--relative", commit_of(base))
    return sorted({*tracked, *_paths("ls-files", "-z", "--others", "--exclude-standard")})


def _paths(*arguments: str) -> list[str]:
    return [path.decode() for path in _git(*arguments).split(b"\0") if path]


def _git(*arguments: str) -> bytes:
    """What git says: nothing where it finds nothing."""
    if not (PROJECT_ROOT / ".git").exists():  # it may lie in a folder of somebody else's repository
        raise RevisionError(f"The project is not under git: {PROJECT_ROOT}. Clone it to compare revisions.")
    try:
        done = subprocess.run(["git", "-C", PROJECT_ROOT, *arguments], capture_output=True)
    except OSError as error:
        raise RevisionError(f"git cannot be run: {error}. Install it and run again.") from error
    if done.returncode not in (0, NOTHING_FOUND):
        said = done.stderr.decode(errors="replace").strip()
        raise RevisionError(f"git failed: {arguments[0]}. Mend what it says, then run again: {said}")
    return done.stdout
