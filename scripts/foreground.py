"""Staying in the foreground until somebody says stop."""

from __future__ import annotations

import os
import signal
import threading


def wait_until_stopped(worker: threading.Thread | None = None) -> bool:
    """Return on Ctrl-C, on SIGTERM, or when the process that started this one is gone, and so False when the
    worker has ended by itself. A second signal ends the process."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    parent = os.getppid()  # `just` passes no SIGTERM on
    while os.getppid() == parent and not stopped.wait(0.5):
        if worker is not None and not worker.is_alive():
            return False
    return True
