{{
    config(
        incremental_strategy='upsert_newest',
        unique_key=['id'],
        keep_earliest=['created_at'],
        indexes=[{'columns': ['failure_id']}, {'columns': ['status']}, {'columns': ['bike_id']}, {'columns': ['station_id']}, {'columns': ['reported_at']}],
        pre_hook="{{ remove_outdated('landing_wrm__bike_failures', ['id'], 'processed_at') }}",
        post_hook="{{ mark_exported('landing_wrm__bike_failures') }}",
    )
}}

-- every file lists a failure anew, as long as it stands in the operator's books
select distinct on (id)
    id,
    failure_id,
    bike_id,
    station_id,
    type,
    description,
    reported_at,
    resolved_at,
    status,
    min(created_at) over (partition by id) as created_at,
    attributes::jsonb as attributes,
    date,
    processed_at
from {{ source('landing', 'landing_wrm__bike_failures') }}
order by id, processed_at desc, date desc
