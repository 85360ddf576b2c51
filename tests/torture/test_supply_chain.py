"""What is installed is what was locked, DuckDB runs signed extensions alone, and the audit finds risks."""

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from contextlib import closing
from importlib import metadata
from pathlib import Path

import duckdb
import pytest
from logins import login_url, make_login

from ingestion.settings import PROJECT_ROOT, load_settings
from scripts.audit_environment import (
    EXTENSIONS,
    PACKAGES,
    audit,
    compare_with_lock,
    find_risks,
    installed_packages,
    is_loopback,
)
from transform.plugins.lake import Plugin, extension_file, open_lake

LOCK = (PROJECT_ROOT / "requirements.txt").read_text()
HASH = r" \\\n    --hash=sha256:[0-9a-f]{64}"
NOWHERE = PROJECT_ROOT / "no.env"


def unhashed(lock):
    """Requirements of a lock that are not pinned to a version with at least one hash."""
    named = re.findall(r"^[A-Za-z0-9].*", lock, re.MULTILINE)
    whole = re.findall(rf"^([A-Za-z0-9]\S*==[^\s\\]+(?: ; [^\\\n]+?)?(?= \\\n)){HASH}", lock, re.MULTILINE)
    return [line for line in named if line.removesuffix(" \\") not in whole]


def test_every_requirement_is_pinned_and_hashed_and_no_other_place_is_named():
    assert unhashed(LOCK) == [] and LOCK.count("==") > 100
    first = re.search(rf"{HASH}", LOCK)[0]
    assert unhashed("other>=1\n" + LOCK) == ["other>=1"]
    assert unhashed("other==1\n" + LOCK) == ["other==1"]
    assert unhashed(f"other==1{first}\n") == []
    assert re.findall(r"https?://|git\+|file:|^-|--(?:extra-)?index", LOCK, re.MULTILINE) == []


