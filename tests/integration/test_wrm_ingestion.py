"""WRM into bronze: live polls and archives, by dlt, on a file lake and on a real S3 server."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta

import pytest
from conftest import bronze_rows, moment, raw_name, small_snapshot
from dlt.pipeline.exceptions import PipelineStepFailed
from outages import running_proxy

from ingestion import wrm
from ingestion.settings import PROJECT_ROOT

ATTEMPT = "resource, status, is_unchanged, error is null, attempt_number"


def test_live_snapshot_is_kept_as_it_came_under_its_utc_day(live_workplace, feed):
    outcome = wrm.take_snapshot(live_workplace.settings)
    assert (outcome.is_taken, outcome.error) == (True, None)
    [(payload, digest, size, encoding, mended, key, observed_at, fetched_at, dt)] = bronze_rows(
        live_workplace.settings,
        "station_snapshots",
        "payload, payload_sha256, payload_bytes, encoding, mended_names, source_key, "
        "observed_at, fetched_at, dt",
    )
    assert payload.decode() == feed.last_text
    assert digest == hashlib.sha256(payload).hexdigest()
    assert (size, encoding, mended, key) == (len(payload), "utf-8", None, f"{feed.url}/wrm")
    assert observed_at < fetched_at
    assert dt == observed_at.astimezone(UTC).date()
    assert bronze_rows(live_workplace.settings, "fetch_attempts", ATTEMPT) == [
        ("failures", 200, False, True, 1),
        ("station_snapshots", 200, False, True, 1),
    ]


def test_unchanged_payload_is_recorded_and_not_stored_again(live_workplace, feed):
    wrm.take_snapshot(live_workplace.settings)
    feed.misbehave("unchanged")
    assert wrm.take_snapshot(live_workplace.settings).is_unchanged
    assert len(bronze_rows(live_workplace.settings, "station_snapshots")) == 1
    assert bronze_rows(live_workplace.settings, "fetch_attempts", "is_unchanged") == [(False,)] * 2 + [
        (True,)
    ]


def test_conditional_request_is_made_where_the_server_offers_it(live_workplace, feed):
    feed.offers_etag = True
    wrm.take_snapshot(live_workplace.settings)
    feed.misbehave("unchanged")
    outcome = wrm.take_snapshot(live_workplace.settings)
    assert (outcome.is_unchanged, outcome.payload_bytes) == (True, 0)
    assert feed.requests[-1][1]["If-None-Match"]
    assert (304,) in bronze_rows(live_workplace.settings, "fetch_attempts", "status")


def test_defects_are_asked_for_once_a_day(live_workplace, feed):
    wrm.take_snapshot(live_workplace.settings)
    wrm.take_snapshot(live_workplace.settings)
    assert [path for path, _ in feed.requests].count("/failures") == 1
    [(payload,)] = bronze_rows(live_workplace.settings, "failures", "payload")
    assert "Przebita dętka" in payload.decode()


@pytest.mark.parametrize("kind", ["html", "empty", "500", "404"])
def test_broken_answers_are_failed_attempts_and_no_snapshots(live_workplace, feed, kind):
    feed.misbehave(kind)
    outcome = wrm.take_snapshot(live_workplace.settings)
    assert outcome.error is not None and not outcome.is_taken
    assert bronze_rows(live_workplace.settings, "station_snapshots") == []
    [(error,)] = [
        row for row in bronze_rows(live_workplace.settings, "fetch_attempts", "error") if row[0] is not None
    ]
    assert error == outcome.error


@pytest.mark.parametrize("kind", ["mojibake", "wrong_encoding"])
def test_broken_names_are_mended_beside_the_untouched_payload(live_workplace, feed, kind):
    feed.misbehave(kind)
    wrm.take_snapshot(live_workplace.settings)
    [(payload, text, encoding, mended)] = bronze_rows(
        live_workplace.settings, "station_snapshots", "payload, payload_text, encoding, mended_names"
    )
    names = {station.name for station in feed.city.stations if not station.name.isascii()}
    if kind == "mojibake":
        assert (encoding, text) == ("utf-8", None)
        assert set(json.loads(mended).values()) == names
        assert all(broken in payload.decode() for broken in json.loads(mended))
    else:
        assert (encoding, mended) == ("cp1250", None)
        assert text == payload.decode("cp1250")
        assert all(name in text for name in names)


def test_one_torn_name_leaves_all_others_whole(workplace, archive):
    good = small_snapshot(moment("2025-05-13 00:00:00")).encode("utf-8-sig")
    torn = good.replace("Źródlana".encode(), "Źródlana".encode()[1:])
    assert torn != good
    import_archive(workplace, archive(**{raw_name("2025-05-13 00:00:00"): torn}))
    [(payload, text)] = bronze_rows(workplace.settings, "station_snapshots", "payload, payload_text")
    assert payload == torn
    assert "\ufffdródlana" in text and "Ćwiklińska" in text


def test_dlt_state_comes_back_where_the_working_directory_was_lost(live_workplace, feed):
    wrm.take_snapshot(live_workplace.settings)
    shutil.rmtree(live_workplace.settings.data_dir / "dlt")
    feed.misbehave("unchanged")
    assert wrm.take_snapshot(live_workplace.settings).is_unchanged
    assert len(bronze_rows(live_workplace.settings, "station_snapshots")) == 1


def import_archive(workplace, folder):
    outcome = wrm.import_archive(workplace.settings, str(folder))
    return outcome.taken, outcome.known, len(outcome.refused)


def test_snapshots_taken_while_the_lake_is_away_land_when_it_is_back(live_workplace, s3_server, feed):
    with running_proxy(("127.0.0.1", int(s3_server.endpoint_url.rpartition(":")[2]))) as s3:
        live_workplace.configure(
            **s3_server.environment
            | {
                "LAKE_URL": f"s3://bike-data-flow/away-{time.time_ns()}",
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3.port}",
            }
        )
        texts = []
        for is_away in (False, True, True, False):
            (s3.cut if is_away else s3.join)() if texts else None
            with pytest.raises(PipelineStepFailed) if is_away else nullcontext():
                wrm.take_snapshot(live_workplace.settings)
            texts.append(feed.last_text)
        objects = "getvariable('lake') || '/bronze/wrm/station_snapshots/*/*'"
        held = live_workplace.lake_rows(
            f"select decode(payload) from read_parquet({objects}) order by observed_at"
        )
    assert len(set(texts)) == 4
    assert [text for (text,) in held] == texts


def test_archive_lands_under_the_day_observed_and_once(workplace, archive):
    text = small_snapshot(moment("2025-05-12 18:10:07"))
    folder = archive(
        **{
            f"dt=2025-05-12__{raw_name('2025-05-12 18:10:07')}": text,
            "station_data_20250513_000000.txt": small_snapshot(moment("2025-05-13 00:00:00")),
            "content_2025-05-13_00-10-00.txt.gz": gzip.compress(b"#id\n"),
        }
    )
    assert import_archive(workplace, folder) == (3, 0, 0)
    assert import_archive(workplace, folder) == (0, 3, 0)
    rows = bronze_rows(workplace.settings, "station_snapshots", "dt, observed_at, payload_bytes")
    assert rows == [
        (date(2025, 5, 12), moment("2025-05-12 18:10:07"), len(text.encode())),
        (date(2025, 5, 13), moment("2025-05-13 00:00:00"), rows[1][2]),
        (date(2025, 5, 13), moment("2025-05-13 00:10:00"), 4),
    ]


def test_archive_takes_an_old_day_that_is_dropped_in_late(workplace, archive):
    folder = archive(**{raw_name("2025-05-13 00:00:00"): small_snapshot(moment("2025-05-13 00:00:00"))})
    import_archive(workplace, folder)
    archive(**{raw_name("2025-05-01 00:00:00"): small_snapshot(moment("2025-05-01 00:00:00"))})
    assert import_archive(workplace, folder) == (1, 1, 0)
    assert bronze_rows(workplace.settings, "station_snapshots", "dt") == [
        (date(2025, 5, 1),),
        (date(2025, 5, 13),),
    ]


def test_archive_takes_a_folder_that_was_moved_in_with_old_files(workplace, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(wrm, "LATE_ARRIVAL", timedelta(0))
    staged = archive(
        "staging", **{raw_name("2025-05-01 00:00:00"): small_snapshot(moment("2025-05-01 00:00:00"))}
    )
    time.sleep(0.05)
    folder = archive(**{raw_name("2025-05-13 00:00:00"): small_snapshot(moment("2025-05-13 00:00:00"))})
    import_archive(workplace, folder)
    staged.rename(folder / "dt=2025-05-01")
    assert import_archive(workplace, folder) == (1, 1, 0)


def test_archive_is_not_misled_by_a_file_from_the_future(workplace, archive, monkeypatch):
    monkeypatch.setattr(wrm, "LATE_ARRIVAL", timedelta(0))
    folder = archive(**{raw_name("2025-05-13 00:00:00"): small_snapshot(moment("2025-05-13 00:00:00"))})
    os.utime(folder / raw_name("2025-05-13 00:00:00"), (4e9, 4e9))
    import_archive(workplace, folder)
    archive(**{raw_name("2025-05-14 00:00:00"): small_snapshot(moment("2025-05-14 00:00:00"))})
    assert import_archive(workplace, folder)[0] == 1


def test_archive_tries_refused_files_again(workplace, archive, monkeypatch):
    monkeypatch.setattr(wrm, "LATE_ARRIVAL", timedelta(0))
    folder = archive(**{raw_name("2025-05-13 00:00:00"): small_snapshot(moment("2025-05-13 00:00:00"))})
    workplace.configure(FETCH_MAX_BYTES="10")
    assert import_archive(workplace, folder) == (0, 0, 1)
    time.sleep(0.05)
    archive(**{raw_name("2025-05-14 00:00:00"): "#id"})
    assert import_archive(workplace, folder) == (1, 0, 1)
    workplace.configure(FETCH_MAX_BYTES="")
    assert import_archive(workplace, folder) == (1, 1, 0)


def test_recent_files_of_an_archive_are_taken_without_a_look_at_its_other_days(workplace, archive):
    days = [date(2025, 5, day) for day in (11, 12)]
    old, new = "2025-05-10 10:00:00", "2025-05-12 10:00:00"
    folder = archive(
        **{f"raw__dt=2025-05-10__{raw_name(old)}": small_snapshot(moment(old)), "notes.txt": "-"}
    )
    seen = wrm.SeenArchive()
    wrm.import_archive(workplace.settings, str(folder), seen=seen)
    assert wrm.import_recent(workplace.settings, str(folder), days, seen).listed == 0
    archive(
        **{
            f"raw__dt=2025-05-12__{raw_name(new)}": small_snapshot(moment(new)),
            f"raw__dt=2025-05-12__{raw_name('2025-05-12 10:00:01')}.gz": b"no gzip",
            f"raw__dt=2025-05-09__{raw_name('2025-05-09 10:00:00')}": small_snapshot(
                moment("2025-05-09 10:00:00")
            ),
        }
    )
    outcome = wrm.import_recent(workplace.settings, str(folder), days, seen)
    assert (outcome.taken, outcome.days, len(outcome.refused)) == (1, {date(2025, 5, 12)}, 1)
    again = wrm.import_recent(workplace.settings, str(folder), days, seen)
    assert (again.taken, again.refused) == (0, []), "a refused file waits for the next full look"
    whole = wrm.import_archive(workplace.settings, str(folder), seen=seen)
    assert (whole.taken, whole.days, len(whole.refused)) == (1, {date(2025, 5, 9)}, 1)


def test_archive_knows_a_snapshot_under_another_name_and_takes_a_changed_one(workplace, archive):
    text = small_snapshot(moment("2025-05-13 00:00:00"))
    import_archive(workplace, archive(**{raw_name("2025-05-13 00:00:00"): text}))
    other = archive("other", **{"station_data_20250513_000000.txt": text})
    assert import_archive(workplace, other) == (0, 1, 0)
    changed = archive(**{raw_name("2025-05-13 00:00:00"): text.replace("true", "false")})
    assert import_archive(workplace, changed) == (1, 0, 0)
    assert len(bronze_rows(workplace.settings, "station_snapshots")) == 2


def test_archive_refuses_broken_files_one_by_one_and_takes_the_rest(workplace, archive):
    folder = archive(
        **{
            raw_name("2025-05-13 00:00:00"): small_snapshot(moment("2025-05-13 00:00:00")),
            "content_2025-05-13_00-10-00.txt.gz": b"not gzip",
            "notes.md": "x",
        }
    )
    assert import_archive(workplace, folder) == (1, 0, 1)
    [(url, error)] = bronze_rows(workplace.settings, "fetch_attempts", "url, error")
    assert url == (folder / "content_2025-05-13_00-10-00.txt.gz").as_uri()
    assert error.startswith("File cannot be read")


KILLED_IMPORT = """
import os, signal, sys
from dlt.destinations.impl.filesystem.filesystem import FilesystemLoadJob
from ingestion import wrm
from ingestion.settings import load_settings
FilesystemLoadJob.run = lambda self: os.kill(os.getpid(), signal.SIGKILL)
wrm.import_archive(load_settings(), sys.argv[1])
"""


def test_a_package_that_a_kill_left_pending_lands_under_its_own_day(workplace, archive):
    folder = archive(**{raw_name("2025-05-13 00:00:00"): small_snapshot(moment("2025-05-13 00:00:00"))})
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IMPORT, str(folder)],
        env=workplace.command_environment(),
        cwd=PROJECT_ROOT,
        capture_output=True,
    )
    assert killed.returncode == -9
    assert import_archive(workplace, folder) == (0, 1, 0)
    assert bronze_rows(workplace.settings, "station_snapshots", "dt") == [(date(2025, 5, 13),)]


KILLED_NORMALIZE = """
import os, signal
from dlt.common.storages.load_package import PackageStorage
from ingestion import wrm
from ingestion.settings import load_settings
commit = PackageStorage.delete_package
PackageStorage.delete_package = lambda self, load_id, **options: (
    commit(self, load_id, **options) if options else os.kill(os.getpid(), signal.SIGKILL)
)
wrm.take_snapshot(load_settings())
"""


def test_a_kill_between_dlts_two_commits_is_made_good(live_workplace, feed):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_NORMALIZE],
        env=live_workplace.command_environment(),
        cwd=PROJECT_ROOT,
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    feed.misbehave("unchanged")
    assert wrm.take_snapshot(live_workplace.settings).is_unchanged
    assert len(bronze_rows(live_workplace.settings, "station_snapshots")) == 1


def test_archive_on_s3_goes_into_a_lake_on_s3(workplace, s3_server, archive):
    workplace.configure(**s3_server.environment | {"LAKE_URL": "s3://bike-data-flow/ingestion"})
    from ingestion.lake import Lake

    filesystem = Lake.of(workplace.settings).filesystem()
    text = small_snapshot(moment("2025-05-13 00:00:00")).encode()
    filesystem.pipe_file(f"bike-data-flow/raw/dt=2025-05-13/{raw_name('2025-05-13 00:00:00')}", text)
    location = "s3://bike-data-flow/raw"
    assert import_archive(workplace, location) == (1, 0, 0)
    assert import_archive(workplace, location) == (0, 1, 0)
    [(payload, key, dt)] = bronze_rows(workplace.settings, "station_snapshots", "payload, source_key, dt")
    assert (payload, dt) == (text, date(2025, 5, 13))
    assert key == f"{location}/dt=2025-05-13/{raw_name('2025-05-13 00:00:00')}"


def test_a_city_snapshot_is_the_same_for_the_same_seed_and_moment():
    when = datetime(2025, 5, 12, 18, 10, 7, tzinfo=UTC)
    assert small_snapshot(when) == small_snapshot(when)
