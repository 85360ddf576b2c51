{# The integer that a text spells in digits, null otherwise: a plain cast would round 4.6 and read 0x10 and 1e1. #}
{% macro whole_number(text) -%}
case when translate({{ text }}, '0123456789', '') in ('', '-') then try_cast({{ text }} as integer) end
{%- endmacro %}


{# The number that a text spells in digits and a point, null otherwise: a plain cast would read 5_1.1, inf and 1e1. #}
{% macro broken_number(text) -%}
case when translate({{ text }}, '0123456789', '') in ('', '.', '-', '-.') then try_cast({{ text }} as double) end
{%- endmacro %}


{# true or false where a text says so, null otherwise: a plain cast would take yes, f and 0. #}
{% macro true_or_false(text) -%}
case lower(trim({{ text }})) when 'true' then true when 'false' then false end
{%- endmacro %}
