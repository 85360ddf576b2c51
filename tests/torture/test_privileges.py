"""Nobody is let in, and nobody may do more than he must: sockets, modes of files, and the user of PostgreSQL
that docs/operations.md makes for the pipeline."""

import os
import re
import stat
import uuid
from pathlib import Path

import psutil
import psycopg2
import pytest
from conftest import FEW_STATIONS
from logins import execute, login_url, require_password

from ingestion.settings import PROJECT_ROOT, load_settings
from scripts.command import the_only_job
from scripts.start_postgres import running_postgres
from scripts.start_s3 import running_s3

LISTENING = "0A"  # of /proc/net/tcp
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
PASSWORD = "of the loader, 'quoted'"


def processes_below(folder):
    """Processes whose arguments name a folder, with their children."""
    named = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    return {p.pid for parent in named for p in [parent, *parent.children(recursive=True)]} - {os.getpid()}


def listening(processes):
    """Addresses, in the kernel's spelling, that processes listen on by TCP."""
    links = [path for pid in processes for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {match[1] for link in links if (match := re.match(r"socket:\[(\d+)\]", os.readlink(link)))}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes}


def test_the_embedded_postgres_listens_on_a_socket_that_only_its_owner_reaches(tmp_path):
    settings = load_settings({"DATA_DIR": str(tmp_path / "data")})
    with running_postgres(settings):
        processes = processes_below(settings.postgres_data_dir)
        assert len(processes) > 3 and listening(processes) == set()
        [connection] = [path for path in settings.postgres_socket_dir.iterdir() if path.is_socket()]
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in
                 (settings.postgres_data_dir, settings.postgres_socket_dir, connection)}  # fmt: skip
        assert set(modes.values()) == {0o700}
        assert execute(settings.postgres_parameters(), "show listen_addresses") == [("",)]


def test_a_new_data_dir_is_its_owners_alone(workplace):
    private = workplace.settings.data_dir.parent / "private"
    workplace.configure(DATA_DIR=str(private))
    with the_only_job(workplace.settings, "transform"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_the_local_s3_server_listens_on_loopback_and_keeps_its_keys_to_itself(tmp_path):
    with running_s3(tmp_path / "s3"):
        addresses = listening(processes_below(tmp_path / "s3"))
        assert addresses and addresses <= LOOPBACK
        holders = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s3").glob("*.json")}
        assert holders == {"keys.json": 0o600, "identities.json": 0o600}


@pytest.fixture
def loader(workplace, postgres_server):
    """The parameters of the user that docs/operations.md makes; the workplace's jobs work as it."""
    name, database = f"loader_{uuid.uuid4().hex[:8]}", workplace.settings.postgres_parameters()["dbname"]
    reader = f"reader_of_{name}"
    documented = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    [statements] = re.findall(r"```sql\n(create role bike_data_loader.+?)```", documented, re.DOTALL)
    for old, new in (
        ("database city", f"database {database}"),
        ("bike_data_loader", name),
        ("bike_data_reader", reader),
        ("'…'", "'" + PASSWORD.replace("'", "''") + "'"),
    ):
        assert old in statements
        statements = statements.replace(old, new)
    execute(postgres_server.postgres_parameters() | {"dbname": database}, statements)
    require_password(postgres_server, name)
    workplace.configure(
        POSTGRES_URL=login_url(postgres_server, name, PASSWORD, database), POSTGRES_READER_ROLE=reader
    )
    return workplace.settings.postgres_parameters()


def test_the_pipeline_works_as_the_documented_loader_who_may_do_nothing_else(
    live_workplace, loader, postgres_server, tmp_path, record_property
):
    place, admin = live_workplace, postgres_server.postgres_parameters() | {"dbname": loader["dbname"]}
    execute(
        admin,
        "create schema theirs; create table theirs.payroll (salary integer)",
        "create table public.neighbours (id integer)",
    )
    with place.job("run_pipeline", "run") as job:
        assert (job.wait(), "Readers cannot read" in job.output, job.output) == (0, False, job.output)
    assert place.warehouse_rows("select count(*) from bike_stations") == [(FEW_STATIONS,)]
    assert_it_owns_what_it_made_and_is_nobody(admin, loader["user"])
    secret = tmp_path / "secret"
    secret.write_text("planted")
    outside = {
        "a table of others": "select * from theirs.payroll",
        "a neighbour in the same schema": "select * from public.neighbours",
        "its end": "drop table public.neighbours",
        "its change": "alter table public.neighbours add column mine integer",
        "writing into it": "insert into public.neighbours values (1)",
        "their schema": "create table theirs.mine (id integer)",
        "a role": "create role another",
        "becoming more": f"alter role {loader['user']} superuser",
        "becoming somebody else": "set role postgres",
        "a database": "create database another",
        "passwords": "select rolpassword from pg_authid",
        "a file of the server": f"copy bike_stations from '{secret}'",
        "reading a file": f"select pg_read_file('{secret}')",
        "a program": "copy bike_stations to program 'true'",
        "writing a file": f"copy bike_stations to '{tmp_path}/stolen'",
        "a setting of the server": "alter system set log_statement = 'all'",
        "code in C": "create function run() returns int as 'libc', 'system' language c",
        "a large object of a file": f"select lo_import('{secret}')",
        "a reload of the server's settings": "select pg_reload_conf()",
    }
    refused = {what for what, statement in outside.items() if is_refused(loader, statement)}
    assert set(outside) - refused == set()
    record_property("refused_statements", len(refused))
    assert execute(admin, "select count(*) from public.neighbours") == [(0,)]
    assert_another_database_is_closed(postgres_server.postgres_parameters(), loader)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**loader | {"password": "another"})


def assert_another_database_is_closed(admin, loader):
    """Whoever is let into it reads and makes nothing there."""
    table = f"of_others_{uuid.uuid4().hex[:8]}"
    execute(admin, f"create table {table} (id integer)")
    there = loader | {"dbname": admin["dbname"]}
    assert is_refused(there, f"select * from {table}") and is_refused(there, "create table mine (id integer)")
    execute(admin, f"drop table {table}")


def is_refused(parameters, statement):
    """Whether PostgreSQL says that the user may not; any other error, or none, is no refusal."""
    try:
        execute(parameters, statement)
    except psycopg2.errors.InsufficientPrivilege:
        return True
    except psycopg2.Error as error:
        pytest.fail(f"{statement}: {error}")
    return False


def assert_it_owns_what_it_made_and_is_nobody(admin, user):
    """No attribute, no membership but the reader's role; owner of the landing schema and its own tables."""
    attributes = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
    assert execute(admin, f"select {attributes} from pg_roles where rolname = '{user}'") == [(False,) * 5]
    schemas = f"select nspname::text from pg_namespace where nspowner = '{user}'::regrole"
    assert execute(admin, schemas) == [("landing",)]
    owned = execute(admin, "select distinct tableowner::text from pg_tables where schemaname = 'landing'")
    assert owned == [(user,)]
