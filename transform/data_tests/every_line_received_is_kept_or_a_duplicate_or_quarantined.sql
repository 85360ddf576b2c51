-- Conservation: lines counted in the payloads = kept + duplicates + quarantined, for every day.
select
    dt,
    lines_count,
    station_readings_count,
    free_bike_readings_count,
    duplicates_count,
    quarantined_count,
    'lines received and lines accounted for differ' as failure_reason,
from {{ get_where_subquery(ref('fct_daily_processing')) }}
where
    lines_count <> station_readings_count + free_bike_readings_count + duplicates_count + quarantined_count
    or duplicates_count < 0
