"""Alerts: one message to ALERT_WEBHOOK_URL when a trouble begins and one when it is over.

Troubles, each an incident of its own, and when they are over:

    run/<job>             a run of the job failed              its next run succeeds
    stale/<source>        no snapshot for ALERT_STALE_MINUTES  there is a newer one
    coverage/<source>     under ALERT_MIN_SCORE in 24 hours    a point above it, so that it does not flap
    quality/<source>      the last full day under it           a day reaches it
    quarantine/<source>   above ALERT_MAX_QUARANTINE_PCT       under four fifths of it, on a day with lines
    watch/lake            its storage keeps watch from work    it works again
    watch/warehouse       PostgreSQL does                      it works again
    watch/<part>          a part of watch fails by itself      it works again
    watch/died            a job died without a word, or watch  watch is at work
                          ended of an error

A run that was interrupted or killed says neither: the next one makes it good. Nor does one that failed of a
feed that did not answer: that is a trouble once the feed is stale. A message that was not delivered is tried
again at every check; a trouble that is over by then sends one message that says both. Without
ALERT_WEBHOOK_URL nothing is asked of network or lake.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import requests

from ingestion.fetch import USER_AGENT
from ingestion.settings import Settings
from scripts.command import STEERING
from scripts.health import Health, SourceHealth
from scripts.incidents import Incident, Incidents, IncidentStore, is_open, within
from scripts.pipeline_run import Run

WEBHOOK_SECONDS = 5.0  # for all messages of a check
CLAIM = timedelta(
    seconds=60
)  # longer than telling takes; a process that dies telling holds others up so long
RECOVERY_POINTS = 1.0
RECOVERY_SHARE = 0.8
LONGEST_REASON = 300
SHORTEST_SECRET_PATH = 12  # a shorter one is a word
INTERRUPTED = ("KeyboardInterrupt:", "SystemExit:")
RECIPES = (
    "run",
    "export",
    "transform",
    "ingest",
    "compact",
    "watch",
)  # that can be called again as they stand

logger = logging.getLogger("bike-data-flow")


@dataclass(frozen=True)
class Finding:
    """What a check found about one possible trouble."""

    key: str
    is_bad: bool
    what: str  # is the matter, or is well again
    since: datetime  # the trouble has been there, UTC
    next_step: str = ""


class Alerts:
    """Tells the webhook of troubles and of their ends."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = IncidentStore(settings)
        self.secrets = _secrets(settings)

    def run_ended(self, run: Run) -> None:
        """Tell that a run failed, or that its job succeeds again."""
        self.tell(judge_run(run))

    def check(self, health: Health) -> None:
        """Tell what is wrong with sources, or well again."""
        self.tell(judge_health(self.settings, health))

    def tell(self, findings: Iterable[Finding]) -> None:
        """Tell what is new in the findings, and what could not be told before.

        Never raises and takes seconds at the worst: trouble with alerts is logged and hurts no job.
        """
        if self.settings.alert_webhook_url is None:
            return
        try:
            with self.store.locked():
                self._tell([self._without_secrets(finding) for finding in findings])
        except Exception:
            logger.exception("Alerts could not be brought up to date. The next check tries again.")

    def _without_secrets(self, finding: Finding) -> Finding:
        """The finding, whatever an error in it quotes, fit for the lake and for the webhook's host."""
        what = finding.what
        for secret in self.secrets:
            what = what.replace(secret, "***")
        return replace(finding, what=what)

    def _tell(self, findings: list[Finding]) -> None:
        claimant = uuid.uuid4().hex

        def note_and_claim(incidents: Incidents) -> None:
            now = datetime.now(UTC)
            for finding in findings:
                _note(incidents, finding, now)
            for key, incident in incidents.items():
                if _is_due(incident, now):
                    until = _written(now + CLAIM)
                    incidents[key] = replace(incident, claimed_by=claimant, claimed_until=until)

        incidents = self.store.amend(note_and_claim)
        claimed = {key: known for key, known in incidents.items() if known.claimed_by == claimant}
        if claimed:
            told = self._deliver(claimed)
            self.store.amend(lambda incidents: _settle(incidents, claimed, told))

    def _deliver(self, claimed: Incidents) -> set[str]:
        """Send a message for each incident, the oldest first; gives the keys of those that arrived."""
        deadline = time.monotonic() + WEBHOOK_SECONDS
        told: set[str] = set()
        trouble = None
        for key, incident in sorted(claimed.items(), key=lambda item: (item[1].since, item[0])):
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                break
            refusal = self._post(self._message(incident), seconds)
            trouble = refusal or trouble
            if refusal is None:
                told.add(key)
        self.store.note_webhook(trouble)
        return told

    def _post(self, text: str, seconds: float) -> str | None:
        """Send one message; gives why it did not arrive, without the webhook's address, which is a secret."""
        try:
            status = within(seconds, lambda: _post_json(self.settings.alert_webhook_url or "", text, seconds))
        except (TimeoutError, requests.Timeout):
            return "no answer in time"
        except Exception as error:  # its text names the address
            return type(error).__name__
        return None if 200 <= status < 300 else f"HTTP {status}"

    def _message(self, incident: Incident) -> str:
        """The text for what the webhook does not know yet of an incident."""
        place = f"Bike Data Flow ({self.settings.environment}, {self.settings.lake_url})"
        since = _read(incident.since)
        if incident.recovered_at is None:
            return escape(f"{place}: {incident.what}.\nSince {_shown(since)}. Next: {incident.next_step}.")
        until = _read(incident.recovered_at)
        span = f"From {_shown(since)} to {_shown(until)} ({_duration(until - since)})"
        if incident.is_told:
            text = f"{place}: over: {incident.recovery}.\n{span}: {incident.what}. Nothing to do."
        else:
            text = f"{place}: over, and told late because this webhook was out of reach: {incident.what}.\n"
            text += f"{span}; then {incident.recovery}. Nothing to do."
        return escape(text)


