{# The UTC timestamp of a local timestamp or of a local day's midnight in Warsaw, right across both clock changes. #}
{% macro utc_of_warsaw(local) -%}
timezone('UTC', timezone('Europe/Warsaw', ({{ local }})::timestamp))
{%- endmacro %}


{# The local timestamp in Warsaw of a UTC timestamp. #}
{% macro warsaw_of_utc(moment) -%}
timezone('Europe/Warsaw', timezone('UTC', {{ moment }}))
{%- endmacro %}
