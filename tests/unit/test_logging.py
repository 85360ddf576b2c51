"""Log lines: for people, and as JSON for machines."""

import json
import logging

import pytest

from scripts.command import configure_logging, the_only_job

logger = logging.getLogger("bike-data-flow")


@pytest.fixture
def log(workplace, capsys):
    """Configures logging by LOG_FORMAT and gives what was written; puts pytest's handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def write(log_format):
        workplace.configure(LOG_FORMAT=log_format)
        configure_logging(workplace.settings)
        with the_only_job(workplace.settings, "ingest") as run:
            logger.info(
                "ingest wrm: %d bytes", 7, extra={"source": "wrm", "rows": 1, "bytes": 7, "seconds": 0.25}
            )
        logger.warning("after the run")
        logging.getLogger("botocore").info("chatter")
        return run, capsys.readouterr().err.splitlines()

    yield write
    root.handlers[:] = handlers
    root.setLevel(level)  # not the attribute: loggers remember what they let through


def test_json_lines_carry_run_source_rows_bytes_and_seconds(log):
    run, lines = log("json")
    first, last = (json.loads(line) for line in lines)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "bike-data-flow",
        "message": "ingest wrm: 7 bytes",
        "run_id": run.id,
        "source": "wrm",
        "rows": 1,
        "bytes": 7,
        "seconds": 0.25,
    }
    assert (last["level"], last["run_id"], last["source"], last["rows"]) == ("WARNING", None, None, None)


def test_lines_for_people_carry_the_end_of_the_runs_id(log):
    run, lines = log("text")
    assert [line.partition(" ")[2] for line in lines] == [
        f"[{run.id[-6:]}] ingest wrm: 7 bytes",
        "after the run",
    ]


def test_level_keeps_lines_back(log, workplace):
    workplace.configure(LOG_LEVEL="ERROR")
    assert log("text")[1] == []