def test_a_package_with_another_hash_is_refused(tmp_path):
    """As scripts/just installs: both of its installers are told to want hashes."""
    script = (PROJECT_ROOT / "scripts/just").read_text()
    installs = [
        line for line in script.replace("\\\n", " ").splitlines() if re.search("pip (install|sync)", line)
    ]
    assert len(installs) == 3
    assert [
        line for line in installs if "--require-hashes" not in line and "--offline --no-deps" not in line
    ] == []
    wheel = tmp_path / "harmless-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(
            "harmless-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n"
        )
        file.writestr("harmless-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("harmless-1.0.dist-info/RECORD", "")
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert install(tmp_path, f"harmless==1.0 --hash=sha256:{right}") == (0, "")
    for requirement in (f"harmless==1.0 --hash=sha256:{'0' * 64}", "harmless==1.0"):
        status, told = install(tmp_path, requirement)
        assert status != 0 and "hash" in told.lower()


def install(folder, requirement):
    """Exit status and message of uv, as scripts/just calls it, for one requirement from a folder."""
    (folder / "requirements.txt").write_text(f"{requirement}\n")
    shutil.rmtree(folder / "target", ignore_errors=True)
    done = subprocess.run(
        ["uv", "pip", "sync", "--quiet", "--require-hashes", "--no-index", "--no-cache",
         f"--find-links={folder}", f"--target={folder / 'target'}", folder / "requirements.txt"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_that_was_tampered_with_is_refused(tmp_path, name):
    path = tmp_path / f"{name}.duckdb_extension"
    content = bytearray(Path(extension_file(name)).read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with closing(duckdb.connect()) as connection:
        with pytest.raises(duckdb.IOException, match="signature"):
            connection.execute(f"load '{path}'")
        connection.execute(f"load '{extension_file(name)}'")


def test_no_connection_takes_unsigned_extensions_or_fetches_any(workplace):
    plugin = Plugin("lake", {"environment": "prod"})
    config = {}
    plugin.update_connection_config(None, config)
    with closing(open_lake(workplace.settings)) as lake, closing(duckdb.connect(config=config)) as dbts:
        for connection in (lake, dbts):
            setting = "select current_setting('allow_unsigned_extensions')"
            assert connection.execute(setting).fetchall() == [(False,)]
            with pytest.raises(duckdb.Error, match="Cannot change allow_unsigned_extensions"):
                connection.execute("set allow_unsigned_extensions = true")
            fetching = "select current_setting('autoinstall_known_extensions')"
            assert connection.execute(fetching).fetchall() == [(False,)]


def found(tmp_path, **values):
    return {risk.what.partition(":")[0] for risk in find_risks(load_settings(values), tmp_path / ".env")}


def test_each_risk_of_the_settings_is_found_with_a_remedy_and_none_where_there_is_none(tmp_path):
    (tmp_path / "data").mkdir(mode=0o750)
    safe = {"DATA_DIR": str(tmp_path / "data")}
    assert found(tmp_path, **safe) == set()
    local = {
        "POSTGRES_URL": "postgresql://ana:x@127.0.0.1:9/city",
        "LAKE_URL": "s3://bucket/lake",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "WRM_FEED_URL": "http://localhost:9/wrm",
        "ALERT_WEBHOOK_URL": "http://[::1]:9/hook",
    }
    assert found(tmp_path, **safe, **local) == set()
    assert found(tmp_path, **safe, POSTGRES_URL="postgresql://a:x@db.invalid/c?sslmode=verify-full") == set()
    remote = {
        "POSTGRES_URL": "postgresql://ana:pl4nted@db.invalid/city",
        "LAKE_URL": "s3://bucket/lake",
        "AWS_ENDPOINT_URL_S3": "http://s3.invalid",
        "WRM_FEED_URL": "http://feed.invalid/wrm",
        "WRM_FAILURES_URL": "http://feed.invalid/failures",
        "ALERT_WEBHOOK_URL": "http://hooks.invalid/pl4nted",
        "METRICS_ADDRESS": "0.0.0.0:9464",
    }
    (tmp_path / ".env").write_text("LOG_LEVEL=INFO\nAWS_SECRET_ACCESS_KEY=pl4nted\n")
    (tmp_path / ".env").chmod(0o640)
    (tmp_path / "data").chmod(0o755)
    risks = list(find_risks(load_settings(safe | remote), tmp_path / ".env"))
    assert {risk.what.partition(":")[0] for risk in risks} == {
        "POSTGRES_URL asks for no encryption",
        "AWS_ENDPOINT_URL_S3 is not encrypted",
        "WRM_FEED_URL is not encrypted",
        "WRM_FAILURES_URL is not encrypted",
        "ALERT_WEBHOOK_URL is not encrypted",
        "METRICS_ADDRESS is open to the network",
        "Others may read .env",
        "Everybody on this machine may read DATA_DIR",
        "A long-lived S3 key stands in .env",
    }
    assert all(risk.remedy for risk in risks) and "pl4nted" not in str(risks)


def test_a_superuser_as_loader_is_a_risk_and_the_documented_loader_none(workplace, postgres_server):
    database = workplace.settings.postgres_parameters()["dbname"]
    for user, rights, risks in (("mighty", "superuser", 1), ("small", "nosuperuser", 0)):
        name = f"{user}_of_{database}"
        make_login(postgres_server, name, "x", rights)
        workplace.configure(POSTGRES_URL=login_url(postgres_server, name, "x", database))
        found_now = [risk.what for risk in find_risks(workplace.settings, NOWHERE)]
        told = [what for what in found_now if what.startswith("POSTGRES_URL")]
        assert told == [f"POSTGRES_URL's user may do anything on the server: {name}"] * risks


def test_what_differs_from_the_lock_is_found():
    installed = installed_packages()
    assert compare_with_lock(LOCK, installed) == []
    changed = installed | {"duckdb": "0.1", "evil-package": "6.6"}
    del changed["requests"]
    assert sorted(risk.what for risk in compare_with_lock(LOCK, changed)) == [
        f"duckdb is 0.1, pinned is {installed['duckdb']}",
        "evil-package 6.6 is not in requirements.txt",
        f"requests is missing, pinned is {installed['requests']}",
    ]


def test_the_audit_tells_versions_and_ends_with_one_at_a_risk_alone(workplace, tmp_path):
    audited = audit(workplace.settings, NOWHERE)
    for package in PACKAGES:
        assert audited.versions[package] == metadata.version(package)
    signed = {name: text for name, text in audited.versions.items() if name.startswith("duckdb extension")}
    assert len(signed) == len(EXTENSIONS) and all(text.endswith(", signed") for text in signed.values())
    assert audited.differences == []

    def called(**values):
        workplace.configure(**values)
        with workplace.job("audit_environment", "--json") as job:
            return job.wait(), json.loads(job.output)

    (tmp_path / "private").mkdir(mode=0o750)
    private = {"DATA_DIR": str(tmp_path / "private"), "POSTGRES_URL": ""}
    status, told = called(**private)
    assert (status, told["differences"], told["risks"]) == (0, [], [])
    status, told = called(WRM_FEED_URL="http://feed.invalid/wrm")
    assert (status, [risk["what"] for risk in told["risks"]]) == (
        1,
        ["WRM_FEED_URL is not encrypted: http:// to feed.invalid"],
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "/run/postgresql"])
def test_loopback_is_known(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "db.example", "localhost.evil.example", ""])
def test_the_network_is_no_loopback(host):
    assert not is_loopback(host)
