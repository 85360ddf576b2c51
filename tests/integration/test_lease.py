"""The lease of a lake: one holder at a time, on a disk and on S3, also when a holder dies."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT
from scripts import lease as leases
from scripts.command import CommandError, the_only_job
from scripts.lease import Holder, LeaseHeldError, LeaseLostError, held_lease, lease_holder

HOLD = """
import time
from ingestion.lake import Lake
from ingestion.settings import load_settings
from scripts import lease
from scripts.command import the_only_job
lease.LEASE_SECONDS, lease.RENEWAL_SECONDS = {seconds}, 1
with {context}:
    print("held", flush=True)
    time.sleep(60)
"""
HOLD_THE_LEASE = HOLD.format(
    seconds=3,
    context='lease.held_lease(Lake.of(load_settings()), lease.Holder("backfill", "20250512T181007-aaaaaa"))',
)
BE_THE_ONLY_JOB = HOLD.format(seconds=3600, context='the_only_job(load_settings(), "backfill")')


@pytest.fixture(params=["files", "s3"])
def lake(request, workplace, s3_server, monkeypatch):
    """A lake of a test's own; leases run out after three seconds."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3)
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 1)
    if request.param == "s3":
        place = f"s3://bike-data-flow/lease-{time.time_ns()}"
        workplace.configure(**s3_server.environment | {"LAKE_URL": place})
    return Lake.of(workplace.settings)


def holder(job="watch"):
    return Holder(job, f"20250512T181007-{os.urandom(3).hex()}")


def hold_in_a_process(workplace, code):
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT_ROOT,
        env=workplace.command_environment(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_second_holder_is_refused_and_told_of_the_first_until_it_lets_go(lake):
    first = holder("backfill")
    with held_lease(lake, first):
        assert lease_holder(lake) == first
        with pytest.raises(LeaseHeldError, match=f"backfill, process {os.getpid()} on .*, since 20"):  # noqa: SIM117
            with held_lease(lake, holder()):
                pass
    assert lease_holder(lake) is None
    with held_lease(lake, holder()) as second:
        assert second.left_by is None


def test_lease_outlasts_its_seconds_because_it_is_renewed(lake):
    with held_lease(lake, holder()) as held:
        time.sleep(5)
        held.check()
        with pytest.raises(LeaseHeldError), held_lease(lake, holder("backfill")):
            pass


def test_lease_of_a_killed_holder_is_taken_over_and_its_run_is_named(lake, workplace):
    process = hold_in_a_process(workplace, HOLD_THE_LEASE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with held_lease(lake, holder(), waits=lambda: True) as held:
        assert (held.left_by.job, held.left_by.run_id) == ("backfill", "20250512T181007-aaaaaa")
        held.check()


def test_job_that_died_on_this_machine_is_succeeded_at_once(workplace, s3_server):
    workplace.configure(**s3_server.environment | {"LAKE_URL": f"s3://bike-data-flow/lease-{time.time_ns()}"})
    process = hold_in_a_process(workplace, BE_THE_ONLY_JOB)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with the_only_job(workplace.settings, "run") as run:
        assert run.lease.left_by.job == "backfill"


def test_one_of_many_gets_the_lease(lake):
    def attempt(_):
        try:
            with held_lease(lake, holder()):
                time.sleep(1.5)
                return True
        except LeaseHeldError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_job_on_another_machine_says_who_is_at_work(lake, workplace, tmp_path):
    with held_lease(
        lake, Holder("watch", "20250512T181007-bbbbbb", "collector-1", 42, "2025-05-12T18:10:07+00:00")
    ):
        workplace.configure(DATA_DIR=str(tmp_path / "elsewhere"), LAKE_URL=lake.url)
        with (
            pytest.raises(
                CommandError,
                match="Another job is at work: watch, process 42 on collector-1, since 2025-05-12 18",
            ),
            the_only_job(workplace.settings, "run"),
        ):
            pass


def test_lease_that_was_taken_over_is_lost_and_left_alone(workplace, s3_server, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 2)
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 3600)  # as good as cut off from the store
    place = f"s3://bike-data-flow/lease-{time.time_ns()}"
    workplace.configure(**s3_server.environment | {"LAKE_URL": place})
    lake = Lake.of(workplace.settings)
    second = holder("backfill")
    with held_lease(lake, holder()) as first:
        time.sleep(3.1)
        with held_lease(lake, second):
            with pytest.raises(LeaseLostError, match="Another job took the lake over: backfill, process"):
                first.check()
            assert lease_holder(lake) == second
    record = lake.s3_client().get_object(
        **dict(zip(("Bucket", "Key"), lake.bucket_and_key("_lease.json"), strict=True))
    )
    assert set(json.loads(record["Body"].read())) == {"released_at"}


def test_lease_that_was_out_of_touch_but_not_taken_is_held_still(workplace, s3_server, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1)
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 3600)
    workplace.configure(**s3_server.environment | {"LAKE_URL": f"s3://bike-data-flow/lease-{time.time_ns()}"})
    with held_lease(Lake.of(workplace.settings), holder()) as held:
        time.sleep(2.1)
        held.check()
        held.check()
