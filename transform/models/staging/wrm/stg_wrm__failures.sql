-- The columns of the operator's file are not documented: those whose headers the seed knows are taken, all others
-- travel in `attributes`.
with source as (
    select * from {{ source('wrm', 'failures') }}
),

known_headers as (
    select * from {{ ref('wrm_failure_headers') }}
),

decoded as (
    select
        row_number() over (order by fetched_at, payload_sha256) as file_number,
        observed_at::timestamp as observed_at,
        fetched_at::timestamp as fetched_at,
        payload_sha256,
        mended_names::json::map(varchar, varchar) as mended_names, -- noqa: LT01, map() is one type
        -- PostgreSQL's text and jsonb hold no NUL; a byte-order mark is no part of the first header; lines end in LF,
        -- CRLF or CR
        regexp_replace(
            ltrim(replace(coalesce(payload_text, decode(payload, 'replace')), chr(0), ''), chr(65279)),
            '\r\n?', chr(10), 'g'
        ) as content,
    from source
),

first_lines as (
    select
        *,
        -- what stands between quotes divides nothing
        regexp_replace(regexp_extract(content, '[^\n]*[^\s][^\n]*'), '"(?:[^"]|"")*"', '', 'g') as first_line,
    from decoded
),

delimiters_counted as (
    select
        * exclude (first_line),
        length(first_line) - length(replace(first_line, ';', '')) as semicolons,
        length(first_line) - length(replace(first_line, ',', '')) as commas,
        length(first_line) - length(replace(first_line, chr(9), '')) as tabs,
        length(first_line) - length(replace(first_line, '|', '')) as bars,
    from first_lines
),

files as (
    select
        file_number,
        observed_at,
        fetched_at,
        payload_sha256,
        mended_names,
        content,
        case greatest(semicolons, commas, tabs, bars)
            when semicolons then ';'
            when commas then ','
            when tabs then chr(9)
            else '|'
        end as delimiter,
        -- each field takes a hundred bytes and more on its way; an operator's file has thousands
        length(content) - length(replace(replace(content, chr(10), ''), delimiter, '')) > 1000000 as is_oversized,
    from delimiters_counted
),

-- A token is a field with the delimiter or line break before it, so that all tokens together are the whole file. A
-- quote opens a field only where the field begins; text behind the closing one belongs to the field as it is written.
tokenised as (
    select
        file_number,
        case
            when is_oversized then [chr(10) || content]
            else regexp_extract_all(
                chr(10) || content,
                replace('[D\n](?:"(?:[^"]|"")*"[^D\n]*|[^D\n]*)', 'D', delimiter)
            )
        end as tokens,
    from files
),

tokens as (
    select
        file_number,
        unnest(tokens) as token,
        generate_subscripts(tokens, 1) as token_number,
    from tokenised
),

numbered as (
    select
        *,
        sum(starts_with(token, chr(10))::integer) over (
            partition by file_number
            order by token_number
        )::integer as record_number,
    from tokens
),

unquoted as (
    select
        *,
        row_number() over (partition by file_number, record_number order by token_number) as position,
        trim(
            case
                when regexp_full_match(token[2:], '"(?:[^"]|"")*"') then replace(token[3:-2], '""', '"')
                else token[2:]
            end,
            e' \t\n' || chr(160)
        ) as feed_value,
    from numbered
),

-- joined, not carried along: a file of garbage has as much to mend as it has fields
mended as (
    select
        file_number,
        unnest(map_keys(mended_names)) as broken_value,
        unnest(map_values(mended_names)) as mended_value,
    from files
),

fields as (
    select
        unquoted.file_number,
        unquoted.record_number,
        unquoted.position,
        unquoted.token,
        nullif(coalesce(mended.mended_value, unquoted.feed_value), '') as value,
    from unquoted
    left join mended on unquoted.file_number = mended.file_number and unquoted.feed_value = mended.broken_value
),

records as (
    select
        file_number,
        record_number,
        count(*) as fields_count,
        string_agg(token, '' order by position)[2:] as record,
    from fields
    group by file_number, record_number
    having trim(record, e' \t\n') <> ''
),

headers as (
    select
        file_number,
        position,
        coalesce(value, 'column') as name,
        value is null as is_unnamed,
        trim(
            -- the stroke of ł is no accent
            regexp_replace(replace(strip_accents(lower(value)), 'ł', 'l'), '[^a-z0-9]+', '_', 'g'), '_'
        ) as header,
    from fields
    where (file_number, record_number) in (
        select (file_number, min(record_number)) from records group by file_number
    )
),

columns_found as (
    select
        headers.file_number,
        headers.position,
        case
            when row_number() over (
                partition by headers.file_number, known_headers.column_name
                order by known_headers.priority, headers.position
            ) = 1 then known_headers.column_name
        end as column_name,
        -- unique within a file, whatever its headers: one that could be taken for another tells its position
        case
            when
                headers.is_unnamed or regexp_matches(headers.name, ' #[0-9]+$')
                or row_number() over (
                    partition by headers.file_number, headers.name order by headers.position
                ) > 1
                then headers.name || ' #' || headers.position
            else headers.name
        end as attribute_name,
    from headers
    left join known_headers on headers.header = known_headers.header
),

