"""A local S3 server (SeaweedFS) on loopback, with one bucket: python -m scripts.start_s3

It takes free ports, keeps its files under DATA_DIR/s3, prints the variables that point the project at it, and
stops with Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import requests
import s3fs

from ingestion.settings import Settings
from scripts.command import CommandError, run_command
from scripts.foreground import wait_until_stopped

BUCKET = "bike-data-flow"
STARTUP_SECONDS = 60
# Linux gives those from 32 768 on to outgoing connections, others from 49 152: any of these may take a port
# between the look at it and the server's bind.
PORTS = range(10_000, 22_768)
GRPC_OFFSET = 10_000  # weed opens each of its ports, and another so much above it


class S3Error(CommandError):
    """The local S3 server cannot be started."""


@dataclass(frozen=True)
class S3Server:
    """Where the server listens and what it lets in with."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str
    # who may do no more than a policy says, by name: the server as each of them sees it
    identities: Mapping[str, S3Server] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point the project at the server."""
        return {
            "LAKE_URL": f"s3://{BUCKET}/lake",
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "eu-central-1",
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """A client of its own, which remembers no listing."""
        return s3fs.S3FileSystem(
            key=self.access_key_id,
            secret=self.secret_access_key,
            endpoint_url=self.endpoint_url,
            skip_instance_cache=True,
            use_listings_cache=False,
        )


@contextmanager
def running_s3(folder: Path, policies: Mapping[str, Any] | None = None) -> Iterator[S3Server]:
    """Have an S3 server with its files in `folder` running for the length of a `with` block. For each of the
    `policies` (IAM documents by name) it knows an identity that may do what its policy allows.

    Raises `S3Error` when it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = _keys(folder)
    further_keys = {name: _new_keys() for name in policies or {}}
    ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
    config = folder / "identities.json"
    _write_private(config, json.dumps(_identities(keys, further_keys, policies or {})))
    command = [
        _weed(), "-logtostderr", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-volume.max=0",
        "-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=256", "-metricsPort=0", "-webdav=false",
        "-iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", "-filer",
        f"-filer.port={ports['filer']}", "-s3", "-s3.iam=false", f"-s3.port={ports['s3']}",
        f"-s3.config={config}",
    ]  # fmt: skip
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", *keys)
    server = replace(
        server, identities={name: S3Server(server.endpoint_url, *own) for name, own in further_keys.items()}
    )
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(server, process, folder / "server.log")
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)  # it may linger; what it stored is on disk by now
            process.kill()
            process.wait()


def _keys(folder: Path) -> tuple[str, str]:
    kept = folder / "keys.json"
    if not kept.exists():
        _write_private(kept, json.dumps(_new_keys()))
    access_key_id, secret_access_key = json.loads(kept.read_text())
    return access_key_id, secret_access_key


def _write_private(path: Path, text: str) -> None:
    """Write a file that is its owner's alone from its first byte on."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def _new_keys() -> tuple[str, str]:
    return secrets.token_hex(8), secrets.token_hex(16)


def _identities(
    keys: tuple[str, str], further_keys: Mapping[str, tuple[str, str]], policies: Mapping[str, Any]
) -> dict[str, object]:
    """The server's configuration: one identity that may do everything, and one per policy."""
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [_identity("local", keys, actions=actions)]
    identities += [_identity(name, own, policyNames=[name]) for name, own in further_keys.items()]
    documents = [{"name": name, "content": json.dumps(policy)} for name, policy in policies.items()]
    return {"identities": identities, "policies": documents}


def _identity(name: str, keys: tuple[str, str], **rights: list[str]) -> dict[str, object]:
    access_key_id, secret_access_key = keys
    credentials = [{"accessKey": access_key_id, "secretKey": secret_access_key}]
    return {"name": name, "credentials": credentials, **rights}


def _weed() -> str:
    beside_python = Path(sys.executable).parent / "weed"
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise S3Error("The S3 server is missing: weed. Run it through scripts/just, which installs it.")
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that are free on loopback together with their gRPC sisters."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = secrets.choice(PORTS)
            try:
                for taken in (port, port + GRPC_OFFSET):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", taken))
            except OSError:
                continue
            found.append(port)
    return found


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(requests.RequestException, OSError):
            requests.get(f"{server.endpoint_url}/status", timeout=2)
            filesystem = server.filesystem()
            if not filesystem.exists(BUCKET):
                filesystem.mkdir(BUCKET)
            probe = f"{BUCKET}/.probe"
            filesystem.pipe_file(probe, b"ready")
            filesystem.rm_file(probe)
            return
        time.sleep(0.2)
    ended = process.poll()
    what = f"did not come up within {STARTUP_SECONDS} s" if ended is None else f"ended with {ended}"
    raise S3Error(f"The S3 server {what}: {server.endpoint_url}. See {log}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    run_command(_keep_running)


def _keep_running(settings: Settings) -> None:
    settings.make_data_dir()
    with running_s3(settings.data_dir / "s3") as server:
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print("# The S3 server is running; Ctrl-C stops it.", flush=True)
        wait_until_stopped()


if __name__ == "__main__":
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    main()
