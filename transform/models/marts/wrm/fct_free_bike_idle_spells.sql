{{ config(code_version=1) }} -- of the macro utc_of_warsaw

with spells as (
    select * from {{ ref('int_wrm__free_bike_spells_carried') }}
),

final as (
    select
        bike_id,
        started_at,
        last_observed_at,
        epoch_us(last_observed_at - started_at) / 60000000.0 as idle_minutes,
        epoch_us(last_observed_at - greatest(started_at, {{ utc_of_warsaw(day_built()) }})) / 60000000.0
            as idle_minutes_of_day,
        not is_present as has_ended,
        latitude,
        longitude,
        is_outside_service_area,
        first_battery_pct,
        last_battery_pct,
        readings_of_day_count as readings_count,
    from spells
    where readings_of_day_count > 0
)

select * from final
order by bike_id, started_at
