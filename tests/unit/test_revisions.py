"""Revisions of a project in git, and its working tree."""

import pytest
from repositories import commit, git

from scripts import revisions
from scripts.revisions import RevisionError, changed_paths, commit_of, default_base, export_revision


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with one commit on `main`."""
    folder = tmp_path / "project"
    monkeypatch.setattr(revisions, "PROJECT_ROOT", folder)
    (folder / "models").mkdir(parents=True)
    for path in ("kept", "models/edited", "removed"):
        (folder / path).write_text("as committed")
    (folder / ".gitignore").write_text("data/\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


def make_edits(project):
    (project / "models/edited").write_text("edited")
    (project / "removed").unlink()
    (project / "models/żółty.sql").write_text("new")
    (project / "data").mkdir()
    (project / "data/lake").write_text("ignored")


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


COMMITTED = {
    ".gitignore": "data/\n",
    "kept": "as committed",
    "models/edited": "as committed",
    "removed": "as committed",
}
EDITED = {
    ".gitignore": "data/\n",
    "kept": "as committed",
    "models/edited": "edited",
    "models/żółty.sql": "new",
}


def test_a_revision_and_the_working_tree_are_exported(project, tmp_path):
    make_edits(project)
    export_revision("main", tmp_path / "base")
    export_revision(None, tmp_path / "change")
    assert files(tmp_path / "base") == COMMITTED
    assert files(tmp_path / "change") == EDITED


def test_changed_paths_are_those_committed_since_edited_new_and_removed(project):
    base = commit_of("HEAD")
    assert changed_paths(base) == []
    (project / "committed").write_text("since")
    commit(project)
    make_edits(project)
    edits = ["models/edited", "models/żółty.sql", "removed"]
    assert changed_paths(base) == ["committed", *edits]
    assert changed_paths("HEAD") == edits


def test_the_default_base_is_where_head_left_the_main_branch(project):
    left = git(project, "rev-parse", "HEAD")
    assert default_base() == left
    git(project, "checkout", "--quiet", "-b", "change")
    commit(project, "a change")
    git(project, "checkout", "--quiet", "main")
    newest = commit(project, "what came in meanwhile")
    assert default_base() == newest
    git(project, "checkout", "--quiet", "change")
    assert default_base() == left


def test_the_main_branch_of_the_origin_comes_first(project, tmp_path, monkeypatch):
    cloned_at = git(project, "rev-parse", "HEAD")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", project, clone)
    monkeypatch.setattr(revisions, "PROJECT_ROOT", clone)
    commit(clone)
    assert default_base() == cloned_at


def test_a_revision_that_is_not_there_is_named(project, tmp_path):
    for use in (changed_paths, commit_of, lambda name: export_revision(name, tmp_path / "base")):
        with pytest.raises(
            RevisionError, match=r"^The revision is not known to git: --no-such\. Fetch it, or"
        ):
            use("--no-such")
    assert not (tmp_path / "base").exists()


def test_no_base_and_no_repository_are_clear_errors(project, tmp_path, monkeypatch):
    git(project, "branch", "--move", "other")
    with pytest.raises(RevisionError, match=r"in common with origin/main or main\. Name a revision"):
        default_base()
    monkeypatch.setattr(revisions, "PROJECT_ROOT", tmp_path)
    with pytest.raises(RevisionError, match=f"^The project is not under git: {tmp_path}. Clone it"):
        changed_paths("HEAD")
    (tmp_path / ".git").mkdir()
    with pytest.raises(
        RevisionError, match=r"^git failed: rev-parse\. Mend what it says, then run again: fatal"
    ):
        changed_paths("HEAD")
