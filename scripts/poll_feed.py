"""Polling a feed again and again for some minutes, as a scheduled job does in place of `watch`."""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from scripts.foreground import StopRequest
from scripts.lease import LeaseLostError

logger = logging.getLogger("bike-data-flow")


def poll_for(poll: Callable[[], str | None], minutes: float, every_seconds: float) -> str | None:
    """Call `poll`, which gives an error or None, once every so many seconds for so many minutes. A poll that
    fails does not end it; Ctrl-C and SIGTERM do, after the poll under way.

    Gives the last error where no poll succeeded, or raises it if it was raised.
    """
    request = StopRequest()
    succeeded, polls, error = 0, 0, None
    due, ends = time.monotonic(), time.monotonic() + minutes * 60
    # in a thread: in the main one dlt would take the signals for itself and leave a load half-done
    with ThreadPoolExecutor(1) as worker:
        while not request.came_within(due - time.monotonic()):
            due = time.monotonic() + every_seconds
            error = worker.submit(contextvars.copy_context().run, _attempt, poll).result()
            polls += 1
            succeeded += error is None
            if due >= ends:
                break
    logger.info("%d of %d polls succeeded", succeeded, polls)
    if succeeded or error is None:
        return None
    if isinstance(error, Exception):
        raise error
    return error


def _attempt(poll: Callable[[], str | None]) -> str | Exception | None:
    """Poll once; gives what went wrong."""
    try:
        error = poll()
    except LeaseLostError:  # the lake is another job's now
        raise
    except Exception as failure:
        logger.warning("poll failed: %s: %s. Going on.", type(failure).__name__, failure)
        return failure
    if error:
        logger.warning("poll failed: %s. Going on.", error)
    return error
