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


def git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    me = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    done = subprocess.run(["git", "-C", folder, *me, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, message: str = "as it stands") -> str:
    """Commit everything; gives the hash."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def edit(folder: Path, path: str, old: str, new: str) -> None:
    """Replace what stands exactly once in a file."""
    text = (folder / path).read_text()
    assert text.count(old) == 1, f"{path}: {old}"
    (folder / path).write_text(text.replace(old, new))
