"""No secret is written anywhere: real jobs, well and failing, and a search of all they leave behind."""

import base64
import gzip
import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from conftest import moment, raw_name, small_snapshot
from logins import execute, login_url, make_login
from outages import running_receiver
from psycopg2 import sql

from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT
from scripts.start_s3 import running_s3

KEY_ID = "PLANTED9KEY9ID"
SECRET_KEY = "pl4nted/S3+key'=\\&%zż"
TOKEN = "pl4nted/session+token'=="
PASSWORD = "pl4nted'p@ss/w%6frd\"o:?#\\$ ż"
WRONG_PASSWORD = "pl4nted-wrong'p@ss/word"
WEBHOOK_PATH = "services/T0/B0/pl4nted-webhook"
ARGUMENT = f"pl4nted/argument+{os.getpid()}'="  # other workers look at all processes at the same time
SECRETS = (SECRET_KEY, TOKEN, PASSWORD, WRONG_PASSWORD, WEBHOOK_PATH, ARGUMENT)
# the local S3 server's own: what it lets in with
HOLDERS = ("keys.json", "identities.json")


def percent(text):
    return quote(text, safe="")


def spellings(secret):
    """A secret in every way that text, JSON, SQL, a URL, a shell or base64 may spell it."""
    written = {
        *(secret, repr(secret)[1:-1], shlex.quote(secret)[1:-1]),
        *(quote(secret), percent(secret), quote_plus(secret), percent(secret).lower()),
        *(json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]),
        *(secret.replace("'", "''"), secret.replace("'", "\\'"), secret.replace("\\", "\\\\")),
    }
    spelt = {text.encode() for text in written}
    for lead in range(3):  # what stands before it moves the groups of three bytes
        code = base64.b64encode(b"x" * lead + secret.encode())
        inner = code[4 if lead else 0 : -4]  # without what its neighbours change
        spelt |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return spelt


def unpacked(name, content):
    """The bytes, and what is in them where they are Parquet or gzip."""
    yield content
    if content.startswith(b"PAR1"):
        table = pq.read_table(pa.BufferReader(content))
        yield str(table.schema.metadata).encode()
        yield "\n".join(str(value) for row in table.to_pylist() for value in row.values()).encode()
    elif content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)


def find_secrets(sources, secrets=SECRETS):
    """{(source, secret)} of all that a secret is found in; `sources` are names with their bytes."""
    wanted = [(secret, spelling) for secret in secrets for spelling in spellings(secret)]
    return {
        (name, secret)
        for name, content in sources
        for part in unpacked(name, content)
        for secret, spelling in wanted
        if spelling in part
    }


def files(*folders, since=0.0):
    """Names and bytes of the files below folders that were written since a time."""
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (Path(place) / name for name in names):
                with suppress(FileNotFoundError):  # another process may clear its own away
                    if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                        yield str(path), path.read_bytes()


def lake_objects(place):
    lake = Lake.of(place.settings)
    filesystem = lake.filesystem()
    for path in filesystem.find(lake.root):
        yield path, filesystem.cat_file(path)


def tables(parameters):
    """Every table of a database as text."""
    named = execute(
        parameters,
        "select format('%I.%I', schemaname, tablename) from pg_tables "
        "where schemaname not in ('pg_catalog', 'information_schema')",
    )
    for (table,) in named:
        rows = execute(parameters, f"select told::text from {table} as told")
        yield f"PostgreSQL {table}", "\n".join(row for (row,) in rows).encode()


@contextmanager
def watched_processes():
    """The command lines of all processes that show up in the length of a `with` block."""
    seen, ended = set(), threading.Event()

    def look():
        while not ended.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    seen.add((process / "cmdline").read_bytes())
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


