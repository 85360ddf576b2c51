{{ config(carries_over=true, code_version=1) }} -- of the macro distance_meters

-- Every period known by the end of the day: the open one of each station goes on while its name, docks and place
-- (within 50 m of where it stood before) stay as they are, and ends when the station has not been seen for 24 hours.
with runs as (
    select * from {{ ref('int_wrm__station_attributes_observed') }}
),

before as (
    select * from {{ day_before() }}
),

known as (
    select station_id, max(last_observed_at) as known_until,
    from before
    group by station_id
),

-- a feed that stands still over midnight repeats the last reading known, which counts once
new_runs as (
    select
        runs.* replace (
            readings_count - (first_observed_at <= coalesce(known_until, '-infinity'))::integer as readings_count,
            greatest(first_observed_at, known_until + interval 1 microsecond) as first_observed_at
        ),
    from runs
    left join known using (station_id)
    where last_observed_at > coalesce(known_until, '-infinity')
),

pieces as (
    select
        station_id,
        period_number as known_period,
        valid_from as first_observed_at,
        last_observed_at,
        name,
        latitude,
        longitude,
        last_latitude,
        last_longitude,
        docks_count,
        is_outside_service_area,
        readings_count,
        change_kinds,
        moved_meters,
        is_current as was_current,
    from before
    union all
    select
        station_id,
        null as known_period,
        first_observed_at,
        last_observed_at,
        name,
        latitude,
        longitude,
        latitude as last_latitude,
        longitude as last_longitude,
        docks_count,
        is_outside_service_area,
        readings_count,
        null as change_kinds,
        null as moved_meters,
        true as was_current,
    from new_runs
),

neighbours as (
    select
        *,
        lag(name) over station as earlier_name,
        lag(docks_count) over station as earlier_docks_count,
        lag(was_current) over station as earlier_was_current,
        row_number() over station = 1 as is_first,
        {{ distance_meters(
            'lag(last_latitude) over station', 'lag(last_longitude) over station', 'latitude', 'longitude'
        ) }} as meters_from_earlier,
    from pieces
    window station as (partition by station_id order by known_period nulls last, first_observed_at)
),

compared as (
    select
        *,
        case
            when known_period is not null then change_kinds
            else array_to_string(list_filter(
                [
                    case when is_first then 'appeared' end,
                    case when not earlier_was_current then 'reappeared' end,
                    case when not is_first and name is distinct from earlier_name then 'renamed' end,
                    case when meters_from_earlier > 50 then 'moved' end,
                    case
                        when not is_first and docks_count is distinct from earlier_docks_count then 'docks_changed'
                    end,
                ],
                lambda kind: kind is not null
            ), ',')
        end as kinds,
    from neighbours
),

numbered as (
    select
        *,
        count(*) filter (kinds <> '') over (
            partition by station_id order by known_period nulls last, first_observed_at
        )::integer as period_number,
    from compared
),

periods as (
    select
        station_id,
        period_number,
        min(first_observed_at) as valid_from,
        max(last_observed_at) as last_observed_at,
        arg_min(name, first_observed_at) as name,
        arg_min(latitude, first_observed_at) as latitude,
        arg_min(longitude, first_observed_at) as longitude,
        arg_max(last_latitude, last_observed_at) as last_latitude,
        arg_max(last_longitude, last_observed_at) as last_longitude,
        arg_min(docks_count, first_observed_at) as docks_count,
        arg_min(is_outside_service_area, first_observed_at) as is_outside_service_area,
        sum(readings_count)::bigint as readings_count,
        arg_min(kinds, first_observed_at) as change_kinds,
        arg_min_null(
            case when known_period is not null then moved_meters else meters_from_earlier end, first_observed_at
        ) as moved_meters,
    from numbered
    group by station_id, period_number
),

followed as (
    select
        *,
        lead(valid_from) over (partition by station_id order by valid_from) as next_valid_from,
        lead(change_kinds) over (partition by station_id order by valid_from) as next_change_kinds,
        last_observed_at < max(last_observed_at) over () - interval 24 hour as is_out_of_sight,
    from periods
),

final as (
    select
        station_id,
        period_number,
        name,
        latitude,
        longitude,
        last_latitude,
        last_longitude,
        docks_count,
        valid_from,
        case
            when next_change_kinds like 'reappeared%' then last_observed_at
            when next_valid_from is not null then next_valid_from
            when is_out_of_sight then last_observed_at
        end as valid_to,
        next_valid_from is null and not is_out_of_sight as is_current,
        next_valid_from is null and is_out_of_sight or coalesce(next_change_kinds like 'reappeared%', false)
            as has_vanished,
        change_kinds,
        list_contains(string_split(change_kinds, ','), 'moved') as has_moved,
        moved_meters,
        is_outside_service_area,
        last_observed_at,
        readings_count,
    from followed
)

select * from final
order by station_id, valid_from
