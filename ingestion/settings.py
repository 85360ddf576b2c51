"""Every setting of the project, read from the environment in one place.

Names, defaults and meanings stand in `.env.example`. A `.env` file in the project's root is read too; what
the environment already holds wins.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from dotenv import dotenv_values

POSTGRES_URL_PARAMETERS = {"host", "sslmode", "sslrootcert"}
PROJECT_ROOT = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """One or more settings are missing or malformed; the message lists them all."""


class SecretValueError(ValueError):
    """A malformed value that must not be repeated in a message."""


@dataclass(frozen=True)
class S3Settings:
    """How to reach an S3-compatible store. Without keys, AWS's usual credential chain applies."""

    endpoint_url: str | None
    region: str
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    addressing_style: str  # "path" or "virtual"
    ca_bundle: str | None  # file of the authorities to trust instead of the usual ones


@dataclass(frozen=True)
class Settings:
    """The project's settings; see `.env.example` for every name and default."""

    environment: str  # "prod" or "dev"
    data_dir: Path
    lake_url: str  # "file:///…" or "s3://bucket/prefix", without a trailing slash
    postgres_url: str | None = field(repr=False)  # None: the embedded server under data_dir
    postgres_schema: str
    postgres_reader_role: str
    export_retention_days: int | None  # None: PostgreSQL keeps every day
    s3: S3Settings
    wrm_feed_url: str
    wrm_failures_url: str
    fetch_timeout_seconds: float
    fetch_attempts: int
    fetch_max_bytes: int
    duckdb_memory_limit: str
    duckdb_threads: int
    dbt_threads: int  # models built at once
    watch_poll_seconds: float
    watch_export_seconds: float
    watch_archive: str | None  # folder or s3:// prefix
    dlt_loads_retention_days: int
    bronze_cold_after_days: int
    bronze_expires_after_days: int | None  # None: never
    alert_webhook_url: str | None = field(repr=False)
    alert_stale_minutes: float
    alert_min_score: float  # of 100
    alert_max_quarantine_pct: float
    metrics_address: tuple[str, int]  # host, port; port 0 takes a free one
    metrics_textfile: Path | None
    log_level: str
    log_format: str  # "text" or "json"

    def make_data_dir(self) -> None:
        """Make DATA_DIR where it is missing, for its owner alone: it holds data, and keys of the local S3."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def postgres_data_dir(self) -> Path:
        return self.data_dir / "postgres"

    @property
    def postgres_socket_dir(self) -> Path:
        """Where the embedded server's socket is. Short whatever the project's path is, because a socket's
        path may hold 107 bytes at most; `exports/profiles.yml` derives the same name."""
        digest = md5(str(self.data_dir).encode()).hexdigest()[:12]
        return Path("/tmp") / f"bike-data-flow-{digest}"

    @property
    def landing_schema(self) -> str:
        return "landing" if self.postgres_schema == "public" else f"{self.postgres_schema}_landing"

    def postgres_parameters(self) -> dict[str, Any]:
        """Connection parameters under libpq's names (host, port, user, password, dbname, sslmode, …)."""
        if self.postgres_url is None:
            return {
                "host": str(self.postgres_socket_dir),
                "port": "5432",
                "user": "postgres",
                "password": "",
                "dbname": "postgres",
            }
        url = urlsplit(self.postgres_url)
        parameters = {
            "host": unquote(url.hostname or "") or "localhost",
            "port": str(url.port or 5432),
            "user": unquote(url.username or "postgres"),
            "password": unquote(url.password or ""),
            "dbname": unquote(url.path.lstrip("/")) or "postgres",
        }
        return parameters | {name: values[-1] for name, values in parse_qs(url.query).items()}