class Site:
    """A place whose every secret is planted, and all that is known of what its jobs wrote."""

    def __init__(self, place, server, hook, s3_folder, processes):
        self.place, self.server, self.hook, self.s3_folder = place, server, hook, s3_folder
        self.processes, self.said = processes, []
        self.began_at = time.time()

    def job(self, *arguments, status=0, **changed):
        """A job, with some settings changed for it alone; gives what it printed."""
        before = {name: self.place.environment.get(name, "") for name in changed}
        self.place.configure(**changed)
        with self.place.job(*arguments) as job:
            assert (arguments, job.wait(), job.output) == (arguments, status, job.output)
        self.place.configure(**before)
        self.said.append((f"printed by {arguments}", job.output.encode()))
        return job.output

    def sources(self):
        """All that was written: names and bytes."""
        settings = self.place.settings
        database = settings.postgres_parameters()["dbname"]
        beside = [
            PROJECT_ROOT / project / f for project in ("transform", "exports") for f in ("target", "logs")
        ]
        beside += [Path.home() / name for name in (".dlt", ".dbt", ".duckdb")]
        beside += Path(tempfile.gettempdir()).glob("bike-data-flow-*")
        yield from files(settings.data_dir)
        yield from files(*beside, since=self.began_at)
        yield from (source for source in files(self.s3_folder) if not source[0].endswith(HOLDERS))
        yield from lake_objects(self.place)
        yield from tables(self.server.postgres_parameters() | {"dbname": database})
        yield "PostgreSQL's log", (self.server.postgres_data_dir / "server.log").read_bytes()
        yield "alerts", "\n".join(self.hook.texts).encode()
        yield from ((f"arguments {line!r}", line) for line in self.processes)
        yield from self.said


@pytest.fixture
def site(live_workplace, postgres_server, tmp_path, monkeypatch, record_property):
    """The pipeline on an S3 server and a PostgreSQL that let nobody in without the planted secrets."""
    record_property("secrets_searched", len(SECRETS))
    place, user = live_workplace, f"planted_{uuid.uuid4().hex[:8]}"
    database = place.settings.postgres_parameters()["dbname"]
    make_login(postgres_server, user, PASSWORD)
    execute(postgres_server.postgres_parameters(), f"alter database {database} owner to {user}")
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "keys.json").touch(mode=0o600)
    (tmp_path / "s3" / "keys.json").write_text(json.dumps([KEY_ID, SECRET_KEY]))
    with ExitStack() as stack:
        hook = stack.enter_context(running_receiver())
        s3 = stack.enter_context(running_s3(tmp_path / "s3"))
        processes = stack.enter_context(watched_processes())
        place.configure(
            **s3.environment,
            POSTGRES_URL=login_url(postgres_server, user, PASSWORD, database),
            ALERT_WEBHOOK_URL=f"http://127.0.0.1:{hook.server_port}/{WEBHOOK_PATH}",
            METRICS_TEXTFILE=str(place.settings.data_dir / "metrics" / "bike.prom"),
            METRICS_ADDRESS="127.0.0.1:0",
            LOG_LEVEL="DEBUG",
        )
        yield Site(place, postgres_server, hook, tmp_path / "s3", processes)


def test_the_search_finds_a_secret_however_it_is_spelt(tmp_path):
    for secret in SECRETS:
        for number, spelling in enumerate(spellings(secret)):
            (tmp_path / f"{number}.log").write_bytes(b"line\nkey=" + spelling + b"\x00\n")
        for lead in ("", "a", "ab"):
            encoded = base64.b64encode(f"{lead}{secret}/rest".encode())
            (tmp_path / f"b64 {lead}.txt").write_bytes(encoded)
        (tmp_path / "trace.gz").write_bytes(gzip.compress(secret.encode()))
        pq.write_table(pa.table({"a": [1], "b": [f"it is {secret}"]}), tmp_path / "rows.parquet")
        there = {(str(path), secret) for path in tmp_path.iterdir()}
        assert len(there) > 10 and find_secrets(files(tmp_path), [secret]) == there
        assert find_secrets([("other", b"nothing")], [secret]) == set()
        for path in tmp_path.iterdir():
            path.unlink()


def test_no_secret_of_jobs_that_do_well_or_fail_is_written(site):
    site.job("run_pipeline", "run")
    assert site.place.warehouse_rows("select count(*) > 0 from bike_stations") == [(True,)]
    url, (right, wrong) = site.place.environment["POSTGRES_URL"], map(percent, (PASSWORD, WRONG_PASSWORD))
    refused = site.job(
        "run_pipeline", "export", status=1, POSTGRES_URL=url.replace(right, wrong), LOG_FORMAT="json"
    )
    assert "password authentication failed" in refused
    nobody = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SESSION_TOKEN": TOKEN}
    assert "Failed. " in site.job("run_pipeline", "ingest", "wrm", status=1, **nobody)
    assert any("the job export failed" in text for text in site.hook.texts)
    assert_nothing_is_written(site)
    assert_the_search_reaches_everywhere(site)


