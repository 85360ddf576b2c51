"""The sensors of `watch`: when they are due, and how long they wait after failures."""

import threading
import time

import pytest

from scripts.lease import LeaseLostError
from scripts.watch_lake import LONGEST_BACKOFF, Sensor, Watch


@pytest.fixture
def failing():
    """A sensor of ten seconds whose work fails as storage does."""

    def work():
        raise OSError("storage is away")

    return Sensor("poll", 10, work)


def seconds_until_due(sensor):
    return sensor.due_at - time.monotonic()


def test_sensor_that_fails_waits_longer_each_time_and_at_most_five_intervals(failing):
    waits = []
    for _ in range(6):
        failing.attempt()
        waits.append(round(seconds_until_due(failing)))
    assert waits == [10, 20, 40, 50, 50, 50]
    assert LONGEST_BACKOFF == 5
    assert "storage is away" in failing.error


def test_sensor_that_succeeds_again_is_back_to_its_interval(failing):
    failing.attempt()
    failing.attempt()
    failing.work = lambda: None
    failing.attempt()
    assert (failing.failures, failing.error, round(seconds_until_due(failing))) == (0, None, 10)


def test_sensor_is_woken_unless_it_waits_after_a_failure(failing):
    failing.attempt()
    failing.wake()
    assert round(seconds_until_due(failing)) == 10
    failing.work = lambda: None
    failing.attempt()
    failing.wake()
    assert seconds_until_due(failing) < 0


def test_lost_lease_ends_the_watch(failing):
    def work():
        raise LeaseLostError("Another job took the lake over: run.")

    failing.work = work
    with pytest.raises(LeaseLostError):
        failing.attempt()


def test_round_gives_each_sensor_its_turn_and_the_export_two(workplace):
    state = Watch(workplace.settings)
    turns = []

    def note(name, *woken):
        def work():
            turns.append(name)
            for sensor in woken:
                sensor.wake()

        return work

    state.raw.work = note("poll", state.export, state.build)
    state.export.work = note("export")
    state.build.work = note("build", state.export, state.raw)
    state.sensors = [state.raw, state.export, state.build]
    state.run_round(threading.Event())
    assert turns == ["poll", "export", "build", "export"]
    turns.clear()
    stopped = threading.Event()
    state.raw.work = lambda: (turns.append("poll"), stopped.set())
    state.run_round(stopped)
    assert turns == ["poll"], "what has begun is finished, and nothing more is begun"
