-- depends_on: {{ ref('int_wrm__lines_parsed') }}, for its share of silver_seconds

with snapshots as (
    select * from {{ ref('int_wrm__snapshots_received') }}
),

station_readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

free_bike_readings as (
    select * from {{ ref('int_wrm__free_bike_readings_deduplicated') }}
),

lines_quarantined as (
    select * from {{ ref('int_wrm__lines_quarantined') }}
),

fetch_attempts as (
    select * from {{ source('wrm', 'fetch_attempts') }}
),

received as (
    select
        coalesce(sum(copies_count), 0)::bigint as snapshots_count,
        coalesce(sum(payload_bytes), 0)::bigint as payload_bytes,
        coalesce(sum(lines_count), 0)::bigint as lines_count,
        coalesce(sum(good_lines_count), 0)::bigint as good_lines_count,
        coalesce(sum(mended_names_count), 0)::bigint as mended_names_count,
        max(fetched_at) as last_fetched_at,
    from snapshots
),

kept as (
    select
        (select count(*) from station_readings) as station_readings_count,
        (select count(*) from free_bike_readings) as free_bike_readings_count,
        (select count(*) from lines_quarantined) as quarantined_count,
),

reasons as (
    select reason, count(*) as reason_count
    from (select unnest(rejection_reasons) as reason from lines_quarantined)
    group by reason
),

reasons_listed as (
    select
        coalesce(
            to_json(map_from_entries(list((reason, reason_count) order by reason_count desc, reason)))::varchar, '{}'
        ) as quarantined_by_reason,
    from reasons
),

fetched as (
    select
        count(*) as attempts_count,
        count(*) filter (error is not null) as failed_attempts_count,
        count(*) filter (is_unchanged) as unchanged_attempts_count,
        100.0 * count(*) filter (error is null) / nullif(count(*), 0) as fetch_success_pct,
        coalesce(sum(latency_seconds), 0) as fetch_seconds,
    from fetch_attempts
    where resource = 'station_snapshots'
),

final as (
    select
        received.snapshots_count,
        received.payload_bytes,
        received.lines_count,
        kept.station_readings_count,
        kept.free_bike_readings_count,
        received.good_lines_count - kept.station_readings_count - kept.free_bike_readings_count as duplicates_count,
        kept.quarantined_count,
        reasons_listed.quarantined_by_reason,
        received.mended_names_count,
        round(
            100.0 * (kept.station_readings_count + kept.free_bike_readings_count)
            / nullif(received.lines_count, 0), 3
        ) as kept_pct,
        fetched.attempts_count,
        fetched.failed_attempts_count,
        fetched.unchanged_attempts_count,
        fetched.fetch_success_pct,
        fetched.fetch_seconds,
        -- as measured when they were last built, not a function of the data
        {{ inputs_build_seconds() }} as silver_seconds,
        received.last_fetched_at,
    from received, kept, reasons_listed, fetched
)

select * from final
