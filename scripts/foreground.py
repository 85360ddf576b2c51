"""Staying in the foreground until somebody says stop."""

from __future__ import annotations

import os
import signal
import threading


def wait_until_stopped() -> None:
    """Return on Ctrl-C, on SIGTERM, or when the process that started this one is gone."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    parent = os.getppid()  # `just` passes no SIGTERM on
    while os.getppid() == parent and not stopped.wait(0.5):
        pass
