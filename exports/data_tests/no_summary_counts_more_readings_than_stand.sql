-- Within `dbt build` of the days exported within the last hour, so that the cost does not grow with the history; `dbt
-- test` looks at every day. Readings may be ahead of the summaries, which wait for their day to be rebuilt; they are
-- never behind.
select
    summary.date,
    summary.total_records,
    count(readings.id) as readings_count,
    'the summary counts more readings than bike_stations holds' as failure_reason
from {{ ref('stations_data_summary') }} as summary
-- by time, not by date: of a reading that two days hold, the newer fetch gives the date
left join {{ ref('bike_stations') }} as readings
    on readings."timestamp" between summary.earliest_reading and summary.latest_reading
where
    summary.date in (
        select exported.dt
        from {{ source('landing', 'exported_objects') }} as exported
        where
            exported.model = 'landing_wrm__stations_data_summary'
            and (exported.exported_at > now() - interval '1 hour' or {{ (flags.WHICH != 'build') | lower }})
    )
group by summary.date, summary.total_records
having summary.total_records > count(readings.id)
