"""The lake's bucket: what `provision` sets up; its policies as printed, enforced by a real S3 server."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.exceptions import ClientError
from conftest import FEW_BIKES, FEW_STATIONS, bronze_rows, moment, raw_name, small_snapshot

from ingestion.lake import Lake
from ingestion.schemas import BRONZE
from ingestion.settings import load_settings
from scripts.command import the_only_job
from scripts.provision_bucket import Outcome, ProvisionError, policies, provision
from scripts.run_pipeline import import_archive
from scripts.start_s3 import running_s3

BUCKET = "guarded"
LAKE_URL = f"s3://{BUCKET}/city/lake"
IDENTITIES = ("collector", "builder", "reader")
TABLES = [f"{source}/{table}" for source, tables in BRONZE.items() for table in tables]
NOT_IMPLEMENTED = "NotImplemented: A header you provided implies functionality that is not implemented."
FOREIGN_RULE = {
    "ID": "theirs",
    "Status": "Enabled",
    "Filter": {"Prefix": "city/lake/"},
    "Expiration": {"Days": 3650},
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that knows an identity for every policy, loaded as `provision --policies-only` prints them."""
    documents = policies(load_settings({"LAKE_URL": LAKE_URL}))
    with running_s3(tmp_path_factory.mktemp("guarded"), json.loads(json.dumps(documents))) as server:
        yield server


@pytest.fixture
def place(workplace, guarded):
    """A workplace on a lake of the server, with keys that may do everything."""
    workplace.configure(**guarded.environment | {"LAKE_URL": LAKE_URL})
    return workplace


def act_as(place, guarded, identity):
    place.configure(**guarded.identities[identity].environment | {"LAKE_URL": LAKE_URL})


def rules(client, bucket):
    """The bucket's lifecycle rules by ID."""
    try:
        found = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except client.exceptions.ClientError:
        return {}
    return {rule["ID"]: rule for rule in found}


def changes(outcomes):
    return {outcome.setting: outcome.outcome for outcome in outcomes if outcome.outcome != "already so"}


def test_provision_sets_up_a_bucket_that_is_missing_and_says_what_the_server_does_not_support(place):
    place.configure(LAKE_URL="s3://made/lake", BRONZE_EXPIRES_AFTER_DAYS="400")
    client = Lake.of(place.settings).s3_client()
    wanted = provision(place.settings, dry_run=True)
    assert {outcome.outcome for outcome in wanted} == {"would be set"}
    with pytest.raises(ClientError, match="404"):
        client.head_bucket(Bucket="made")

    done = provision(place.settings)
    assert done[:8] == [
        Outcome("bucket", "made", "made", "set"),
        Outcome("versioning", "Enabled", "Enabled", "set"),
        Outcome("public access", "blocked", "not set", "not supported", NOT_IMPLEMENTED),
        Outcome("bronze/ versions", "30 days", "30 days", "set"),
        Outcome("silver/ versions", "1 day", "1 day", "set"),
        Outcome("gold/ versions", "1 day", "1 day", "set"),
        Outcome("root versions", "1 day", "1 day", "set"),
        Outcome("uploads", "2 days", "2 days", "set"),
    ]
    aged = {outcome.setting: outcome for outcome in done[8:]}
    for table in TABLES:
        cold, expiry = aged[f"{table} cold"], aged[f"{table} expiry"]
        assert (cold.wanted, cold.now, cold.outcome) == ("GLACIER_IR, 90 days", "no rule", "not supported")
        assert cold.reason == NOT_IMPLEMENTED
        assert (expiry.now, expiry.outcome) == ("400 days", "set")
    assert client.get_bucket_versioning(Bucket="made")["Status"] == "Enabled"
    kept = rules(client, "made")
    assert kept["bike-data-flow:lake/:wrm/failures expiry"] == {
        "ID": "bike-data-flow:lake/:wrm/failures expiry",
        "Status": "Enabled",
        "Filter": {"Prefix": "lake/bronze/wrm/failures/"},
        "Expiration": {"Days": 400},
    }
    unsupported = {"public access"} | {name for name in aged if name.endswith(" cold")}
    assert changes(provision(place.settings)) == dict.fromkeys(unsupported, "not supported")
    assert rules(client, "made") == kept


