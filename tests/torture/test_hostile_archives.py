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
from ingestion.lake import Lake
from scripts.start_s3 import BUCKET, S3Server

GOOD = [raw_name("2025-05-12 10:00:00"), raw_name("2025-05-12 14:00:00")]
BAD = raw_name("2025-05-12 12:00:00")
MOST_BYTES = 1_000_000
Record = Callable[[str, object], None]


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
    record_property: Record,
) -> None:
    record_property("hostile_files", 1)
    workplace.configure(FETCH_MAX_BYTES=str(MOST_BYTES))
    folder = archive(**{name: small_snapshot(moment("2025-05-12 12:00:00")) + name for name in GOOD})
    make(folder / f"{BAD}{suffix}")
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.taken, len(outcome.refused)) == (len(GOOD), 1)
    assert outcome.refused[0].startswith(f"{reason}{(folder / BAD).as_uri()}{suffix}. ")
    assert bronze_rows(workplace.settings, "fetch_attempts", "resource, error") == [
        ("station_snapshots", outcome.refused[0])
    ]


def test_folders_that_are_links_even_in_a_circle_end_and_are_told(
    workplace: Workplace,
    archive: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    record_property: Record,
) -> None:
    record_property("hostile_files", 4)
    folder = archive(**{name: small_snapshot(moment("2025-05-12 12:00:00")) + name for name in GOOD})
    (folder / "circle").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "out").symlink_to(archive("elsewhere", **{BAD: "out of the archive"}))
    (folder / raw_name("2025-05-12 13:00:00")).mkdir()
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.taken, outcome.refused) == (len(GOOD), [])
    link, no_name = (
        "It is a link to a folder. Import that folder itself.",
        "Its name is none of the known three.",
    )
    assert [record.getMessage() for record in caplog.records if record.name == "ingestion.wrm"] == [
        f"Passed over: {folder}/{name}. {reason}"
        for name, reason in [("circle", link), ("gone", no_name), ("out", link)]
    ]


def test_a_link_is_followed_within_the_archive_alone(
    workplace: Workplace, archive: Callable[..., Path], tmp_path: Path, record_property: Record
) -> None:
    record_property("hostile_files", 3)
    archive(**{GOOD[0]: "first", "kept__raw": "second"})
    archive("archive-elsewhere", **{BAD: "out of the archive"})
    folder = tmp_path / "link to the archive"
    folder.symlink_to("archive")
    (folder / GOOD[1]).symlink_to("kept/raw")
    (folder / BAD).symlink_to(tmp_path / "archive-elsewhere" / BAD)
    (folder / f"{BAD}.gz").symlink_to(f"../archive-elsewhere/{BAD}")
    outcome = wrm.import_archive(workplace.settings, str(folder))
    reasons = [
        f"It leads out of the archive: {(folder / BAD).as_uri()}{suffix}. Put the file itself in its place."
        for suffix in ("", ".gz")
    ]
    assert (outcome.taken, outcome.refused) == (2, reasons)
    assert bronze_rows(workplace.settings, "fetch_attempts", "error") == [(reason,) for reason in reasons]
    assert bronze_rows(workplace.settings, "station_snapshots", "payload") == [(b"first",), (b"second",)]


def test_a_link_for_a_days_folder_leads_a_watch_to_nothing(
    workplace: Workplace, archive: Callable[..., Path], record_property: Record
) -> None:
    record_property("hostile_files", 1)
    folder, day = archive(kept="x"), moment("2025-05-12 00:00:00").date()
    (folder / f"dt={day}").symlink_to(archive("elsewhere", **{BAD: "out of the archive"}))
    outcome = wrm.import_recent(workplace.settings, str(folder), [day], wrm.SeenArchive())
    assert (outcome.taken, outcome.refused) == (
        0,
        [
            f"It leads out of the archive: {(folder / f'dt={day}' / BAD).as_uri()}. "
            "Put the file itself in its place."
        ],
    )


