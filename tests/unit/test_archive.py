"""Archives: the three namings, arrival, compression, and files that cannot be taken."""

import gzip
import os
from datetime import UTC, datetime

import fsspec
import pyarrow as pa
import pytest

from ingestion.archive import ArchiveError, list_archive, observed_at_of, read_payload

FILES = fsspec.filesystem("file")


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("wrm_stations_2025-05-12_18-10-07.txt", None),
        ("station_data_20250512_181007.txt", None),
        ("content_2025-05-12_18-10-07.txt", None),
        ("wrm_stations_2025-05-12_18-10-07.txt.gz", "gzip"),
        ("content_2025-05-12_18-10-07.txt.zst", "zstd"),
    ],
)
def test_observed_at_is_read_from_each_naming(name, codec):
    assert observed_at_of(name) == (datetime(2025, 5, 12, 18, 10, 7, tzinfo=UTC), codec)


@pytest.mark.parametrize(
    "name", ["notes.txt", "wrm_stations_2025-02-31_00-00-00.txt", "wrm_stations_2025-05-12.txt", ""]
)
def test_observed_at_is_none_for_names_that_tell_no_time(name):
    assert observed_at_of(name) is None


def test_list_archive_takes_dated_folders_and_flat_files_and_names_the_rest(archive):
    folder = archive(
        **{
            "dt=2025-05-12__wrm_stations_2025-05-12_18-10-07.txt": "b",
            "station_data_20250511_000000.txt": "a",
            "readme.md": "x",
        }
    )
    files, unknown = list_archive(FILES, str(folder))
    assert [file.key for file in files] == [
        (folder / "station_data_20250511_000000.txt").as_uri(),
        (folder / "dt=2025-05-12" / "wrm_stations_2025-05-12_18-10-07.txt").as_uri(),
    ]
    assert unknown == [str(folder / "readme.md")]


def test_arrival_is_when_a_file_came_not_the_old_time_that_a_copy_kept(archive):
    name = "wrm_stations_2025-05-12_18-10-07.txt"
    before = datetime.now(UTC).timestamp() - 1
    folder = archive(**{name: "a"})
    os.utime(folder / name, (0, 0))
    [file] = list_archive(FILES, str(folder))[0]
    assert file.arrived_at.timestamp() > before


def test_list_archive_says_what_to_do_where_there_is_nothing(tmp_path):
    with pytest.raises(ArchiveError, match=r"No archive found: .*nowhere. Give a folder"):
        list_archive(FILES, str(tmp_path / "nowhere"))


def test_read_payload_decompresses_and_refuses_what_is_corrupt_or_too_large(archive):
    zstd = pa.compress(b"zstd text", codec="zstd", asbytes=True)
    folder = archive(
        **{
            "content_2025-05-12_18-10-01.txt": b"plain text",
            "content_2025-05-12_18-10-02.txt.gz": gzip.compress(b"gzip text"),
            "content_2025-05-12_18-10-03.txt.zst": zstd,
            "content_2025-05-12_18-10-04.txt.gz": gzip.compress(b"x" * 5000)[:-12],
            "content_2025-05-12_18-10-05.txt.zst": b"no zstd at all",
            "content_2025-05-12_18-10-06.txt.gz": gzip.compress(b"x" * 5001),
        }
    )
    files, _ = list_archive(FILES, str(folder))
    assert [read_payload(FILES, str(folder), file, 5000) for file in files[:3]] == [
        b"plain text",
        b"gzip text",
        b"zstd text",
    ]
    for file in files[3:5]:
        with pytest.raises(ArchiveError, match=r"File cannot be read: .*Replace it"):
            read_payload(FILES, str(folder), file, 5000)
    with pytest.raises(ArchiveError, match=r"File is too large: .*Raise FETCH_MAX_BYTES above 5000"):
        read_payload(FILES, str(folder), files[5], 5000)