def judge_run(run: Run) -> Iterator[Finding]:
    """What a run that has ended says of its job."""
    ended_at = run.ended_at or datetime.now(UTC)
    # watch is well again once it is at work, not when it has ended, and says so itself
    key = "watch/died" if run.job == "watch" else f"run/{run.job}"
    if run.error is None:
        yield Finding(key, False, f"the job {run.job} succeeds again", ended_at)
    elif not was_interrupted(run) and not run.is_feeds_fault:
        what = f"the job {run.job} failed: {_reason(run.error)}"
        yield Finding(key, True, what, ended_at, _next_step(run))


def was_interrupted(run: Run) -> bool:
    """Somebody stopped it: neither a success nor a failure."""
    return run.error is not None and run.error.startswith(INTERRUPTED)


def _next_step(run: Run) -> str:
    again = "watch tries again by itself" if run.trigger == "watch" else f"scripts/just {run.job} tries again"
    is_known = run.trigger == "watch" or run.job in RECIPES
    return f"scripts/just status says more{f'; {again}' if is_known else ''}"


def judge_health(settings: Settings, health: Health) -> Iterator[Finding]:
    """What is wrong or well with each source; nothing where a figure is missing, or between good and bad."""
    for source in health.sources:
        yield _judge_age(settings, source, health.measured_at)
        yield from _judge_coverage(settings, source, health.measured_at)
        yield from _judge_quality(settings, source, health.measured_at)
        yield from _judge_quarantine(settings, source, health.measured_at)


def _judge_age(settings: Settings, source: SourceHealth, now: datetime) -> Finding:
    key = f"stale/{source.source}"
    if not source.is_stale:
        return Finding(key, False, f"snapshots of {source.source} arrive again", now)
    next_step = "scripts/just status says more; scripts/just run tries the feed"
    if source.last_snapshot_at is None:
        return Finding(key, True, f"there is no snapshot of {source.source} yet", now, next_step)
    minutes = (now - source.last_snapshot_at) / timedelta(minutes=1)
    what = f"no new snapshot of {source.source} for {minutes:.0f} minutes"
    what += f" (allowed: {settings.alert_stale_minutes:g})"
    if source.last_error:
        what += f"; the feed's last answer: {_reason(source.last_error)}"
    return Finding(key, True, what, source.last_snapshot_at, next_step)


def _judge_coverage(settings: Settings, source: SourceHealth, now: datetime) -> Iterator[Finding]:
    value, least = source.coverage_pct, settings.alert_min_score
    key, what = f"coverage/{source.source}", f"coverage of {source.source} in the last 24 hours is"
    if value is not None and value < least:
        what += f" {value:.1f} % (at least {least:g} expected), gaps: {len(source.gaps)}"
        yield Finding(
            key, True, what, now, "scripts/just status shows the gaps, scripts/just backfill fills them"
        )
    elif value is not None and value >= min(least + RECOVERY_POINTS, 100):
        yield Finding(key, False, f"{what} {value:.1f} %", now)


