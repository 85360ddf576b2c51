"""The bronze tables: what a raw record is, per source. Schemas are frozen: a new column is a migration."""

from __future__ import annotations

import pyarrow as pa

_TIMESTAMP = pa.timestamp("us", tz="UTC")

_PAYLOAD_COLUMNS = [
    pa.field("payload", pa.binary()),  # exactly as received
    pa.field("payload_text", pa.string()),  # decoded, only where the payload is not valid UTF-8
    pa.field("payload_sha256", pa.string()),  # hexadecimal
    pa.field("payload_bytes", pa.int64()),
    pa.field("encoding", pa.string()),
    pa.field("mended_names", pa.string()),  # JSON object broken → mended, null where nothing is broken
    pa.field("source_key", pa.string()),  # URL of the feed or of the archive's file
    pa.field("source_modified_at", _TIMESTAMP),  # arrival in the archive, null for live
    pa.field("observed_at", _TIMESTAMP),
    pa.field("fetched_at", _TIMESTAMP),  # fetched or imported
]

STATION_SNAPSHOTS = pa.schema(_PAYLOAD_COLUMNS)
FAILURES = pa.schema(_PAYLOAD_COLUMNS)
FETCH_ATTEMPTS = pa.schema(
    [
        pa.field("resource", pa.string()),  # the table that the payload was meant for
        pa.field("url", pa.string()),
        pa.field("attempted_at", _TIMESTAMP),
        pa.field("attempt_number", pa.int64()),  # 1 for the first try of a run
        pa.field("status", pa.int64()),  # HTTP status, null without an answer
        pa.field("response_bytes", pa.int64()),
        pa.field("latency_seconds", pa.float64()),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
        pa.field("payload_sha256", pa.string()),
        pa.field("is_unchanged", pa.bool_()),
        pa.field("error", pa.string()),  # null when the payload was taken or is unchanged
    ]
)

BRONZE: dict[str, dict[str, pa.Schema]] = {
    "wrm": {
        "station_snapshots": STATION_SNAPSHOTS,
        "fetch_attempts": FETCH_ATTEMPTS,
        "failures": FAILURES,
    },
}
