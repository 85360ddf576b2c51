"""`watch` over outages and kills: it ends with the rows of an undisturbed run and one alert per incident.

WATCH_MINUTES (default 0: as short as the incidents allow) is how long to watch at least; WATCH_SPEED (default
60) is how many minutes pass in the simulated city meanwhile for each of ours.
"""

import os
import random
import signal
import subprocess
import time
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from hashlib import sha256

import psycopg2
import pytest
from conftest import FEW_BIKES, FEW_STATIONS, raw_name, small_snapshot
from outages import running_proxy, running_receiver

from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT, load_settings
from scripts.simulate_feed import City, running_feed
from scripts.start_postgres import running_postgres

SECONDS = float(os.environ.get("WATCH_MINUTES", "0")) * 60
SPEED = float(os.environ.get("WATCH_SPEED", "60"))
PATIENCE_SECONDS = 150
OVER = ": over"  # in each message of a recovery


class Watcher:
    """`just watch`, in a process group of its own, killed and started at will."""

    def __init__(self, place, log, texts):
        self.place, self.log, self.texts, self.process = place, log, texts, None

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["just", "--justfile", PROJECT_ROOT / "justfile", "watch"],
                env=self.place.command_environment(),
                cwd=PROJECT_ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """SIGTERM, as a supervisor sends it to every process of a service, and wait for them all."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(PATIENCE_SECONDS)  # just goes first
        deadline = time.monotonic() + PATIENCE_SECONDS
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.1)

    def until(self, what, condition):
        """Wait for something to become true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            told = f"waited in vain for {what}: {self.texts}\n{self.log.read_text()[-6000:]}"
            assert self.process.poll() is None and time.monotonic() < deadline, told
            time.sleep(0.1)


@pytest.fixture
def stage(workplace, s3_server, tmp_path):
    """A workplace whose feed, S3 server and PostgreSQL can go away, and whose alerts are kept."""
    with ExitStack() as stack:
        city = City(stations=FEW_STATIONS, free_bikes=FEW_BIKES, lively=True)
        feed = stack.enter_context(running_feed(city=city, speed=SPEED))
        s3 = stack.enter_context(running_proxy(("127.0.0.1", int(s3_server.endpoint_url.rpartition(":")[2]))))
        hook = stack.enter_context(running_receiver())
        warehouse = load_settings({"DATA_DIR": str(tmp_path / "warehouse")})
        server = stack.enter_context(ExitStack())
        server.enter_context(running_postgres(warehouse))
        host = str(warehouse.postgres_socket_dir).replace("/", "%2F")
        (tmp_path / "archive").mkdir()
        workplace.configure(
            **s3_server.environment
            | {
                "LAKE_URL": f"s3://bike-data-flow/watch-{time.time_ns()}",
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3.port}",
                "POSTGRES_URL": f"postgresql://postgres:@{host}:5432/postgres",
                "WRM_FEED_URL": f"{feed.url}/wrm",
                "WRM_FAILURES_URL": f"{feed.url}/failures",
                "WATCH_ARCHIVE": str(tmp_path / "archive"),
                "WATCH_POLL_SECONDS": "1",
                "WATCH_EXPORT_SECONDS": "2",
                "METRICS_ADDRESS": "127.0.0.1:0",
                "ALERT_WEBHOOK_URL": hook.url,
                # a long watch has the feed go stale; a short one has no time for it
                "ALERT_STALE_MINUTES": "0.75" if SECONDS else "60",
            }
        )
        yield workplace, feed, s3, hook, server, warehouse


