{{ config(code_version=3) }} -- of the macros in numbers.sql

{%- set feed_columns = {
    'id': 'id',
    'timestamp': 'timestamp|gmt_local_diff_sec|gmt_servertime_diff_sec',
    'name': 'name',
    'latitude': 'lat',
    'longitude': 'lon',
    'bikes': 'bikes',
    'spaces': 'spaces',
    'installed': 'installed',
    'locked': 'locked',
    'temporary': 'temporary',
    'docks': 'total_docks',
    'battery': 'givesbonus_acceptspedelecs_fbbattlevel',
    'pedelecs': 'pedelecs',
} %}

with snapshots as (
    select * from {{ ref('stg_wrm__snapshots') }}
),

service_areas as (
    select * from {{ ref('service_areas') }}
),

areas as (
    select
        list({
            'south': min_latitude, 'north': max_latitude, 'west': min_longitude, 'east': max_longitude
        }) as areas,
    from service_areas
    where system_id = 'wrm'
),

-- once per snapshot, not per line; more than a hundred unknown columns are no feed's
positions as (
    select
        *,
        {%- for column, header_name in feed_columns.items() %}
            list_position(header, '{{ header_name }}') as {{ column }}_position,
        {%- endfor %}
        list_sort(list_distinct(list_filter(
            header, lambda field: field not in ('{{ feed_columns.values() | join("', '") }}') -- noqa: LT05, short as written
        )))[:100] as extra_columns,
    from snapshots
),

numbered as (
    select
        * exclude (lines),
        unnest(lines) as line,
        generate_subscripts(lines, 1) as line_number,
    from positions
),

lines as (
    select *
    from numbered
    where
        -- a comma is found ten times faster than a line is trimmed
        (contains(line, ',') or trim(line, e' \t') <> '') and not (line_number = 1 and header is not null)
),

-- A leading comma makes every field a match of its own, the first and empty ones too.
matched as (
    select
        *,
        case
            when contains(line, '"')
                then regexp_extract_all(',' || line, ',(?:"(?:[^"]|"")*"|[^,]*)')
        end as quoted_fields,
    from lines
),

fielded as (
    select
        * exclude (quoted_fields),
        case
            when quoted_fields is null then string_split(line, ',')
            else list_transform(
                quoted_fields,
                lambda field: case
                    when starts_with(field, ',"') then replace(field[3:-2], '""', '"')
                    else field[2:]
                end
            )
        end as fields,
        -- text between a closing quote and the next comma, or a quote left open
        quoted_fields is not null and (
            length(array_to_string(quoted_fields, '')) <> length(line) + 1
            or len(list_filter(
                quoted_fields,
                lambda field: contains(field, '"') and not regexp_full_match(field, ',"(?:[^"]|"")*"')
            )) > 0
        ) as has_broken_quotes,
    from matched
),

named as (
    select
        observed_at as snapshot_observed_at,
        fetched_at,
        payload_sha256,
        line_number,
        line,
        header,
        mended_names,
        has_broken_quotes,
        len(fields) as fields_count,
        trim(fields[id_position]) as id,
        string_split(fields[timestamp_position], '|') as timestamp_parts,
        fields[name_position] as feed_name,
        {{ broken_number('fields[latitude_position]') }} as latitude,
        {{ broken_number('fields[longitude_position]') }} as longitude,
        {{ whole_number('fields[bikes_position]') }} as bikes_count,
        {{ whole_number('fields[spaces_position]') }} as spaces_count,
        fields[installed_position] as installed,
        fields[locked_position] as locked,
        fields[temporary_position] as temporary,
        fields[docks_position] as docks,
        fields[battery_position] as battery,
        fields[pedelecs_position] as pedelecs,
        -- columns that the feed did not have when this was written
        case
            when len(extra_columns) > 0 and len(fields) = len(header) then map_from_entries(list_transform(
                extra_columns, lambda field: struct_pack(key := field, value := fields[list_position(header, field)])
            ))
        end as extra_fields,
        id_position is null or timestamp_position is null or name_position is null
        or latitude_position is null or longitude_position is null
        or bikes_position is null or spaces_position is null as lacks_required_column,
    from fielded
),