def test_files_with_odd_names_are_passed_over(
    workplace: Workplace, archive: Callable[..., Path], record_property: Record
) -> None:
    record_property("hostile_files", 6)
    folder = archive(**{GOOD[0]: small_snapshot(moment("2025-05-12 10:00:00"))})
    for name in (b"\xff\xfe.txt", b"..txt", b"a\nb.txt", GOOD[0].encode() + b"\xff", b"%2e%2e", b"'; drop--"):
        (folder / os.fsdecode(name)).write_bytes(b"x")
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.listed, outcome.taken, outcome.refused) == (1, 1, [])


def test_a_file_that_vanishes_after_it_was_listed_is_refused(
    workplace: Workplace, archive: Callable[..., Path], record_property: Record
) -> None:
    record_property("hostile_files", 1)
    folder = archive(**{name: small_snapshot(moment("2025-05-12 12:00:00")) + name for name in GOOD})

    def remove_the_second(done: int, _: int) -> None:
        (folder / GOOD[1]).unlink(missing_ok=True)

    outcome = wrm.import_archive(workplace.settings, str(folder), remove_the_second)
    assert outcome.taken == 1
    assert [reason.startswith(UNREADABLE) for reason in outcome.refused] == [True]


def test_files_that_change_while_they_are_imported_are_in_bronze_whole_after_the_next(
    workplace: Workplace, archive: Callable[..., Path], record_property: Record
) -> None:
    record_property("hostile_files", 3)
    # what a file holds when it is listed, when it is read, and when the next import comes
    stages = {
        raw_name("2025-05-12 10:00:00"): ("grown: 1", "grown: 12", "grown: 12"),
        raw_name("2025-05-12 11:00:00"): ("cut: 12", "cut: 1", "cut: 12"),
        raw_name("2025-05-12 12:00:00"): ("growing: 1", "growing: 12", "growing: 123"),
    }
    folder = archive(**{name: listed for name, (listed, _, _) in stages.items()})

    def change_all(done: int, _: int) -> None:
        if done == 1:
            archive(**{name: read for name, (_, read, _) in stages.items()})

    assert wrm.import_archive(workplace.settings, str(folder), change_all).taken == 3
    archive(**{name: whole for name, (_, _, whole) in stages.items()})
    outcome = wrm.import_archive(workplace.settings, str(folder))
    assert (outcome.taken, outcome.known, outcome.refused) == (2, 1, [])
    assert bronze_rows(workplace.settings, "station_snapshots", "payload") == [
        (b"cut: 1",),
        (b"cut: 12",),
        (b"growing: 12",),
        (b"growing: 123",),
        (b"grown: 12",),
    ]


def test_objects_of_odd_keys_are_taken_or_refused_and_none_is_lost(
    workplace: Workplace, s3_server: S3Server, record_property: Record
) -> None:
    workplace.configure(**s3_server.environment | {"LAKE_URL": ""})
    folders = [
        "a'b\"c",
        "a b",
        "50%",
        "50%2541",
        "a+b",
        "a\nb",
        "*?[a]",
        "#x?y=1",
        "e\x01",
        "żółć",
        ";&$()",
        "%2e%2e",
    ]
    good = {
        f"odd/{folder}/{raw_name(f'2025-05-12 {n:02}:00:00')}": folder for n, folder in enumerate(folders)
    }
    bad = {
        f"odd/50%/{BAD}.gz": UNREADABLE,
        f"odd/another?versionId=1/{BAD}": "Its key asks for a version: ",
    }
    record_property("hostile_files", len(good) + len(bad))
    files = Lake.of(workplace.settings).filesystem(f"s3://{BUCKET}")
    for key in [*good, *bad]:
        files.call_s3("put_object", Bucket=BUCKET, Key=key, Body=good.get(key, "no gzip").encode())
    outcome = wrm.import_archive(workplace.settings, f"s3://{BUCKET}/odd")
    assert (outcome.listed, outcome.taken) == (len(good) + len(bad), len(good))
    assert [reason.partition(". ")[0] for reason in outcome.refused] == [
        f"{reason}s3://{BUCKET}/{key}" for key, reason in bad.items()
    ]
    assert bronze_rows(workplace.settings, "station_snapshots", "source_key, payload") == [
        (f"s3://{BUCKET}/{key}", folder.encode()) for key, folder in sorted(good.items())
    ]