def canonical_postgres_url(settings: Settings) -> str:
    """The warehouse's URL, every part present and percent-encoded: `exports/profiles.yml` takes it apart."""
    given = settings.postgres_parameters()
    user, password, host = (quote(given[part], safe="") for part in ("user", "password", "host"))
    tls = "&".join(f"{name}={given[name]}" for name in ("sslmode", "sslrootcert") if name in given)
    url = f"postgresql://{user}:{password}@{host}:{given['port']}/{given['dbname']}"
    return f"{url}?{tls}" if tls else url


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check every setting.

    Raises `SettingsError` that names each missing or malformed variable, all together.
    """
    if environment is None:
        environment = _dotenv() | os.environ
    read = _Reader(environment)
    is_dev = read("ENVIRONMENT", "prod", _one_of("prod", "dev")) == "dev"
    data_dir = read("DATA_DIR", "data", _absolute_path)
    lake_url = read("LAKE_URL", "", _lake_url) or data_dir.joinpath("lake").as_uri()
    if is_dev:  # beside the other's, so that one bucket serves both
        lake_url += "-dev"
    settings = Settings(
        environment="dev" if is_dev else "prod",
        data_dir=data_dir,
        lake_url=lake_url,
        postgres_url=read("POSTGRES_URL", "", _postgres_url) or None,
        postgres_schema=read("POSTGRES_SCHEMA", "dev" if is_dev else "public", _identifier),
        postgres_reader_role=read("POSTGRES_READER_ROLE", "bike_data_reader", _role),
        export_retention_days=read("EXPORT_RETENTION_DAYS", "7" if is_dev else "", _positive(int)) or None,
        s3=S3Settings(
            endpoint_url=read("AWS_ENDPOINT_URL_S3", read.raw("AWS_ENDPOINT_URL"), _public_url) or None,
            region=read("AWS_REGION", read.raw("AWS_DEFAULT_REGION") or "eu-central-1", str),
            access_key_id=read.raw("AWS_ACCESS_KEY_ID") or None,
            secret_access_key=read.raw("AWS_SECRET_ACCESS_KEY") or None,
            session_token=read.raw("AWS_SESSION_TOKEN") or None,
            addressing_style=read("S3_ADDRESSING_STYLE", "path", _one_of("path", "virtual")),
            ca_bundle=read("AWS_CA_BUNDLE", "", _existing_file) or None,
        ),
        wrm_feed_url=read(
            "WRM_FEED_URL",
            "https://gladys.geog.ucl.ac.uk/bikesapi/load.php?scheme=wroclaw",
            _public_url,
        ),
        wrm_failures_url=read(
            "WRM_FAILURES_URL",
            "https://www.wroclaw.pl/open-data/39605eb0-8055-4733-bb02-04b96791d36a/WRM_usterki.csv",
            _public_url,
        ),
        fetch_timeout_seconds=read("FETCH_TIMEOUT_SECONDS", "20", _positive(float)),
        fetch_attempts=read("FETCH_ATTEMPTS", "3", _positive(int)),
        fetch_max_bytes=read("FETCH_MAX_BYTES", str(32 * 1024 * 1024), _positive(int)),
        duckdb_memory_limit=read("DUCKDB_MEMORY_LIMIT", "1GB", _memory_size),
        duckdb_threads=read(
            "DUCKDB_THREADS",
            str(8 if lake_url.startswith("s3://") else os.cpu_count() or 2),
            _positive(int),
        ),
        # on S3 they wait for answers more than they work
        dbt_threads=read("DBT_THREADS", "4" if lake_url.startswith("s3://") else "2", _positive(int)),
        watch_poll_seconds=read("WATCH_POLL_SECONDS", "60", _positive(float)),
        watch_export_seconds=read("WATCH_EXPORT_SECONDS", "120", _positive(float)),
        watch_archive=read("WATCH_ARCHIVE", "", _archive) or None,
        dlt_loads_retention_days=read("DLT_LOADS_RETENTION_DAYS", "7" if is_dev else "30", _positive(int)),
        bronze_cold_after_days=read("BRONZE_COLD_AFTER_DAYS", "90", _positive(int)),
        bronze_expires_after_days=read("BRONZE_EXPIRES_AFTER_DAYS", "30" if is_dev else "", _positive(int))
        or None,
        alert_webhook_url=read("ALERT_WEBHOOK_URL", "", _secret_url) or None,
        alert_stale_minutes=read("ALERT_STALE_MINUTES", "30", _positive(float)),
        alert_min_score=read("ALERT_MIN_SCORE", "85", _percentage),
        alert_max_quarantine_pct=read("ALERT_MAX_QUARANTINE_PCT", "5", _percentage),
        metrics_address=read("METRICS_ADDRESS", "127.0.0.1:9464", _address),
        metrics_textfile=read("METRICS_TEXTFILE", "", _absolute_path) or None,
        log_level=read("LOG_LEVEL", "INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")),
        log_format=read("LOG_FORMAT", "text", _one_of("text", "json")),
    )
    if lake_url.startswith("s3://") and bool(settings.s3.access_key_id) != bool(
        settings.s3.secret_access_key
    ):
        missing = "SECRET_ACCESS_KEY" if settings.s3.access_key_id else "ACCESS_KEY_ID"
        read.problems.append(f"AWS_{missing} is missing: it goes together with its other half")
    read.raise_problems()
    return settings


@functools.cache
def _dotenv() -> dict[str, str]:
    """What `.env` says, read once: a process must not come to work on another lake midway."""
    return {name: value for name, value in dotenv_values(PROJECT_ROOT / ".env").items() if value is not None}


class _Reader:
    """Reads variables one by one and keeps what is wrong with them for one report."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []

    def raw(self, name: str) -> str:
        return self.environment.get(name, "").strip()

    def __call__(self, name: str, default: str, parse: Callable[[str], Any]) -> Any:
        value = self.raw(name) or default
        if not value:
            return value
        try:
            return parse(value)
        except SecretValueError as error:
            self.problems.append(f"{name} is malformed: its value is a secret and not shown. {error}")
            return default
        except ValueError as error:
            self.problems.append(f"{name} is malformed: {_without_password(value)!r}. {error}")
            return parse(default) if default else default

    def raise_problems(self) -> None:
        if self.problems:
            raise SettingsError(
                "Settings cannot be used:\n  "
                + "\n  ".join(self.problems)
                + "\nMend them in .env or in the environment; .env.example explains each."
            )


