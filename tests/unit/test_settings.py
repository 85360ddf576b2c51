"""Settings: defaults, reading and the report of everything that is wrong."""

import re

import pytest

from ingestion.settings import (
    PROJECT_ROOT,
    SettingsError,
    canonical_postgres_url,
    load_settings,
)


def test_settings_default_to_embedded_services_below_data():
    settings = load_settings({})
    assert settings.lake_url == (PROJECT_ROOT / "data" / "lake").as_uri()
    assert settings.postgres_url is None
    assert settings.postgres_parameters()["host"] == str(settings.postgres_socket_dir)
    assert (settings.postgres_schema, settings.landing_schema) == ("public", "landing")
    assert settings.duckdb_memory_limit == "1GB"


def test_settings_report_every_malformed_value_together_and_hide_passwords():
    with pytest.raises(SettingsError) as caught:
        load_settings(
            {
                "LAKE_URL": "ftp://host/lake",
                "POSTGRES_URL": "mysql://someone:hunter2@host/db",
                "POSTGRES_SCHEMA": "Not-A-Name",
                "FETCH_ATTEMPTS": "none",
                "DUCKDB_MEMORY_LIMIT": "plenty",
                "S3_ADDRESSING_STYLE": "sideways",
            }
        )
    message = str(caught.value)
    for name in ("LAKE_URL", "POSTGRES_URL", "POSTGRES_SCHEMA", "FETCH_ATTEMPTS"):
        assert f"{name} is malformed" in message
    assert "DUCKDB_MEMORY_LIMIT is malformed: 'plenty'. Give a size such as 512MB or 2GB." in message
    assert "Give one of: path, virtual." in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("POSTGRES_URL", "postgresql://bob:hunter2/x@host/db", "percent-encode / # ? @ in the password"),
        ("POSTGRES_URL", "postgresql://bob:x@host/db?options=-c", "Unknown parameters: options"),
        ("LAKE_URL", "file:///o'brien/lake", "without ' * ? [ ] in its name"),
        ("DATA_DIR", "data [1]", "without ' * ? [ ] in its name"),
        ("AWS_CA_BUNDLE", "/nowhere.pem", "Give a file that exists"),
        ("WRM_FEED_URL", "https://bob:hunter2@feed/wrm", "Give it without user and password"),
        ("WRM_FAILURES_URL", "https://bob:hunter2@feed/wrm", "Give it without user and password"),
        ("AWS_ENDPOINT_URL_S3", "https://bob:hunter2@s3", "Give it without user and password"),
    ],
)
def test_settings_refuse_what_would_fail_later_and_never_show_a_password(name, value, advice):
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    assert f"{name} is malformed" in str(caught.value) and advice in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_ask_for_the_missing_half_of_the_keys_of_an_s3_lake():
    with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY is missing"):
        load_settings({"LAKE_URL": "s3://bucket/lake", "AWS_ACCESS_KEY_ID": "id"})


def test_settings_keep_secrets_out_of_their_own_text():
    settings = load_settings(
        {
            "LAKE_URL": "s3://bucket/lake",
            "AWS_ACCESS_KEY_ID": "planted-id",
            "AWS_SECRET_ACCESS_KEY": "planted-key",
            "POSTGRES_URL": "postgresql://user:planted-password@host/db",
        }
    )
    assert "planted" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://ana:p%40ss%3Aword@db.example:6432/city?sslmode=require",
            {"host": "db.example", "port": "6432", "user": "ana", "password": "p@ss:word", "dbname": "city",
             "sslmode": "require"},
        ),
        (
            "postgres:///city?host=/run/postgresql",
            {"host": "/run/postgresql", "port": "5432", "user": "postgres", "password": "", "dbname": "city"},
        ),
    ],
)  # fmt: skip
def test_postgres_urls_become_libpq_parameters_and_back(url, expected):
    settings = load_settings({"POSTGRES_URL": url})
    assert settings.postgres_parameters() == expected
    again = load_settings({"POSTGRES_URL": canonical_postgres_url(settings)})
    assert again.postgres_parameters() == expected


def test_landing_schema_follows_a_schema_of_ones_own():
    assert load_settings({"POSTGRES_SCHEMA": "city"}).landing_schema == "city_landing"


def test_every_setting_is_documented_in_the_example():
    example = (PROJECT_ROOT / ".env.example").read_text()
    source = (PROJECT_ROOT / "ingestion" / "settings.py").read_text()
    names = set(re.findall(r'read(?:\.raw)?\(\s*"([A-Z0-9_]+)"', source))
    assert len(names) > 15
    assert [name for name in sorted(names) if f"{name}=" not in example] == []
