with snapshots as (
    select * from {{ ref('stg_wrm__snapshots') }}
),

lines_parsed as (
    select * from {{ ref('int_wrm__lines_parsed') }}
),

fetch_attempts as (
    select * from {{ source('wrm', 'fetch_attempts') }}
),

-- Lines are counted in the payloads, not in what was parsed from them: the conservation test compares the two.
received as (
    select
        observed_at as snapshot_observed_at,
        fetched_at,
        payload_sha256,
        any_value(source_key) as source_key,
        count(*) as copies_count,
        sum(payload_bytes)::bigint as payload_bytes,
        sum(
            -- in two steps: within a list an `or` would have every line trimmed
            len(list_filter(lines, lambda line: contains(line, ',')))
            + len(list_filter(
                list_filter(lines, lambda line: not contains(line, ',')), lambda line: trim(line, e' \t') <> ''
            ))
            - (header is not null)::integer
        )::bigint as lines_count,
    from snapshots
    group by observed_at, fetched_at, payload_sha256
),

parsed as (
    select
        snapshot_observed_at,
        fetched_at,
        payload_sha256,
        count(*) filter (not is_rejected) as good_lines_count,
        count(*) filter (is_rejected) as rejected_lines_count,
        count(*) filter (is_name_mended) as mended_names_count,
        max(observed_at) as newest_reading_at,
    from lines_parsed
    group by all
),

stored as (
    select
        received.snapshot_observed_at,
        received.fetched_at,
        received.payload_sha256,
        received.source_key,
        received.copies_count,
        received.payload_bytes,
        received.lines_count,
        coalesce(parsed.good_lines_count, 0) as good_lines_count,
        coalesce(parsed.rejected_lines_count, 0) as rejected_lines_count,
        coalesce(parsed.mended_names_count, 0) as mended_names_count,
        parsed.newest_reading_at,
        false as is_unchanged,
    from received
    left join parsed using (snapshot_observed_at, fetched_at, payload_sha256)
),

-- a server that answers "not modified" sends no payload
unchanged as (
    select
        attempted_at::timestamp as snapshot_observed_at,
        attempted_at::timestamp + to_microseconds((latency_seconds * 1000000)::bigint) as fetched_at,
        coalesce(payload_sha256, 'not modified') as payload_sha256,
        url as source_key,
        0 as copies_count,
        0 as payload_bytes,
        0 as lines_count,
        0 as good_lines_count,
        0 as rejected_lines_count,
        0 as mended_names_count,
        null::timestamp as newest_reading_at,
        true as is_unchanged,
    from fetch_attempts
    where resource = 'station_snapshots' and is_unchanged
),

final as (
    from stored
    union all
    from unchanged
)

select * from final
order by snapshot_observed_at, fetched_at, payload_sha256