typed as (
    select
        *,
        -- a double holds microseconds since 1970 exactly; decimals would overflow
        try_cast(round({{ broken_number('timestamp_parts[1]') }} * 1000000) as bigint) as unix_microseconds,
        {{ whole_number('timestamp_parts[2]') }} as local_offset_seconds,
        {{ whole_number('timestamp_parts[3]') }} as server_offset_seconds,
        {{ whole_number('docks') }} as docks_count,
        {{ whole_number('pedelecs') }} as pedelecs_count,
        {{ true_or_false('installed') }} as is_installed,
        {{ true_or_false('locked') }} as is_locked,
        {{ true_or_false('temporary') }} as is_temporary,
        -- 'false' for stations, percent for free bikes, -1 where unknown
        case when {{ whole_number('battery') }} between 0 and 100 then {{ whole_number('battery') }} end as battery_pct,
        coalesce(mended_names[feed_name], feed_name) as name,
        mended_names[feed_name] is not null as is_name_mended,
        case
            when regexp_full_match(id, '0|[1-9][0-9]{0,8}') then 'station'
            when regexp_full_match(id, 'fb[0-9]{1,18}') then 'free_bike'
        end as kind,
    from named
),

judged as (
    select
        *,
        case
            when header is null then 'no_header'
            when lacks_required_column then 'missing_required_column'
            when has_broken_quotes then 'broken_quotes'
            when fields_count <> len(header) then 'wrong_field_count'
            -- as text: lists of every line cost more
            else concat_ws(
                ',',
                case
                    when coalesce(id, '') = '' then 'missing_id'
                    when kind is null and regexp_full_match(id, '[1-9][0-9]{9,}|fb[0-9]{19,}') then 'oversized_id'
                    when kind is null then 'unknown_id'
                end,
                -- before 2008 there was no such feed; a day ahead of the snapshot is no clock's error
                case
                    when
                        unix_microseconds is null
                        or unix_microseconds < 1199145600000000
                        or unix_microseconds > epoch_us(snapshot_observed_at) + 86400000000
                        then 'implausible_timestamp'
                end,
                case
                    when local_offset_seconds is null or server_offset_seconds is null
                        then 'unreadable_offset'
                end,
                case
                    when
                        latitude is null or longitude is null
                        or not latitude between -90 and 90 or not longitude between -180 and 180
                        then 'implausible_place'
                end,
                case
                    when
                        bikes_count is null or spaces_count is null
                        or not bikes_count between 0 and 10000 or not spaces_count between 0 and 10000
                        or (docks <> '' and not coalesce(docks_count between 0 and 10000, false))
                        or (pedelecs <> '' and not coalesce(pedelecs_count between 0 and 10000, false))
                        then 'implausible_count'
                end,
                case
                    when
                        (installed is not null and is_installed is null)
                        or (locked is not null and is_locked is null)
                        or (temporary is not null and is_temporary is null)
                        then 'unknown_boolean'
                end
            )
        end as reasons,
    from typed
),

final as (
    select
        payload_sha256,
        line_number,
        snapshot_observed_at,
        fetched_at,
        case when reasons = '' then [] else string_split(reasons, ',') end as rejection_reasons,
        reasons <> '' as is_rejected,
        kind,
        id,
        case
            when reasons = '' then make_timestamp(unix_microseconds)
        end as observed_at,
        name,
        is_name_mended,
        latitude,
        longitude,
        bikes_count,
        spaces_count,
        docks_count,
        pedelecs_count,
        case when kind = 'free_bike' then battery_pct end as battery_pct,
        is_installed,
        is_locked,
        is_temporary,
        local_offset_seconds,
        server_offset_seconds,
        extra_fields,
        coalesce(bikes_count > docks_count, false) as is_over_capacity,
        coalesce(bikes_count::bigint + spaces_count <> docks_count, false) as has_capacity_mismatch,
        coalesce(len(list_filter(
            areas,
            lambda area: latitude between area['south'] and area['north']
            and longitude between area['west'] and area['east']
        )) = 0, false) as is_outside_service_area,
        line,
    from judged
    cross join areas
)

select * from final
