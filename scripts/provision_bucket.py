"""Set up the lake's bucket, and print the IAM policies of those who use it:

python -m scripts.provision_bucket                   set up what is missing; may be run again at any time
python -m scripts.provision_bucket --dry-run         show what would change
python -m scripts.provision_bucket --policies-only   {identity: policy} as JSON and nothing else

Of the whole bucket: it exists, keeps versions, and is closed to the public. Below the lake's prefix alone, by
lifecycle rules whose IDs begin with `bike-data-flow:<prefix>:` (all others stay as they are):

- Versions of bronze that were replaced or deleted go after 30 days (7 in dev): so long can a mistake be
  undone. Those of silver, gold and the small objects at the root go after one: they can be built again, and
  today's are replaced every minute, which would soon be a hundred times the lake.
- Uploads that nobody finished go after 2 days.
- Raw data moves to GLACIER_IR after BRONZE_COLD_AFTER_DAYS. Of the cold classes it is the one that is read at
  once, as `rebuild`, `compact` and a mended rule need it; one that must be restored first would fail them. It
  costs a fee per byte read and is paid for 90 days at least. Objects under 128 kB stay where they are.
- Raw data expires BRONZE_EXPIRES_AFTER_DAYS after it was written, if that is set; dlt's own state never does.
  The next build takes a day that has left bronze out of silver, gold and PostgreSQL as well.

What a server does not support is said in the table that is printed, after reading back what it keeps.

The policies, each the least that its jobs need; who runs all jobs gets the first two:

- collector (`ingest`, `compact`, the import of an archive) reads, writes and deletes in bronze, where dlt
  keeps its state too, and the lake's lease, journal and incidents. Silver and gold are closed to it.
- builder (`transform`, `export`, `verify`, `status`, `backfill` of days) reads bronze, writes silver, gold,
  the lease, the incidents, the journal of a backfill, and the history of runs in bronze/pipeline. It can
  neither change nor delete raw data, so that a compaction that was killed is finished by the collector's next
  job, not by the builder's.
- reader (`query`, other engines) reads gold. It sees no other object's content and writes nothing.

None may change the bucket's settings: `provision` runs with an administrator's keys. An archive elsewhere on
S3 is no part of this: give the collector s3:ListBucket and s3:GetObject there. S3 takes an object's key for
the prefix when it chooses between "not found" and "denied": to list by prefix is enough to tell them apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ingestion.lake import Lake
from ingestion.schemas import BRONZE
from ingestion.settings import Settings
from scripts import lease
from scripts.command import CommandError, run_command

COLD_STORAGE_CLASS = "GLACIER_IR"
VERSIONS_DAYS = {"prod": 30, "dev": 7}
DERIVED_VERSIONS_DAYS = 1
UNFINISHED_UPLOADS_DAYS = 2
PUBLIC_ACCESS_BLOCK = dict.fromkeys(
    ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
)
# objects at the lake's root: who works on it, what a compaction is about to replace, which alerts are open
LEASE, JOURNAL, INCIDENTS = lease.NAME, "_compaction.json", "_incidents.json"
BACKFILL = "_backfill/*"  # what a backfill of days has under way
UNSUPPORTED = "not supported"
KEPT_OTHERWISE = "The server took it and keeps something else."
NO_SUCH_FEATURE = (400, 405, 501)  # HTTP statuses; what is merely forbidden is an error of its own

Policy = dict[str, Any]
Rule = dict[str, Any]


class ProvisionError(CommandError):
    """The bucket cannot be set up."""


@dataclass(frozen=True)
class Outcome:
    """One setting: what is wanted, what the server has now, and how that came about."""

    setting: str
    wanted: str
    now: str
    outcome: str  # set, removed, already so, would be set, would be removed, not supported
    reason: str = ""  # why it is not supported


def provision(settings: Settings, *, dry_run: bool = False) -> list[Outcome]:
    """Set up what the bucket lacks, or only say so; gives every setting as the server has it afterwards."""
    store = _Store(_lake_on_s3(settings), dry_run)
    outcomes = [store.make_bucket(settings.s3.region)]
    outcomes.append(store.set_versioning())
    outcomes.append(store.block_public_access())
    return outcomes + store.set_lifecycle(lifecycle_rules(settings))


def _lake_on_s3(settings: Settings) -> Lake:
    lake = Lake.of(settings)
    if lake.is_local:
        raise ProvisionError(
            f"There is no bucket to provision: {lake.url}. Set LAKE_URL to s3://bucket/prefix for one."
        )
    return lake


def lifecycle_rules(settings: Settings) -> dict[str, Rule]:
    """The lake's lifecycle rules by what they are about, in the words of S3's API."""
    rules = {"bronze/ versions": _versions("bronze/", VERSIONS_DAYS[settings.environment])}
    for derived in ("silver/", "gold/", "_"):
        rules[f"{derived.replace('_', 'root')} versions"] = _versions(derived, DERIVED_VERSIONS_DAYS)
    unfinished = {"DaysAfterInitiation": UNFINISHED_UPLOADS_DAYS}
    rules["uploads"] = _rule("", AbortIncompleteMultipartUpload=unfinished)
    for source, tables in BRONZE.items():
        for table in tables:
            for action, ageing in _ageing(settings).items():
                rules[f"{source}/{table} {action}"] = _rule(f"bronze/{source}/{table}/", **ageing)
    _, prefix = Lake.of(settings).bucket_and_key("")
    return {name: _at(prefix, name, rule) for name, rule in rules.items()}


def _versions(prefix: str, days: int) -> Rule:
    return _rule(
        prefix,
        NoncurrentVersionExpiration={"NoncurrentDays": days},
        Expiration={"ExpiredObjectDeleteMarker": True},
    )


def _ageing(settings: Settings) -> dict[str, Rule]:
    """What becomes of old raw data, in rules of their own: many servers know only one of the two. What
    expires first never gets cold."""
    cold, expiry = settings.bronze_cold_after_days, settings.bronze_expires_after_days
    ageing: dict[str, Rule] = {}
    if expiry is None or cold < expiry:
        ageing["cold"] = {"Transitions": [{"Days": cold, "StorageClass": COLD_STORAGE_CLASS}]}
    if expiry is not None:
        ageing["expiry"] = {"Expiration": {"Days": expiry}}
    return ageing


def _rule(prefix: str, **actions: Any) -> Rule:
    return {"Status": "Enabled", "Filter": {"Prefix": prefix}, **actions}


def _at(prefix: str, name: str, rule: Rule) -> Rule:
    return rule | {
        "ID": f"{_rule_namespace(prefix)}{name}",
        "Filter": {"Prefix": prefix + rule["Filter"]["Prefix"]},
    }


def _rule_namespace(prefix: str) -> str:
    return f"bike-data-flow:{prefix}:"


class _Store:
    """The lake's bucket at its server."""

    def __init__(self, lake: Lake, dry_run: bool) -> None:
        self.client = lake.s3_client()
        self.bucket, self.prefix = lake.bucket_and_key("")
        self.dry_run = dry_run
        self.is_there = self._exists()

    def _exists(self) -> bool:
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except self.client.exceptions.ClientError as error:
            if _status(error) == 404:
                return False
            raise
        return True

    def make_bucket(self, region: str) -> Outcome:
        """Make the bucket in `region` if it is missing."""
        if self.is_there:
            return Outcome("bucket", self.bucket, self.bucket, "already so")
        if self.dry_run:
            return Outcome("bucket", self.bucket, "missing", "would be set")
        # S3 refuses its oldest region by name
        place = {} if region == "us-east-1" else {"LocationConstraint": region}
        options = {"CreateBucketConfiguration": place} if place else {}
        self.client.create_bucket(Bucket=self.bucket, **options)
        self.is_there = True
        return Outcome("bucket", self.bucket, self.bucket, "set")

    def set_versioning(self) -> Outcome:
        """Keep versions of what is replaced or deleted."""
        return self._set(
            "versioning",
            "Enabled",
            lambda: self.client.get_bucket_versioning(Bucket=self.bucket).get("Status"),
            lambda: self.client.put_bucket_versioning(
                Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"}
            ),
        )

    def block_public_access(self) -> Outcome:
        """Close the bucket to the public, whatever access lists and bucket policies say."""
        return self._set(
            "public access",
            "blocked",
            self._public_access,
            lambda: self.client.put_public_access_block(
                Bucket=self.bucket, PublicAccessBlockConfiguration=PUBLIC_ACCESS_BLOCK
            ),
        )

    def _public_access(self) -> str | None:
        try:
            found = self.client.get_public_access_block(Bucket=self.bucket)
        except self.client.exceptions.ClientError as error:
            if _status(error) == 404:
                return None
            raise
        is_blocked = found["PublicAccessBlockConfiguration"] == PUBLIC_ACCESS_BLOCK
        return "blocked" if is_blocked else "blocked in part"

    def _set(
        self, setting: str, wanted: str, read: Callable[[], str | None], write: Callable[[], object]
    ) -> Outcome:
        """Set one setting of the whole bucket where it is not so yet, and read it back."""
        try:
            now = read() if self.is_there else None
            if now == wanted:
                return Outcome(setting, wanted, now, "already so")
            if self.dry_run:
                return Outcome(setting, wanted, now or "not set", "would be set")
            write()
            now = read()
        except self.client.exceptions.ClientError as error:
            return Outcome(setting, wanted, "not set", UNSUPPORTED, _refusal(error))
        if now == wanted:
            return Outcome(setting, wanted, now, "set")
        return Outcome(setting, wanted, now or "not set", UNSUPPORTED, KEPT_OTHERWISE)

    def set_lifecycle(self, wanted: dict[str, Rule]) -> list[Outcome]:
        """Set the lake's rules and remove those it had before and wants no more; those of others stay."""
        try:
            before, minimum_size = self._rules()
        except self.client.exceptions.ClientError as error:
            return [
                Outcome(name, _in_words(rule), "no rule", UNSUPPORTED, _refusal(error))
                for name, rule in wanted.items()
            ]
        own = {rule["ID"]: rule for rule in before if self._is_own(rule)}
        obsolete = [
            rule for identifier, rule in own.items() if identifier not in _identifiers(wanted.values())
        ]
        missing = [rule for rule in wanted.values() if own.get(rule["ID"]) != rule]
        refusals: dict[str, str] = {}
        if (missing or obsolete) and not self.dry_run:
            kept = [rule for rule in before if rule not in obsolete]
            refusals = self._write_rules(kept, missing, minimum_size)
        now = {rule.get("ID"): rule for rule in (before if self.dry_run else self._rules()[0])}
        outcomes = [
            self._rule_outcome(name, rule, now.get(rule["ID"]), rule in missing, refusals)
            for name, rule in wanted.items()
        ]
        gone = "would be removed" if self.dry_run else "removed"
        return outcomes + [
            Outcome(
                rule["ID"].removeprefix(_rule_namespace(self.prefix)),
                "no rule",
                _in_words(now[rule["ID"]]) if rule["ID"] in now else "no rule",
                UNSUPPORTED if rule["ID"] in now and not self.dry_run else gone,
            )
            for rule in obsolete
        ]

    def _is_own(self, rule: Rule) -> bool:
        return str(rule.get("ID", "")).startswith(_rule_namespace(self.prefix))

    def _rules(self) -> tuple[list[Rule], str | None]:
        """The bucket's rules, those of others among them, and from which size on objects move."""
        if not self.is_there:
            return [], None
        try:
            found = self.client.get_bucket_lifecycle_configuration(Bucket=self.bucket)
        except self.client.exceptions.ClientError as error:
            if _status(error) == 404:
                return [], None
            raise
        return found["Rules"], found.get("TransitionDefaultMinimumObjectSize")

    def _write_rules(self, kept: list[Rule], missing: list[Rule], minimum_size: str | None) -> dict[str, str]:
        """Write the rules all at once; where the server refuses that, one by one those that it takes. Gives
        the reason of each refusal by rule."""
        options = {"TransitionDefaultMinimumObjectSize": minimum_size} if minimum_size else {}

        def refused(rules: Iterable[Rule]) -> str | None:
            configuration = {"Rules": list(rules)}
            try:
                self.client.put_bucket_lifecycle_configuration(
                    Bucket=self.bucket, LifecycleConfiguration=configuration, **options
                )
            except self.client.exceptions.ClientError as error:
                return _refusal(error)
            return None

        new = _identifiers(missing)
        taken = [rule for rule in kept if rule.get("ID") not in new]
        if refused([*taken, *missing]) is None:
            return {}
        refused(taken)  # what is obsolete goes in any case
        refusals = {}
        for rule in missing:
            reason = refused([*taken, rule])
            if reason is None:
                taken.append(rule)
            else:
                refusals[rule["ID"]] = reason
        return refusals

    def _rule_outcome(
        self, name: str, wanted: Rule, now: Rule | None, was_missing: bool, refusals: dict[str, str]
    ) -> Outcome:
        outcome, reason = "set", ""
        if not was_missing:
            outcome = "already so"
        elif self.dry_run:
            outcome = "would be set"
        elif now != wanted:
            outcome, reason = UNSUPPORTED, refusals.get(wanted["ID"], KEPT_OTHERWISE)
        return Outcome(name, _in_words(wanted), _in_words(now) if now else "no rule", outcome, reason)