def test_provision_changes_its_own_rules_and_leaves_those_of_others_alone(place):
    place.configure(LAKE_URL="s3://shared/lake", BRONZE_COLD_AFTER_DAYS="30", BRONZE_EXPIRES_AFTER_DAYS="20")
    client = Lake.of(place.settings).s3_client()
    client.create_bucket(Bucket="shared")
    client.put_bucket_lifecycle_configuration(
        Bucket="shared", LifecycleConfiguration={"Rules": [FOREIGN_RULE]}
    )
    assert all(outcome.outcome != "not supported" for outcome in provision(place.settings)[3:])
    prod = rules(client, "shared")
    assert prod["theirs"] == FOREIGN_RULE
    assert {rule["Filter"]["Prefix"] for rule in prod.values() if rule != FOREIGN_RULE} == {
        "lake/",
        "lake/_",
        "lake/silver/",
        "lake/gold/",
        "lake/bronze/",
        *(f"lake/bronze/{table}/" for table in TABLES),
    }

    place.configure(ENVIRONMENT="dev")
    assert place.settings.lake_url == "s3://shared/lake-dev"
    provision(place.settings)
    both = rules(client, "shared")
    assert {name: both[name] for name in prod} == prod and len(both) == 2 * len(prod) - 1
    of_bronze = both["bike-data-flow:lake-dev/:bronze/ versions"]
    assert of_bronze["NoncurrentVersionExpiration"] == {"NoncurrentDays": 7}

    place.configure(ENVIRONMENT="prod", BRONZE_EXPIRES_AFTER_DAYS="")
    expiries = {f"{table} expiry" for table in TABLES}
    announced = changes(provision(place.settings, dry_run=True))
    assert {name for name, outcome in announced.items() if outcome == "would be removed"} == expiries
    assert rules(client, "shared") == both
    removed = changes(provision(place.settings))
    assert {name for name, outcome in removed.items() if outcome == "removed"} == expiries
    gone = {f"bike-data-flow:lake/:{name}" for name in expiries}
    assert rules(client, "shared") == {name: rule for name, rule in both.items() if name not in gone}


