"""Repositories of the project as it stands, for tests that change it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.revisions import export_revision


def make_repository(folder: Path) -> Path:
    """The project as it stands, uncommitted edits included, as one commit on `main` of a repository."""
    export_revision(None, folder)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> None:
    me = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    subprocess.run(["git", "-C", folder, *me, *arguments], check=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it stands")


def edit(folder: Path, path: str, old: str, new: str) -> None:
    """Replace what stands exactly once in a file."""
    text = (folder / path).read_text()
    assert text.count(old) == 1, f"{path}: {old}"
    (folder / path).write_text(text.replace(old, new))