def _identifiers(rules: Iterable[Rule]) -> set[str]:
    return {rule["ID"] for rule in rules}


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _refusal(error: Any) -> str:
    """Why a server does not take a setting. Raises what is no such answer."""
    if _status(error) not in NO_SUCH_FEATURE:
        raise error
    return f"{error.response['Error']['Code']}: {error.response['Error']['Message']}."


def _in_words(rule: Rule) -> str:
    """When a lifecycle rule acts, and where it moves something to."""
    said = [
        _days(rule.get(action, {}).get(unit))
        for action, unit in (
            ("NoncurrentVersionExpiration", "NoncurrentDays"),
            ("AbortIncompleteMultipartUpload", "DaysAfterInitiation"),
            ("Expiration", "Days"),
        )
        if unit in rule.get(action, {})
    ]
    said += [f"{move.get('StorageClass')}, {_days(move.get('Days'))}" for move in rule.get("Transitions", [])]
    return ", ".join(said) or "another rule"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"


def policies(settings: Settings) -> dict[str, Policy]:
    """The IAM policy documents of collector, builder and reader."""
    lake = _lake_on_s3(settings)
    common = [LEASE, INCIDENTS]
    collected = ["bronze/*", *common, JOURNAL]
    derived = ["silver/*", "gold/*", BACKFILL, *common]
    return {
        "collector": _policy(lake, reads=collected, writes=collected),
        "builder": _policy(
            lake, reads=["bronze/*", *derived, JOURNAL], writes=["bronze/pipeline/*", *derived]
        ),
        "reader": _policy(lake, reads=["gold/*"], writes=[]),
    }


