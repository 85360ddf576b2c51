{#
  Deterministic UUID of version 8 (RFC 9562) that sorts by time: 48 bits of milliseconds, ten of the remaining
  microseconds, and a digest of the key. `moment` is a timestamp in UTC, `key` text.
#}
{% macro time_ordered_uuid(moment, key) -%}
(
    format(
        '{:08x}-{:04x}-8{:03x}-',
        (epoch_ms({{ moment }}) >> 16)::bigint,
        (epoch_ms({{ moment }}) & 65535)::bigint,
        (epoch_us({{ moment }}) % 1000 * 4)::bigint
    )
    || substr('89ab', (1 + ('0x' || md5({{ key }})[1])::integer % 4)::integer, 1)
    || md5({{ key }})[2:4] || '-' || md5({{ key }})[5:16]
)::uuid
{%- endmacro %}
