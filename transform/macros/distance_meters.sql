{# Great-circle distance in metres (haversine, mean Earth radius 6 371 008.8 m) between two places in degrees. #}
{% macro distance_meters(latitude, longitude, other_latitude, other_longitude) -%}
{%- set half_chord -%}
pow(sin(radians(({{ other_latitude }}) - ({{ latitude }})) / 2), 2)
    + cos(radians({{ latitude }})) * cos(radians({{ other_latitude }}))
    * pow(sin(radians(({{ other_longitude }}) - ({{ longitude }})) / 2), 2)
{%- endset -%}
{#- abs(): of places on opposite sides of the Earth rounding may make the sum exceed 1 -#}
(2 * 6371008.8 * atan2(sqrt({{ half_chord }}), sqrt(abs(1 - ({{ half_chord }})))))
{%- endmacro %}