def _without_password(value: str) -> str:
    """The value, fit for a message: a URL loses its user and password."""
    if "@" not in value:
        return value
    scheme, separator, rest = value.rpartition("://")
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}"


def _absolute_path(value: str) -> Path:
    return (PROJECT_ROOT / Path(_plain(value)).expanduser()).resolve()


def _plain(value: str) -> str:
    """The value, unless SQL or a glob would take a character of it for something else."""
    if any(character in value for character in "'*?[]"):
        raise ValueError("Give a place without ' * ? [ ] in its name.")
    return value


def _existing_file(value: str) -> str:
    if not Path(value).is_file():
        raise ValueError("Give a file that exists.")
    return value


def _lake_url(value: str) -> str:
    url = urlsplit(_plain(value))
    if url.scheme == "s3" and url.netloc:
        return value.rstrip("/")
    if url.scheme == "file" and url.path.startswith("/") and not url.netloc:
        return value.rstrip("/")
    if not url.scheme:
        return _absolute_path(value).as_uri()
    raise ValueError("Give s3://bucket/prefix, file:///folder or a folder.")


def _postgres_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("postgres", "postgresql"):
        raise ValueError("Give postgresql://user:password@host:port/database.")
    try:
        _ = url.port
    except ValueError:
        raise ValueError("The port is no number; percent-encode / # ? @ in the password.") from None
    unknown = set(parse_qs(url.query)) - POSTGRES_URL_PARAMETERS
    if unknown:
        raise ValueError(f"Unknown parameters: {', '.join(sorted(unknown))}.")
    return value


def _http_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError("Give an http:// or https:// URL.")
    return value


def _public_url(value: str) -> str:
    """An http(s) URL that rows, logs and messages name."""
    if "@" in urlsplit(_http_url(value)).netloc:
        raise ValueError("Give it without user and password: it is named in rows and logs.")
    return value


def _secret_url(value: str) -> str:
    """An http(s) URL that is a secret itself, as webhooks' are: the message does not repeat it."""
    try:
        return _http_url(value)
    except ValueError:
        raise SecretValueError("Give an http:// or https:// URL.") from None


def _archive(value: str) -> str:
    return value.rstrip("/") if value.startswith("s3://") else str(_absolute_path(value))


def _address(value: str) -> tuple[str, int]:
    host, separator, port = value.rpartition(":")
    if not (separator and host and port.isdigit() and int(port) < 65536):
        raise ValueError("Give host:port, such as 127.0.0.1:9464.")
    return host.strip("[]"), int(port)


def _percentage(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("Give a number.") from None
    if not 0 <= number <= 100:
        raise ValueError("Give a number from 0 to 100.")
    return number


def _identifier(value: str) -> str:
    if not (value.isascii() and value.replace("_", "a").isalnum() and value == value.lower()):
        raise ValueError("Give lower-case letters, digits and underscores.")
    if value[0].isdigit() or len(value) > 40:
        raise ValueError("Begin with a letter and stay within 40 characters.")
    return value


def _role(value: str) -> str:
    if value.startswith("pg_") or value in ("public", "none"):
        raise ValueError("PostgreSQL keeps this name for itself: give another.")
    return _identifier(value)


def _memory_size(value: str) -> str:
    number, unit = value[:-2].strip(), value[-2:].upper()
    if not (number.replace(".", "", 1).isdigit() and unit in ("MB", "GB")):
        raise ValueError("Give a size such as 512MB or 2GB.")
    return value


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(value: str) -> Any:
        try:
            number = kind(value)
        except ValueError:
            raise ValueError("Give a number.") from None
        if not 0 < number < float("inf"):
            raise ValueError("Give a number above zero.")
        return number

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        match = {a.lower(): a for a in allowed}.get(value.lower())
        if match is None:
            raise ValueError(f"Give one of: {', '.join(allowed)}.")
        return match

    return parse
