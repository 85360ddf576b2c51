{{
    config(
        reads_days={'int_wrm__snapshots_received': ['previous', 0]},
        closes_days=true,
    )
}}

-- Hours from the lake's first observation on; of the newest day until the last activity. A poll that gave the payload
-- before once more is an observation too.
with snapshots as (
    select * from {{ ref('int_wrm__snapshots_received') }}
),

fetch_attempts as (
    select * from {{ source('wrm', 'fetch_attempts') }}
),

cadences as (
    select * from {{ ref('snapshot_cadences') }}
),

cadence as (
    select arg_max(minutes, valid_from)::double as minutes
    from cadences
    where system_id = 'wrm' and valid_from <= {{ day_built() }}
),

polls as (
    select snapshot_observed_at as polled_at, not is_unchanged as is_snapshot, is_unchanged, false as has_failed,
    from snapshots
    where dt = {{ day_built() }}
    union all
    -- refused files of an archive carry the time of their import, which may lie on any day
    select attempted_at::timestamp as polled_at, false as is_snapshot, false as is_unchanged, true as has_failed,
    from fetch_attempts
    where
        resource = 'station_snapshots'
        and error is not null
        and attempted_at::timestamp::date = {{ day_built() }}
),

bounds as (
    select
        case
            when (select count(*) from snapshots where dt < {{ day_built() }}) > 0
                then {{ day_built() }}::timestamp
            else min(polled_at)
        end as observed_from,
        case
            when {{ is_newest_day() }} then max(polled_at) + to_microseconds((any_value(minutes) * 60000000)::bigint)
            else {{ day_built() }}::timestamp + interval 1 day
        end as observed_until,
    from polls, cadence
    having count(*) > 0
),

hours as (
    select
        unnest(generate_series(
            date_trunc('hour', observed_from),
            least(observed_until, {{ day_built() }}::timestamp + interval 1 day) - interval 1 microsecond,
            interval 1 hour
        )) as hour_started_at,
        observed_from,
        observed_until,
    from bounds
),

expected as (
    select
        hour_started_at,
        epoch_us(
            least(hour_started_at + interval 1 hour, observed_until) - greatest(hour_started_at, observed_from)
        ) / 60000000.0 / minutes as expected_count,
    from hours, cadence
),

polled as (
    select
        date_trunc('hour', polled_at) as hour_started_at,
        count(*) filter (is_snapshot) as received_count,
        count(*) filter (is_unchanged) as unchanged_count,
        count(*) filter (has_failed) as failed_attempts_count,
        min(polled_at) filter (is_snapshot or is_unchanged) as first_observed_at,
        max(polled_at) filter (is_snapshot or is_unchanged) as last_observed_at,
    from polls
    group by hour_started_at
),

final as (
    select
        expected.hour_started_at,
        expected.expected_count,
        coalesce(polled.received_count, 0) as received_count,
        coalesce(polled.unchanged_count, 0) as unchanged_count,
        coalesce(polled.failed_attempts_count, 0) as failed_attempts_count,
        100 * least(
            1, (coalesce(polled.received_count, 0) + coalesce(polled.unchanged_count, 0)) / expected.expected_count
        ) as coverage_pct,
        polled.first_observed_at,
        polled.last_observed_at,
    from expected
    left join polled using (hour_started_at)
)

select * from final
order by hour_started_at
