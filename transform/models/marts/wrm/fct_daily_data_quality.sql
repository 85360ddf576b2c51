{{
    config(
        reads_days={
            'int_wrm__station_readings_deduplicated': ['previous', 0],
            'int_wrm__snapshots_received': ['previous', 0],
        },
    )
}}

with coverage as (
    select * from {{ ref('fct_hourly_coverage') }}
),

processing as (
    select * from {{ ref('fct_daily_processing') }}
),

snapshots as (
    select * from {{ ref('int_wrm__snapshots_received') }}
),

station_readings as (
    select * from {{ ref('int_wrm__station_readings_deduplicated') }}
),

free_bike_readings as (
    select * from {{ ref('int_wrm__free_bike_readings_deduplicated') }}
),

weights as (
    select * from {{ ref('quality_weights') }}
),

completeness as (
    select
        100 * sum(least(received_count + unchanged_count, expected_count)) / sum(expected_count) as completeness_pct,
    from coverage
),

line_scores as (
    select
        100.0 * (lines_count - quarantined_count) / nullif(lines_count, 0) as validity_pct,
        100.0 * (lines_count - quarantined_count - duplicates_count) / nullif(lines_count - quarantined_count, 0)
            as uniqueness_pct,
        mended_names_count,
    from processing
),

consistency as (
    select
        100.0 * count(*) filter (
            not is_over_capacity and not has_capacity_mismatch and not is_outside_service_area
        ) / nullif(count(*), 0) as consistency_pct,
        count(distinct station_id) as stations_count,
        count(*) filter (is_over_capacity) as over_capacity_readings_count,
        count(*) filter (has_capacity_mismatch) as capacity_mismatch_readings_count,
        count(distinct station_id) filter (is_outside_service_area) as stations_outside_area_count,
    from station_readings
    where dt = {{ day_built() }}
),

free_bikes as (
    select count(distinct bike_id) filter (is_outside_service_area) as bikes_outside_area_count,
    from free_bike_readings
),

-- a clock that is ahead does not tell when the day's last reading was
timely_readings as (
    select * from station_readings where observed_at <= snapshot_observed_at + interval 1 hour
),

-- the 24 hours that end with the day's last reading
last_day as (
    select
        station_id,
        min(observed_at) as first_observed_at,
        max(observed_at) as last_observed_at,
        count(distinct row(bikes_count, spaces_count)) > 1 as has_changed,
    from timely_readings
    where observed_at > (select max(observed_at) - interval 24 hour from timely_readings)
    group by station_id
),

frozen as (
    select
        count(*) as frozen_stations_count,
        to_json(coalesce(list(station_id order by station_id), []))::varchar as frozen_station_ids,
    from last_day
    where
        not has_changed
        and last_observed_at - first_observed_at >= interval 23 hour
        and (select bool_or(has_changed) from last_day)
),

-- stale: the newest reading that the feed ever gave is older than 15 minutes
seen as (
    select
        snapshot_observed_at,
        max(newest_reading_at) over (order by snapshot_observed_at rows unbounded preceding) as newest_reading_at,
        least(
            lead(snapshot_observed_at) over (order by snapshot_observed_at), snapshot_observed_at + interval 15 minute
        ) as seen_until,
    from snapshots
),

staleness as (
    select
        coalesce(sum(epoch_us(seen_until - snapshot_observed_at)), 0) / 60000000.0 as stale_feed_minutes,
    from seen
    where snapshot_observed_at - newest_reading_at > interval 15 minute and snapshot_observed_at >= {{ day_built() }}
),

scores as (
    select 'completeness' as dimension, completeness_pct as score from completeness
    union all
    select 'validity' as dimension, validity_pct as score from line_scores
    union all
    select 'uniqueness' as dimension, uniqueness_pct as score from line_scores
    union all
    select 'consistency' as dimension, consistency_pct as score from consistency
),

-- a dimension that the day has no numbers for does not weigh
overall as (
    select sum(scores.score * weights.weight) / sum(weights.weight) as quality_score,
    from scores
    inner join weights using (dimension)
    where scores.score is not null
),

final as (
    select
        completeness.completeness_pct,
        line_scores.validity_pct,
        line_scores.uniqueness_pct,
        consistency.consistency_pct,
        overall.quality_score,
        consistency.stations_count,
        frozen.frozen_stations_count,
        frozen.frozen_station_ids,
        staleness.stale_feed_minutes,
        line_scores.mended_names_count,
        consistency.over_capacity_readings_count,
        consistency.capacity_mismatch_readings_count,
        consistency.stations_outside_area_count,
        free_bikes.bikes_outside_area_count,
    from completeness, line_scores, consistency, overall, frozen, staleness, free_bikes
)

select * from final