def assert_nothing_is_written(site):
    """No secret anywhere, but for the S3 server's own files, which nobody else may read."""
    assert find_secrets(site.sources()) == set()
    assert find_secrets([*site.said, ("alerts", "\n".join(site.hook.texts).encode())], [KEY_ID]) == set()
    held = {Path(name).name for name, _ in find_secrets(files(site.s3_folder), [SECRET_KEY])}
    assert held == set(HOLDERS)
    assert {(site.s3_folder / name).stat().st_mode & 0o777 for name in HOLDERS} == {0o600}


def assert_the_search_reaches_everywhere(site):
    """A secret that is written somewhere is found there."""
    lake = Lake.of(site.place.settings)
    rows = io.BytesIO()
    pq.write_table(pa.table({"error": [None, f"refused: {TOKEN}"]}), rows)
    lake.filesystem().pipe_file(f"{lake.root}/planted.parquet", rows.getvalue())
    (site.place.settings.data_dir / "planted.pickle").write_bytes(pickle.dumps({"password": PASSWORD}))
    execute(
        site.place.settings.postgres_parameters(),
        "create table landing.planted (told jsonb)",
        sql.SQL("insert into landing.planted values ({})").format(sql.Literal(json.dumps([PASSWORD]))),
    )
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1)", ARGUMENT], check=True)
    found = find_secrets(site.sources())
    # the S3 server's own files hold the object as well
    outside = {
        (Path(name).name, secret)
        for name, secret in found
        if "arguments" not in name and str(site.s3_folder) not in name
    }
    assert outside == {
        ("planted.parquet", TOKEN),
        ("planted.pickle", PASSWORD),
        ("PostgreSQL landing.planted", PASSWORD),
    }
    assert {secret for name, secret in found if "arguments" in name} == {ARGUMENT}


CRASH = """
from ingestion import wrm
from scripts import run_pipeline
def poll(*arguments):
    raise AttributeError(f"a mistake of the project's own: {arguments}")
wrm._poll = poll
run_pipeline.main()
"""


@pytest.mark.sampled
def test_no_secret_of_a_job_that_crashes_is_written(site):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, "ingest", "wrm"],
        env=site.place.command_environment(),
        cwd=PROJECT_ROOT,
        capture_output=True,
    )
    assert done.returncode == 1 and b"Traceback" in done.stderr and b"AttributeError" in done.stderr
    site.said.append(("printed by the crash", done.stdout + done.stderr))
    assert_nothing_is_written(site)


@pytest.mark.sampled
def test_no_secret_of_watch_its_metrics_and_its_alerts_is_written(site):
    site.place.configure(WATCH_POLL_SECONDS="1", WATCH_EXPORT_SECONDS="1")
    with site.place.job("watch_lake") as watch:
        until(watch, lambda: watch.log.exists() and "agree" in watch.output)
        [url] = re.findall(r"metrics: (http\S+)", watch.output)
        site.said.append(("metrics", requests.get(url, timeout=30).content))
        watch.terminate()
        assert watch.wait() == 0
        site.said.append(("printed by watch", watch.output.encode()))
    assert b"bike_data_flow" in site.said[0][1]
    assert_nothing_is_written(site)


def until(job, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert job.is_running and time.monotonic() < deadline, job.output
        time.sleep(0.1)


@pytest.mark.sampled
def test_no_secret_of_upkeep_and_documents_is_written(site, archive):
    moments = ("2025-05-12 12:00:00", "2025-05-12 12:10:00")
    folder = archive(**{raw_name(each): small_snapshot(moment(each)) for each in moments})
    site.job("run_pipeline", "backfill", str(folder))
    site.job("run_pipeline", "backfill")
    site.job("compact_bronze")
    site.job("verify_lake")
    site.job("build_docs")
    site.job("open_psql", "-c", "select current_user")
    site.job("show_status", "--json", status=1)
    assert "Failed. " in site.job("show_status", status=1, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    assert_nothing_is_written(site)
