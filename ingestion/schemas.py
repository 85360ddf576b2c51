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

PIPELINE_RUNS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("job", pa.string()),
        pa.field("trigger", pa.string()),
        pa.field("environment", pa.string()),
        pa.field("started_at", _TIMESTAMP),
        pa.field("ended_at", _TIMESTAMP),  # null: it was killed, nobody knows when
        pa.field("outcome", pa.string()),  # succeeded, failed, interrupted, killed
        pa.field("error", pa.string()),
        pa.field("git_commit", pa.string()),  # with a + where the working tree differs
        pa.field("host", pa.string()),
        pa.field("process", pa.int64()),
        pa.field("versions", pa.string()),  # JSON object
        pa.field("recorded_at", _TIMESTAMP),
    ]
)
PIPELINE_STEPS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("step_number", pa.int64()),  # 1 for the run's first
        pa.field("kind", pa.string()),  # dlt_load, dbt_invocation, dbt_node
        pa.field("project", pa.string()),  # dlt's pipeline or dbt's project
        pa.field("name", pa.string()),
        pa.field("resource_type", pa.string()),
        pa.field("status", pa.string()),
        pa.field("started_at", _TIMESTAMP),
        pa.field("ended_at", _TIMESTAMP),
        pa.field("rows_count", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("nodes_count", pa.int64()),
        pa.field("message", pa.string()),
        pa.field("error", pa.string()),
        pa.field("load_id", pa.string()),
        pa.field("invocation_id", pa.string()),
    ]
)

BRONZE: dict[str, dict[str, pa.Schema]] = {
    "wrm": {
        "station_snapshots": STATION_SNAPSHOTS,
        "fetch_attempts": FETCH_ATTEMPTS,
        "failures": FAILURES,
    },
    "pipeline": {
        "runs": PIPELINE_RUNS,
        "steps": PIPELINE_STEPS,
    },
}