class _Bare(BaseHTTPRequestHandler):
    """A store of objects and nothing else: it knows its bucket and none of the settings."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = (
            b""
            if self.command == "HEAD"
            else b"<Error><Code>NotImplemented</Code><Message>No</Message></Error>"
        )
        self.send_response(501 if body else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET = do_PUT = answer

    def log_message(self, format, *args):
        pass


@contextmanager
def bare_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Bare) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_knows_none_of_the_settings_is_told_of_one_by_one(place):
    with bare_server() as url:
        place.configure(AWS_ENDPOINT_URL_S3=url)
        done = provision(place.settings)
    assert done[0].outcome == "already so"
    assert len(done) == 8 + len(TABLES)
    assert {(outcome.outcome, outcome.reason) for outcome in done[1:]} == {
        ("not supported", "NotImplemented: No.")
    }


def test_provision_refuses_a_local_lake_and_prints_policies_alone_for_piping(workplace):
    with pytest.raises(
        ProvisionError, match=r"There is no bucket to provision: file:///.* Set LAKE_URL to s3"
    ):
        provision(workplace.settings)
    # nothing answers there, and nothing is asked
    workplace.configure(LAKE_URL=LAKE_URL, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    printed = workplace.just("provision", "--policies-only").stdout
    assert json.loads(printed) == policies(workplace.settings)
    assert tuple(json.loads(printed)) == IDENTITIES


def test_the_stages_run_with_no_more_than_their_policies(place, guarded, feed, archive):
    told = place.just("provision").stdout
    assert "Not supported by this server: public access" in told and '"reader": {' in told
    act_as(place, guarded, "collector")
    place.configure(WRM_FEED_URL=f"{feed.url}/wrm", WRM_FAILURES_URL=f"{feed.url}/failures")
    place.just("ingest")
    folder = archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    with the_only_job(place.settings, "backfill"):
        assert import_archive(place.settings, str(folder)).refused == []
    act_as(place, guarded, "builder")
    place.just("transform")
    place.just("export")
    rebuilt = place.just("backfill", "--from", "2025-05-12", "--to", "2025-05-12").stdout
    assert "2025-05-12" in rebuilt and "rebuilt, as before" in rebuilt

    act_as(place, guarded, "reader")
    counted = place.just("query", "-csv", "select sum(lines_count) as n from fct_daily_processing")
    assert counted.stdout == f"n\n{2 * (FEW_STATIONS + FEW_BIKES)}\n"
    assert counted.stderr == "Left out, as these credentials may not read it: silver, bronze.\n"
    refused = place.just(
        "query", f"from '{LAKE_URL}/silver/int_wrm__lines_parsed/_state.parquet'", check=False
    )
    assert refused.returncode == 1 and "403" in refused.stderr
    refused = place.just("ingest", check=False)
    assert refused.returncode == 1 and "AccessDenied" in refused.stderr
    place.configure(**guarded.environment | {"LAKE_URL": LAKE_URL})
    assert len(bronze_rows(place.settings, "station_snapshots")) == 2
    lake = Lake.of(place.settings)
    assert lake.filesystem().find(f"{lake.root}/_backfill") == []  # it could take its journal away


OBJECTS = {
    "raw": "city/lake/bronze/wrm/station_snapshots/dt=2025-05-12/1.parquet",
    "dlt": "city/lake/bronze/wrm/_dlt_pipeline_state/1.jsonl",
    "history": "city/lake/bronze/pipeline/runs/dt=2025-05-12/1.parquet",
    "silver": "city/lake/silver/int_wrm__lines_parsed/dt=2025-05-12/data.parquet",
    "gold": "city/lake/gold/fct_daily_network/dt=2025-05-12/data.parquet",
    "lease": "city/lake/_lease.json",
    "journal": "city/lake/_compaction.json",
    "incidents": "city/lake/_incidents.json",
    "backfill": "city/lake/_backfill/journal.json",
    "dev": "city/lake-dev/bronze/wrm/station_snapshots/dt=2025-05-12/1.parquet",
    "elsewhere": "others/secret",
}
EVERYTHING = "get list put delete"
MAY = {
    "collector": {
        **dict.fromkeys(("raw", "dlt", "history", "lease", "journal", "incidents"), EVERYTHING),
        **dict.fromkeys(("silver", "gold", "backfill", "dev", "elsewhere"), ""),
    },
    "builder": {
        **dict.fromkeys(("history", "silver", "gold", "lease", "incidents", "backfill"), EVERYTHING),
        **dict.fromkeys(("raw", "dlt", "journal"), "get list"),
        **dict.fromkeys(("dev", "elsewhere"), ""),
    },
    "reader": dict.fromkeys(OBJECTS, "") | {"gold": "get list"},
}


def is_allowed(operation, **arguments):
    try:
        answer = operation(Bucket=BUCKET, **arguments)
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        return False
    return not answer.get("Errors")


@pytest.mark.parametrize("identity", IDENTITIES)
def test_an_identity_may_do_what_its_policy_says_and_nothing_else(place, guarded, identity):
    provision(place.settings)
    master = Lake.of(place.settings).s3_client()
    for key in OBJECTS.values():
        master.put_object(Bucket=BUCKET, Key=key, Body=b"as it was")
    act_as(place, guarded, identity)
    client = Lake.of(place.settings).s3_client()
    allowed = {
        name: " ".join(
            verb
            for verb, operation, arguments in (
                ("get", client.get_object, {"Key": key}),
                ("list", client.list_objects_v2, {"Prefix": key}),
                ("put", client.put_object, {"Key": key, "Body": b"changed"}),
                ("delete", client.delete_object, {"Key": key}),
            )
            if is_allowed(operation, **arguments)
        )
        for name, key in OBJECTS.items()
    }
    assert allowed == MAY[identity]
    untouched = {key for name, key in OBJECTS.items() if "put" not in MAY[identity][name]}
    kept = {key: master.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in untouched}
    assert kept == dict.fromkeys(untouched, b"as it was")


@pytest.mark.parametrize("identity", IDENTITIES)
def test_an_identity_finds_no_way_round_its_policy(place, guarded, identity):
    provision(place.settings)
    master = Lake.of(place.settings).s3_client()
    closed = OBJECTS["raw" if identity != "collector" else "gold"]
    master.put_object(Bucket=BUCKET, Key=closed, Body=b"as it was")
    master.put_object(Bucket=BUCKET, Key=OBJECTS["elsewhere"], Body=b"as it was")
    act_as(place, guarded, identity)
    client = Lake.of(place.settings).s3_client()
    mine = OBJECTS["raw" if identity == "collector" else "gold"]
    rule = {"Rules": [FOREIGN_RULE]}
    ways = {
        "several deletions at once": (client.delete_objects, {"Delete": {"Objects": [{"Key": closed}]}}),
        "upload in parts": (client.create_multipart_upload, {"Key": closed}),
        "copy into it": (client.copy_object, {"Key": closed, "CopySource": f"{BUCKET}/{mine}"}),
        "copy out of it": (
            client.copy_object,
            {"Key": mine, "CopySource": f"{BUCKET}/{OBJECTS['elsewhere']}"},
        ),
        "list everything": (client.list_objects_v2, {}),
        "list the whole lake": (client.list_objects_v2, {"Prefix": "city/lake/", "Delimiter": "/"}),
        "list versions": (client.list_object_versions, {"Prefix": closed}),
        "lifecycle": (client.put_bucket_lifecycle_configuration, {"LifecycleConfiguration": rule}),
        "versioning": (client.put_bucket_versioning, {"VersioningConfiguration": {"Status": "Suspended"}}),
        "policy": (client.put_bucket_policy, {"Policy": json.dumps(policies(place.settings)["collector"])}),
        "delete the bucket": (client.delete_bucket, {}),
    }
    assert [way for way, (operation, arguments) in ways.items() if is_allowed(operation, **arguments)] == []
    assert master.get_object(Bucket=BUCKET, Key=closed)["Body"].read() == b"as it was"
