"""What follows the end of a run: alerts, and metrics for node_exporter."""

from __future__ import annotations

import logging

from ingestion.settings import Settings
from scripts.alerts import Alerts, judge_health, judge_run
from scripts.health import Health
from scripts.metrics import write_textfile
from scripts.pipeline_run import Run

logger = logging.getLogger("bike-data-flow")


def after_run(settings: Settings, run: Run, health: Health | None) -> None:
    """Tell ALERT_WEBHOOK_URL what is new and write METRICS_TEXTFILE; `health` is None where it could not be
    measured. Never raises, and does nothing without the two settings."""
    findings = [*judge_run(run), *(judge_health(settings, health) if health else [])]
    Alerts(settings).tell(findings)
    try:
        write_textfile(settings, run, health)
    except Exception as error:  # monitoring hurts no job
        logger.warning(
            "The metrics could not be written: %s (%s). Mend METRICS_TEXTFILE; the next job writes it anew.",
            settings.metrics_textfile,
            error,
        )
