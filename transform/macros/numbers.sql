{#
  What a text spells, null otherwise. A plain cast is laxer; the patterns cost a quarter of what translate() does.
#}

{# The integer in digits: a plain cast would round 4.6 and read 0x10, 1e1 and 1_0. #}
{% macro whole_number(text) -%}
case when not regexp_matches({{ text }}, '[^0-9-]') then try_cast({{ text }} as integer) end
{%- endmacro %}


{# The number in digits and a point: a plain cast would read inf, 1e1 and 5_1.1. #}
{% macro broken_number(text) -%}
case when not regexp_matches({{ text }}, '[^0-9.-]') then try_cast({{ text }} as double) end
{%- endmacro %}


{# true or false: a plain cast would take yes, f and 0. #}
{% macro true_or_false(text) -%}
case lower(trim({{ text }})) when 'true' then true when 'false' then false end
{%- endmacro %}
