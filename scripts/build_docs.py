"""What every table and column means, and what is made from what, as pages for a browser:
python -m scripts.build_docs

It writes DATA_DIR/docs/index.html, which leads to the pages of both dbt projects. Each is one file that loads
nothing else. Types are those of what is built: without it there are descriptions only.
"""

from __future__ import annotations

import argparse
import shutil
from datetime import UTC, datetime
from pathlib import Path

from ingestion.settings import Settings
from scripts.command import run_command
from scripts.run_dbt import run_dbt
from scripts.start_postgres import running_postgres

PROJECTS = {
    "transform": "The lake: bronze as it arrived, silver and gold as they are made from it, and what lands.",
    "exports": "PostgreSQL: the public tables and the landing tables that they are made from.",
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Bike Data Flow</title>
<style>body {{ font: 1.1em/1.5 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style>
<h1>Bike Data Flow</h1>
<p>What every table and column means, and what is made from what.</p>
<ul>
{links}
</ul>
<p><small>Built at {built_at:%Y-%m-%d %H:%M} UTC.</small></p>
</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    run_command(_build)


def _build(settings: Settings) -> None:
    folder = settings.data_dir / "docs"
    pages = [_write_index(folder)]
    with running_postgres(settings):
        pages += [_build_project(settings, project, folder / project) for project in PROJECTS]
    for page in pages:
        print(page.as_uri())


def _build_project(settings: Settings, project: str, folder: Path) -> Path:
    """The pages of one dbt project; gives the file."""
    # the default selector of `transform` leaves out what lands in PostgreSQL
    everything = ("--select", "fqn:*") if project == "transform" else ()
    run_dbt(settings, project, "--quiet", "docs", "generate", "--static", *everything)
    folder.mkdir(parents=True, exist_ok=True)
    made = settings.data_dir / "dbt" / project / "static_index.html"
    return Path(shutil.copyfile(made, folder / "index.html"))


def _write_index(folder: Path) -> Path:
    links = "\n".join(
        f'<li><a href="{project}/index.html">{project}</a>: {what}' for project, what in PROJECTS.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(PAGE.format(links=links, built_at=datetime.now(UTC)))
    return page


if __name__ == "__main__":
    main()
