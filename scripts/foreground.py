"""Staying in the foreground until somebody says stop."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_SECONDS = 0.5


class StopRequest:
    """What asks this process to end: Ctrl-C, SIGTERM, or that the process which started it is gone. From here
    on a signal interrupts nothing; whoever works looks now and then whether to stop. A second one ends the
    process."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self._parent = os.getppid()  # `just` passes no SIGTERM on
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._came.set()
        signal.signal(number, signal.SIG_DFL)

    def came_within(self, seconds: float) -> bool:
        """Wait for it, so long at most; tells whether it has come."""
        until = time.monotonic() + seconds
        while os.getppid() == self._parent:
            left = until - time.monotonic()
            if self._came.wait(min(max(left, 0), LOOK_SECONDS)):
                return True
            if left <= LOOK_SECONDS:
                return False
        return True


def wait_until_stopped(worker: threading.Thread | None = None) -> bool:
    """Return on Ctrl-C, on SIGTERM, or when the process that started this one is gone, and so False when the
    worker has ended by itself."""
    request = StopRequest()
    while not request.came_within(LOOK_SECONDS):
        if worker is not None and not worker.is_alive():
            return False
    return True
