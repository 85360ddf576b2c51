{# The integer that a text spells in digits, null otherwise: a plain cast would round 4.6 and read 0x10 and 1e1. #}
{% macro whole_number(text) -%}
case when translate({{ text }}, '0123456789', '') in ('', '-') then try_cast({{ text }} as integer) end
{%- endmacro %}
