{{
    config(
        reads_days={'int_wrm__snapshots_received': ['previous', 0]},
    )
}}

-- A gap belongs to the day on which it ended; it may have begun many days before. One that still lasts has no end
-- and is no row: how old the newest snapshot is says the rest.
with snapshots as (
    select * from {{ ref('int_wrm__snapshots_received') }}
),

cadences as (
    select * from {{ ref('snapshot_cadences') }}
),

cadence as (
    select arg_max(minutes, valid_from)::double as minutes
    from cadences
    where system_id = 'wrm' and valid_from <= {{ day_built() }}
),

observations as (
    select distinct snapshot_observed_at as observed_at from snapshots
),

spans as (
    select
        lag(observed_at) over (order by observed_at) as started_at,
        observed_at as ended_at,
    from observations
),

measured as (
    select
        *,
        epoch_us(ended_at - started_at) / 60000000.0 as gap_minutes,
    from spans
    where started_at is not null and ended_at >= {{ day_built() }}
),

final as (
    select
        started_at,
        ended_at,
        gap_minutes,
        round(gap_minutes / minutes)::bigint - 1 as missing_snapshots_count,
    from measured, cadence
    where round(gap_minutes / minutes) >= 2
)

select * from final
order by started_at
