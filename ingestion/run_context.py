"""Tells dlt, by its plugin hook, that this project's pipelines keep their working directories under data/dlt.

So `dlt pipeline wrm info` works from the project's root without options, and two clones of the project
never share a pipeline's state. dlt's own `DLT_DATA_DIR` still wins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dlt.common import known_env
from dlt.common.configuration import plugins
from dlt.common.runtime.run_context import RunContext

from ingestion.settings import PROJECT_ROOT, load_settings


class ProjectRunContext(RunContext):
    """dlt's run context with pipelines under `<DATA_DIR>/dlt/pipelines`."""

    @property
    def data_dir(self) -> str:
        return os.environ.get(known_env.DLT_DATA_DIR) or str(load_settings().data_dir / "dlt")


@plugins.hookimpl(specname="plug_run_context", tryfirst=True)
def plug_project_context(run_dir: str | None, runtime_kwargs: dict[str, Any] | None) -> RunContext | None:
    """Serve dlt commands that are given inside the project; leave every other folder to dlt."""
    folder = Path(run_dir or ".").resolve()
    if folder.is_relative_to(PROJECT_ROOT):
        return ProjectRunContext(str(PROJECT_ROOT))
    return None