def test_watch_survives_outages_and_kills_and_tells_of_each_incident_once(stage, tmp_path, request):
    place, feed, s3, hook, server, warehouse = stage
    served = remember_answers(feed)
    chance = random.Random(7)
    watcher = Watcher(place, tmp_path / "watch.log", hook.texts)
    request.addfinalizer(lambda: watcher.process.poll() is None and watcher.kill())
    incidents = 0

    def let_pass():
        time.sleep(SECONDS / 7)

    def told(count):
        return lambda: len(hook.texts) >= count

    def exported():
        with closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection:
            cursor = connection.cursor()
            cursor.execute("select to_regclass('public.bike_stations') is not null")
            if cursor.fetchone() == (False,):
                return 0
            cursor.execute("select count(distinct processed_at) from bike_stations")
            return cursor.fetchone()[0]

    def incident(what, begin, end):
        nonlocal incidents
        begin()
        watcher.until(f"an alert of {what}", told(2 * incidents + 1))
        time.sleep(SECONDS * 0.02)
        end()
        watcher.until(f"the end of {what}", told(2 * incidents + 2))
        incidents += 1
        seen = exported()
        watcher.until(f"new readings after {what}", lambda: exported() > seen)
        let_pass()

    def be_killed():
        time.sleep(chance.uniform(0, 4))
        watcher.kill()
        watcher.start()

    watcher.start()
    watcher.until("the first readings", lambda: exported() > 0)
    observed_at = datetime.now(UTC).replace(microsecond=0)  # an older one would make a gap to tell of
    text = small_snapshot(observed_at)
    (tmp_path / "archive" / raw_name(f"{observed_at:%Y-%m-%d %H:%M:%S}")).write_text(text)
    let_pass()
    if SECONDS:
        incident("a stale feed", lambda: feed.misbehave("500", 1_000_000), feed.misbehaviours.clear)
    else:
        feed.misbehave("500", 2)
    incident("S3 away", s3.cut, s3.join)
    incident("a kill", be_killed, lambda: None)
    incident("PostgreSQL away", server.close, lambda: server.enter_context(running_postgres(warehouse)))
    if SECONDS:
        incident("another kill", be_killed, lambda: None)
    watcher.stop()
    assert watcher.log.read_text().endswith(" Stopped.\n"), watcher.log.read_text()[-6000:]

    told_over = [OVER in text for text in hook.texts]
    assert told_over == [False, True] * incidents, "\n\n".join(hook.texts)
    place.configure(WATCH_ARCHIVE="", ALERT_WEBHOOK_URL="")
    place.just("transform")
    place.just("export")
    held = place.lake_rows("select payload_sha256 from int_wrm__snapshots_received where not is_unchanged")
    live = [digest for (digest,) in held if digest != sha256(text.encode()).hexdigest()]
    assert len(held) == len(live) + 1  # the archive's
    assert len(live) == len(set(live)) and set(live) <= set(served)
    assert len(set(served) - set(live)) <= 2, "one may be lost on its way at each kill"
    disturbed = all_rows(place)
    undisturbed = all_rows(build_anew(place, tmp_path))
    assert sorted(disturbed) == sorted(undisturbed)
    for table, rows in undisturbed.items():
        assert disturbed[table] == rows, table


def remember_answers(feed):
    """The digests of the good answers that the feed gives from now on."""
    digests = []
    answer = feed.answer

    def remembered():
        given = answer()
        if given.status == 200:
            digests.append(sha256(given.body).hexdigest())
        return given

    feed.answer = remembered
    return digests


def build_anew(place, tmp_path):
    """The same bronze in a lake and a database of their own, built and exported in one go."""
    lake = Lake.of(place.settings)
    filesystem = lake.filesystem()
    for path in filesystem.find(f"{lake.root}/bronze/wrm"):
        target = tmp_path / "undisturbed/lake/bronze" / path.partition("/bronze/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(path, str(target))
    with closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute("create database undisturbed")
    url = place.environment["POSTGRES_URL"].removesuffix("postgres") + "undisturbed"
    place.configure(DATA_DIR=str(tmp_path / "undisturbed"), LAKE_URL="", POSTGRES_URL=url)
    place.just("transform")
    place.just("export")
    return place


def all_rows(place):
    """Every row of the lake's models and of the public tables, in order, but for what tells of runs and of
    the seconds they took."""
    kept = "columns(column_name -> not ends_with(column_name, 'silver_seconds'))"
    views = place.lake_rows(
        "select view_name from duckdb_views() where not internal and view_name not like '%pipeline%'"
    )
    rows = {name: place.lake_rows(f"select {kept} from {name} order by all") for (name,) in views}
    columns = place.warehouse_rows(
        "select table_name, string_agg(quote_ident(column_name), ', ' order by column_name) "
        "from information_schema.columns where table_schema = 'public' and table_name not like 'pipeline%' "
        "and column_name not like '%silver_seconds' group by 1"
    )
    for table, names in columns:
        rows[f"public.{table}"] = place.warehouse_rows(f"select row({names})::text from {table} order by 1")
    return rows
