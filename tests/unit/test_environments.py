"""The environments prod and dev: settings and both dbt profiles agree."""

import os
from argparse import Namespace

import pytest
from dbt.config.runtime import load_profile
from dbt.flags import set_from_args
from dbt_common.context import set_invocation_context
from dbt_common.exceptions import DbtRuntimeError

from ingestion.settings import PROJECT_ROOT, SettingsError, load_settings
from transform.plugins.lake import Plugin


def profile(project, monkeypatch, environment):
    """A project's profile as a plain `dbt` in its folder reads it."""
    folder = str(PROJECT_ROOT / project)
    for name in ("ENVIRONMENT", "POSTGRES_SCHEMA"):
        monkeypatch.setenv(name, environment.get(name, ""))
    set_invocation_context(os.environ)
    set_from_args(Namespace(PROFILES_DIR=folder, PROJECT_DIR=folder), {})
    return load_profile(folder, {})


@pytest.mark.parametrize(
    ("environment", "target", "lake", "schema", "landing"),
    [
        ({}, "prod", "s3://bucket/lake", "public", "landing"),
        ({"ENVIRONMENT": "prod"}, "prod", "s3://bucket/lake", "public", "landing"),
        ({"ENVIRONMENT": "dev"}, "dev", "s3://bucket/lake-dev", "dev", "dev_landing"),
        ({"ENVIRONMENT": "Dev"}, "dev", "s3://bucket/lake-dev", "dev", "dev_landing"),
        ({"POSTGRES_SCHEMA": "city"}, "prod", "s3://bucket/lake", "city", "city_landing"),
        (
            {"ENVIRONMENT": "dev", "POSTGRES_SCHEMA": "city"},
            "dev",
            "s3://bucket/lake-dev",
            "city",
            "city_landing",
        ),
    ],
)
def test_settings_and_profiles_agree_on_the_environment(
    monkeypatch, environment, target, lake, schema, landing
):
    settings = load_settings({"LAKE_URL": "s3://bucket/lake"} | environment)
    assert (settings.environment, settings.lake_url) == (target, lake)
    assert (settings.postgres_schema, settings.landing_schema) == (schema, landing)
    transform, exports = (profile(name, monkeypatch, environment) for name in ("transform", "exports"))
    assert (transform.target_name, exports.target_name) == (target, target)
    assert exports.credentials.schema == schema
    [plugin] = transform.credentials.plugins
    assert plugin.config == {"environment": target}


def test_a_target_that_the_settings_do_not_agree_with_is_refused(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "prod")
    with pytest.raises(
        DbtRuntimeError, match=r"not of this environment: dev\. The settings say ENVIRONMENT="
    ):
        Plugin("lake", {"environment": "dev"})


def test_dev_keeps_less_and_an_unknown_environment_is_refused():
    kept = {
        name: (settings.bronze_expires_after_days, settings.dlt_loads_retention_days)
        for name in ("prod", "dev")
        if (settings := load_settings({"ENVIRONMENT": name}))
    }
    assert kept == {"prod": (None, 30), "dev": (30, 7)}
    with pytest.raises(SettingsError, match=r"ENVIRONMENT is malformed: 'staging'\. Give one of: prod"):
        load_settings({"ENVIRONMENT": "staging"})
