"""Prometheus and promtool for the tests: from PATH, or from the distribution's package.

The package is unpacked into `.venv/prometheus`, without root and without installing or starting anything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from ingestion.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / ".venv" / "prometheus"
STARTUP_SECONDS = 60


def find_prometheus() -> Path:
    """The folder of `prometheus` and `promtool`; fails the test with what to install where there is none."""
    found = shutil.which("prometheus"), shutil.which("promtool")
    if all(found):
        return Path(str(found[0])).parent
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(FOLDER.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of pytest-xdist want it as well
        if not FOLDER.exists():
            _unpack_package()
    return FOLDER / "usr" / "bin"


def _unpack_package() -> None:
    unfinished = FOLDER.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        if _call("apt-get", "download", "prometheus", folder=unfinished):
            options = _own_lists(unfinished)
            _must("apt-get", *options, "update", folder=unfinished)
            _must("apt-get", *options, "download", "prometheus", folder=unfinished)
        [package] = unfinished.glob("prometheus_*.deb")
        _must("dpkg-deb", "-x", str(package), str(unfinished / "unpacked"), folder=unfinished)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        pytest.fail(
            f"Prometheus is missing, and its package cannot be fetched: {said.strip()}. Install it "
            "(Debian, Ubuntu: apt-get install prometheus; macOS: brew install prometheus) and test again."
        )
    os.replace(unfinished / "unpacked", FOLDER)
    shutil.rmtree(unfinished)


def _own_lists(folder: Path) -> tuple[str, ...]:
    """Options for package lists of our own: the machine may have none, and not everybody may fetch them."""
    for path in ("state/lists/partial", "cache/archives/partial"):
        (folder / path).mkdir(parents=True)
    places = {
        "Dir::State": folder / "state",
        "Dir::Cache": folder / "cache",
        "Dir::State::status": "/var/lib/dpkg/status",
    }
    return tuple(f"-o{name}={place}" for name, place in places.items())


def _call(*command: str, folder: Path) -> int:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode


def _must(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)


class Prometheus:
    """A server that runs on loopback."""

    def __init__(self, url: str, process: int) -> None:
        self.url = url
        self.process = process

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; fails the test where Prometheus cannot parse it."""
        answer = requests.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        if answer["status"] != "success":
            pytest.fail(f"Prometheus refuses {expression!r}: {answer['error']}")
        return answer["data"]["result"]

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives, as soon as there are any."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while not (found := self.query(expression)):
            if time.monotonic() > deadline:
                pytest.fail(f"Prometheus has nothing for {expression!r} after {STARTUP_SECONDS} s.")
            time.sleep(0.1)
        return found


@contextmanager
def running_prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """Have a server with a configuration and its data in `folder` running for the length of a block."""
    (folder / "prometheus.yml").write_text(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        find_prometheus() / "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with open(folder / "prometheus.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait(f"http://127.0.0.1:{port}", process, folder / "prometheus.log")
            yield Prometheus(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/-/ready", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    pytest.fail(f"Prometheus did not come up:\n{log.read_text()[-2000:]}")


def listening_addresses(process: int) -> set[str]:
    """The addresses that a process listens on."""
    connections = psutil.Process(process).net_connections(kind="inet")
    return {found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN}
