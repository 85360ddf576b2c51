{{ config(meta={'copies': 'fct_daily_processing'}) }}

with days as (
    select * from {{ ref('fct_daily_processing') }}
),

final as (
    select
        dt as date,
        snapshots_count as snapshots,
        payload_bytes,
        lines_count as lines,
        station_readings_count as station_readings,
        free_bike_readings_count as free_bike_readings,
        duplicates_count as duplicates,
        quarantined_count as quarantined,
        quarantined_by_reason,
        mended_names_count as mended_names,
        kept_pct,
        attempts_count as fetch_attempts,
        failed_attempts_count as failed_fetches,
        unchanged_attempts_count as unchanged_fetches,
        fetch_success_pct,
        fetch_seconds,
        silver_seconds,
        last_fetched_at as processed_at,
    from days
)

select * from final