def _judge_quality(settings: Settings, source: SourceHealth, now: datetime) -> Iterator[Finding]:
    value, least = source.quality_score, settings.alert_min_score
    key, what = f"quality/{source.source}", f"the data quality of {source.source} on {source.quality_day} is"
    if value is not None and value < least:
        query = f"select * from fct_daily_data_quality where dt = '{source.quality_day}'"
        what += f" {value:.1f} of 100 (at least {least:g} expected)"
        yield Finding(key, True, what, now, f'scripts/just query "{query}" says why')
    elif value is not None:
        yield Finding(key, False, f"{what} {value:.1f} of 100", now)


def _judge_quarantine(settings: Settings, source: SourceHealth, now: datetime) -> Iterator[Finding]:
    share, most = source.quarantine_pct, settings.alert_max_quarantine_pct
    key = f"quarantine/{source.source}"
    what = f"today {source.quarantined_today:,} of {source.lines_today:,} lines of {source.source}"
    what += f" are in quarantine, {share:.1f} %"
    if share > most:
        query = f"select * from int_{source.source}__lines_quarantined where dt = '{now:%Y-%m-%d}'"
        yield Finding(
            key, True, f"{what} (at most {most:g})", now, f'scripts/just query "{query}" shows them'
        )
    elif source.lines_today and share <= most * RECOVERY_SHARE:
        yield Finding(key, False, what, now)


def escape(text: str) -> str:
    """The text as Slack wants it: the three characters that it takes for its own, links and mentions among
    them, as entities."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _note(incidents: Incidents, finding: Finding, now: datetime) -> None:
    known = incidents.get(finding.key)
    if finding.is_bad and known is None:
        incidents[finding.key] = Incident(_written(finding.since), finding.what, finding.next_step)
    elif finding.is_bad and known is not None and not is_open(known):  # back before its end was told
        incidents[finding.key] = replace(known, recovered_at=None, recovery=None)
    elif not finding.is_bad and known is not None and is_open(known):
        incidents[finding.key] = replace(known, recovered_at=_written(now), recovery=finding.what)


def _is_due(incident: Incident, now: datetime) -> bool:
    is_claimed = incident.claimed_until is not None and now < _read(incident.claimed_until)
    return not is_claimed and not (incident.is_told and is_open(incident))


def _settle(incidents: Incidents, claimed: Incidents, told: set[str]) -> None:
    """Write down what was told. Another process may have noted an end, or a new beginning, meanwhile."""
    for key, sent in claimed.items():
        known = incidents.get(key)
        if known is None or known.claimed_by != sent.claimed_by:
            continue
        if key in told and not is_open(sent) and not is_open(known):
            del incidents[key]
            continue
        is_told = is_open(sent) if key in told else known.is_told
        incidents[key] = replace(known, is_told=is_told, claimed_by=None, claimed_until=None)


def _post_json(url: str, text: str, seconds: float) -> int:
    with requests.post(
        url,
        json={"text": text},
        headers={"User-Agent": USER_AGENT},
        timeout=seconds,
        allow_redirects=False,  # the address is a secret for its host alone
        stream=True,  # the answer's text does not matter
    ) as response:
        return response.status_code


def _reason(error: str) -> str:
    """The error in one line of bounded length."""
    line = re.sub(rf"(?:\s|{STEERING.pattern})+", " ", error).strip().rstrip(".")
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def _secrets(settings: Settings) -> list[str]:
    """What must not leave the machine, the longest first."""
    url = settings.alert_webhook_url or ""
    path = url.partition("://")[2].partition("/")[2]
    candidates = {
        url,
        path if len(path) >= SHORTEST_SECRET_PATH else None,  # HTTP libraries quote it without the host
        settings.postgres_url,
        settings.postgres_parameters()["password"],
        settings.s3.secret_access_key,
        settings.s3.session_token,
    }
    return sorted((secret for secret in candidates if secret), key=len, reverse=True)


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _duration(length: timedelta) -> str:
    minutes = round(length / timedelta(minutes=1))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _read(text: str) -> datetime:
    return datetime.fromisoformat(text)