def _policy(lake: Lake, reads: list[str], writes: list[str]) -> Policy:
    """A policy that lets its bearer list and read some objects below the lake, and write and delete some."""
    bucket, prefix = lake.bucket_and_key("")
    arn = f"arn:aws:s3:::{bucket}"
    below = {"StringLike": {"s3:prefix": [f"{prefix}{pattern.rstrip('*')}*" for pattern in reads]}}
    statements: list[dict[str, Any]] = [
        {"Sid": "List", "Action": ["s3:ListBucket"], "Resource": [arn], "Condition": below},
        {"Sid": "Read", "Action": ["s3:GetObject"], "Resource": [f"{arn}/{prefix}{name}" for name in reads]},
    ]
    if writes:
        # a writer looks first whether there is a bucket to write to
        statements.insert(0, {"Sid": "Locate", "Action": ["s3:GetBucketLocation"], "Resource": [arn]})
        actions = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        resources = [f"{arn}/{prefix}{name}" for name in writes]
        statements.append({"Sid": "Write", "Action": actions, "Resource": resources})
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow"} | statement for statement in statements],
    }


def report(settings: Settings, outcomes: list[Outcome]) -> None:
    """What became of every setting, and why of some nothing did."""
    console = Console(highlight=False)
    table = Table(title=f"Bucket of {settings.lake_url}", title_justify="left")
    for heading in ("setting", "wanted", "now", "outcome"):
        table.add_column(heading)
    for found in outcomes:
        table.add_row(found.setting, found.wanted, found.now, found.outcome)
    console.print(table)
    for reason in dict.fromkeys(found.reason for found in outcomes if found.reason):
        concerned = ", ".join(found.setting for found in outcomes if found.reason == reason)
        console.print(f"Not supported by this server: {concerned}. {reason}")
    console.print("Policies, each the least that its jobs need:")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="show what would change")
    parser.add_argument("--policies-only", action="store_true", help="print the policies, touch nothing")
    given = parser.parse_args()

    def job(settings: Settings) -> None:
        documents = policies(settings)
        if not given.policies_only:
            report(settings, provision(settings, dry_run=given.dry_run))
        print(json.dumps(documents, indent=2))

    run_command(job)


if __name__ == "__main__":
    main()
