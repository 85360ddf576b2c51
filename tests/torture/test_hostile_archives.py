"""Archives of files that cannot be taken: each is refused with its reason, and the good ones arrive."""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Workplace, bronze_rows, moment, raw_name, small_snapshot

from ingestion import wrm

GOOD = [raw_name("2025-05-12 10:00:00"), raw_name("2025-05-12 14:00:00")]
BAD = raw_name("2025-05-12 12:00:00")
MOST_BYTES = 1_000_000


def bind_socket(path: Path) -> None:
    """A Unix socket, whose path may be longer than a socket's address."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def holds(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


NO_FILE, UNREADABLE, LARGE = "It is no file: ", "File cannot be read: ", "File is too large: "
BOMB = bytes(64 * 1024 * 1024)


@pytest.mark.parametrize(
    ("suffix", "make", "reason"),
    [
        pytest.param("", os.mkfifo, NO_FILE, id="pipe"),
        pytest.param(".gz", os.mkfifo, NO_FILE, id="packed pipe"),
        pytest.param("", bind_socket, NO_FILE, id="socket"),
        pytest.param("", link_to("/dev/zero"), NO_FILE, id="link to an endless device"),
        pytest.param("", link_to("nowhere"), UNREADABLE, id="dangling link"),
        pytest.param("", link_to(BAD), UNREADABLE, id="link to itself"),
        pytest.param(".gz", holds(b"no gzip"), UNREADABLE, id="corrupt gzip"),
        pytest.param(".gz", holds(gzip.compress(BOMB)[:-9]), LARGE, id="gzip bomb"),
        pytest.param(".zst", holds(pa.compress(BOMB, codec="zstd", asbytes=True)), LARGE, id="zstd bomb"),
        pytest.param(".zst", holds(b"\x28\xb5\x2f\xfd\xff\xff\xff\xff"), UNREADABLE, id="corrupt zstd"),
    ],
)
def test_what_is_no_snapshot_is_refused_and_the_rest_arrives(
    workplace: Workplace,
    archive: Callable[..., Path],
    suffix: str,
    make: Callable[[Path], None],
    reason: str,
) -> None:
    workplace.configure(FETCH_MAX_BYTES=str(MOST_BYTES))
    folder = archive(**{name: small_snapshot(moment("2025-05-12 12:00:00")) + name for name in GOOD})
    make(folder / f"{BAD}{suffix}")
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.taken, len(outcome.refused)) == (len(GOOD), 1)
    assert outcome.refused[0].startswith(f"{reason}{(folder / BAD).as_uri()}{suffix}. ")
    assert bronze_rows(workplace.settings, "fetch_attempts", "resource, error") == [
        ("station_snapshots", outcome.refused[0])
    ]


def test_folders_that_are_links_even_in_a_circle_end(
    workplace: Workplace, archive: Callable[..., Path]
) -> None:
    folder = archive(**{name: small_snapshot(moment("2025-05-12 12:00:00")) + name for name in GOOD})
    (folder / "circle").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / raw_name("2025-05-12 13:00:00")).mkdir()
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.taken, outcome.refused) == (len(GOOD), [])


def test_files_with_odd_names_are_passed_over(workplace: Workplace, archive: Callable[..., Path]) -> None:
    folder = archive(**{GOOD[0]: small_snapshot(moment("2025-05-12 10:00:00"))})
    for name in (b"\xff\xfe.txt", b"..txt", b"a\nb.txt", GOOD[0].encode() + b"\xff", b"%2e%2e", b"'; drop--"):
        (folder / os.fsdecode(name)).write_bytes(b"x")
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.listed, outcome.taken, outcome.refused) == (1, 1, [])


def test_a_file_that_vanishes_after_it_was_listed_is_refused(
    workplace: Workplace, archive: Callable[..., Path]
) -> None:
    folder = archive(**{name: small_snapshot(moment("2025-05-12 12:00:00")) + name for name in GOOD})

    def remove_the_second(done: int, _: int) -> None:
        (folder / GOOD[1]).unlink(missing_ok=True)

    outcome = wrm.import_archive(workplace.settings, str(folder), remove_the_second)
    assert outcome.taken == 1
    assert [reason.startswith(UNREADABLE) for reason in outcome.refused] == [True]