headers_judged as (
    select
        file_number,
        count(*) as columns_count,
        count(column_name) > 0 as has_known_column,
    from columns_found
    group by file_number
),

records_judged as (
    select
        records.file_number,
        records.record_number,
        records.record,
        case
            when files.is_oversized then 'oversized_file'
            when not headers_judged.has_known_column then 'no_known_column'
            when records.fields_count <> headers_judged.columns_count then 'wrong_field_count'
        end as structural_reason,
    from records
    join headers_judged using (file_number)
    join files using (file_number)
    -- without a known column there is no header either
    qualify
        row_number() over (partition by records.file_number order by records.record_number) > 1
        or not headers_judged.has_known_column
        or files.is_oversized
),

values_named as (
    select
        fields.file_number,
        fields.record_number,
        fields.position,
        fields.value,
        columns_found.column_name,
        columns_found.attribute_name,
        case
            when columns_found.column_name in ('reported_at', 'resolved_at')
                -- year 0 and infinity are no dates
                then regexp_extract(
                    fields.value,
                    '^([12]\d{3}-\d{1,2}-\d{1,2}|\d{1,2}[.-]\d{1,2}[.-][12]\d{3})(?:[ T]+([\d:.]+)(Z|[+-]\d\d:?\d\d)?)?$', -- noqa: LT05, a pattern in one piece
                    ['day', 'clock', 'utc_offset']
                )
        end as date_parts,
    from fields
    join records_judged using (file_number, record_number)
    join columns_found using (file_number, position)
    where records_judged.structural_reason is null and fields.value is not null
),

dates_read as (
    select
        *,
        -- the clock as it is written: whether it shows local time is not known
        try_strptime(
            regexp_replace(date_parts.day, '^(\d+)[.-](\d+)[.-](\d{4})$', '\3-\2-\1')
            || ' ' || coalesce(nullif(date_parts.clock, ''), '0:00'),
            ['%Y-%m-%d %H:%M', '%Y-%m-%d %H:%M:%S', '%Y-%m-%d %H:%M:%S.%f']
        ) as moment,
    from values_named
),

values_judged as (
    select
        *,
        case
            when column_name in ('reported_at', 'resolved_at') then moment is null or date_parts.utc_offset <> ''
            -- no id is as long, and PostgreSQL could not index it
            when column_name in ('failure_id', 'bike_id', 'station_id') then length(value) > 100
            else column_name is null
        end as is_attribute,
    from dates_read
),

typed as (
    select
        file_number,
        record_number,
        any_value(value) filter (column_name = 'failure_id' and not is_attribute) as failure_id,
        any_value(value) filter (column_name = 'bike_id' and not is_attribute) as bike_id,
        any_value(value) filter (column_name = 'station_id' and not is_attribute) as station_id,
        any_value(value) filter (column_name = 'failure_type') as failure_type,
        any_value(value) filter (column_name = 'description') as description,
        any_value(moment) filter (column_name = 'reported_at') as reported_at,
        any_value(value) filter (column_name = 'reported_at') as reported_text,
        any_value(moment) filter (column_name = 'resolved_at') as resolved_at,
        any_value(value) filter (column_name = 'status') as status,
        map_from_entries(list((attribute_name, value) order by position) filter (is_attribute)) as attributes,
    from values_judged
    group by file_number, record_number
),

judged as (
    select
        records_judged.file_number,
        records_judged.record_number,
        records_judged.record,
        case
            when records_judged.structural_reason is not null then [records_judged.structural_reason]
            when coalesce(typed.failure_id, typed.bike_id, typed.station_id, typed.description) is null
                then ['nothing_known']
            else []::varchar[]
        end as rejection_reasons,
        typed.* exclude (file_number, record_number),
    from records_judged
    left join typed using (file_number, record_number)
),

final as (
    select
        files.payload_sha256,
        judged.record_number,
        files.observed_at as file_observed_at,
        files.fetched_at,
        judged.rejection_reasons,
        len(judged.rejection_reasons) > 0 as is_rejected,
        case
            when len(judged.rejection_reasons) = 0
                then md5('wrm:' || coalesce(
                    judged.failure_id,
                    to_json([
                        judged.bike_id,
                        judged.station_id,
                        judged.failure_type,
                        judged.description,
                        coalesce(judged.reported_at::varchar, judged.reported_text),
                    ])::varchar
                ))
        end as failure_key,
        judged.failure_id,
        judged.bike_id,
        judged.station_id,
        judged.failure_type,
        judged.description,
        judged.reported_at,
        judged.resolved_at,
        judged.status,
        coalesce(judged.attributes, map()::map(varchar, varchar)) as attributes, -- noqa: LT01, map() is one type
        judged.record,
    from judged
    join files using (file_number)
)

select * from final
