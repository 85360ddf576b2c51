with source as (
    select * from {{ source('wrm', 'station_snapshots') }}
),

decoded as (
    select
        observed_at::timestamp as observed_at,
        fetched_at::timestamp as fetched_at,
        payload_sha256,
        payload_bytes,
        source_key,
        mended_names::json::map(varchar, varchar) as mended_names, -- noqa: LT01, map() is one type
        -- a byte-order mark is no part of the first column's name
        ltrim(coalesce(payload_text, decode(payload, 'replace')), chr(65279)) as content,
    from source
),

split as (
    select
        * exclude (content),
        -- lines end in LF, CRLF or CR
        string_split(
            case when contains(content, chr(13)) then regexp_replace(content, '\r\n?', chr(10), 'g') else content end,
            chr(10)
        ) as lines,
    from decoded
),

final as (
    select
        observed_at,
        fetched_at,
        payload_sha256,
        payload_bytes,
        source_key,
        mended_names,
        lines,
        -- '#id,timestamp|…,name,…'; without the '#' the payload has no header
        case
            when starts_with(lines[1], '#')
                then list_transform(string_split(lines[1][2:], ','), lambda field: trim(field))
        end as header,
    from split
)

select * from final
