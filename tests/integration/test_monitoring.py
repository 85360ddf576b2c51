"""Metrics, rules and dashboard, with the real promtool and a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_tools import Prometheus, find_prometheus, listening_addresses, running_prometheus

import scripts.alerts
from ingestion.settings import PROJECT_ROOT, Settings, load_settings
from scripts.after_run import after_run
from scripts.alerts import Alerts, Finding
from scripts.command import CommandError, the_only_job
from scripts.health import (
    Gap,
    Health,
    LayerHealth,
    RunHealth,
    SourceHealth,
    WarehouseHealth,
    measure_health,
)
from scripts.metrics import CONDITIONS, ERROR_KINDS, Metrics, error_kind, write_textfile
from scripts.pipeline_run import Run
from scripts.start_postgres import running_postgres

MONITORING = PROJECT_ROOT / "scripts" / "monitoring"
NOW = datetime.now(UTC)
HEALTH = Health(
    measured_at=NOW,
    sources=[
        SourceHealth(
            source="wrm",
            last_snapshot_at=NOW - timedelta(minutes=10),
            age_seconds=600.0,
            is_stale=False,
            failing_since=NOW - timedelta(minutes=5),
            last_error="The server refused: HTTP 500",
            coverage_pct=93.0,
            gaps=[Gap(NOW - timedelta(hours=3), NOW - timedelta(hours=1))],
            quality_day=NOW.date() - timedelta(days=1),
            quality_score=97.5,
            lines_today=50_000,
            quarantined_today=5,
            quarantine_pct=0.01,
        )
    ],
    layers=[LayerHealth("bronze", 100, 20, 3_000), LayerHealth("gold", 10, 2, 300)],
    warehouse=WarehouseHealth(None, {"bike_stations": 235, "free_bikes": 110}, NOW, 42.0),
    runs=[
        RunHealth("b", "export", "cron", NOW - timedelta(minutes=2), None, "killed", None),
        RunHealth("a", "export", "cron", NOW - timedelta(minutes=9), 3.0, "succeeded", None),
        RunHealth("c", "compact", "cron", NOW - timedelta(hours=9), 60.0, "succeeded", None),
    ],
    at_work=None,
    next_work={},
)


def ended(job: str, error: str | None = None, at: datetime = NOW, seconds: float = 2.0) -> Run:
    return Run("20250512T120000-abcdef", job, "cron", at - timedelta(seconds=seconds), at, error)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(environment(tmp_path))


def environment(folder: Path, **values: str) -> dict[str, str]:
    return {
        "DATA_DIR": str(folder / "data"),
        "METRICS_ADDRESS": "127.0.0.1:0",
        "METRICS_TEXTFILE": str(folder / "textfiles" / "bike_data_flow.prom"),
        "ALERT_WEBHOOK_URL": "http://127.0.0.1:9/services/T0001/B0002/planted-secret",
        **values,
    }


def busy_metrics(settings: Settings) -> Metrics:
    """Metrics with a value in every series that there is."""
    metrics = Metrics(settings)
    metrics.note_health(HEALTH)
    metrics.run_ended(ended("run"))
    metrics.run_ended(ended("export", "OperationalError: connection refused"))
    metrics.poll_ended("wrm", "taken", 0.3)
    metrics.rows_exported("bike_stations", 235)
    return metrics


def text_of(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def values(text: str) -> dict[str, float]:
    """Value by series, such as bike_data_flow_lake_rows{layer="bronze"}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"bike_data_flow_\w+", expression))


def exposed_names(metrics: Metrics) -> set[str]:
    """Names as PromQL knows them, without the `_created` of counters and histograms."""
    samples = {sample.name for metric in metrics.registry.collect() for sample in metric.samples}
    return {name for name in samples if not name.endswith("_created")}


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "dashboard.json").read_text())


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run([find_prometheus() / "promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_scrape_config_and_the_rules_and_their_tests_hold():
    assert "SUCCESS: 1 rule files found" in promtool("check", "config", MONITORING / "prometheus.yml")
    assert "SUCCESS: 9 rules found" in promtool("check", "rules", MONITORING / "alert_rules.yml")
    assert "SUCCESS" in promtool("test", "rules", MONITORING / "alert_rules_test.yml")


def test_every_rule_has_a_test_that_it_fires():
    rules = re.findall(r"- alert: (\w+)", (MONITORING / "alert_rules.yml").read_text())
    tests = (MONITORING / "alert_rules_test.yml").read_text()
    fires = re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n", tests)
    assert sorted(fires) == sorted([*rules, "FeedStale"])  # one that never gave anything, and one of age


def test_what_is_served_passes_promtools_lint(settings):
    with busy_metrics(settings).served() as url:
        text = requests.get(url, timeout=30).text
    text = re.sub(r"^(# \w+ )?\w+_created[ {].*\n", "", text, flags=re.MULTILINE)  # prometheus-client's own
    done = subprocess.run(
        [find_prometheus() / "promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_real_prometheus_scrapes_what_is_served_and_every_panel_shows_it(settings, tmp_path):
    with busy_metrics(settings).served() as url:
        config = (MONITORING / "prometheus.yml").read_text().replace("30s", "200ms")
        config = config.replace("127.0.0.1:9464", url.removeprefix("http://").removesuffix("/metrics"))
        config = config.replace("alert_rules.yml", str(MONITORING / "alert_rules.yml"))
        with running_prometheus(tmp_path, config) as prometheus:
            prometheus.wait_for("count_over_time(up[1h]) >= 3")  # rates want two scrapes
            _check_series(prometheus)
            _check_panels(prometheus)
            assert listening_addresses(prometheus.process) == {"127.0.0.1"}


def _check_series(prometheus: Prometheus) -> None:
    [up] = prometheus.query("up")
    assert (up["metric"]["job"], up["value"][1]) == ("bike-data-flow", "1")
    [rows] = prometheus.query('bike_data_flow_warehouse_rows{table="bike_stations"}')
    assert rows["value"][1] == "235"
    [runs] = prometheus.query('sum(bike_data_flow_runs_total{job_name="export",outcome="failed"})')
    assert runs["value"][1] == "1"
    renamed = '{exported_job!=""} or {exported_instance!=""}'
    assert prometheus.query(renamed) == []  # no label of ours has the name of one that Prometheus gives
    pending = prometheus.wait_for('ALERTS{alertname="RunsFailing"}')
    assert [alert["metric"]["job_name"] for alert in pending] == ["export"]


def _check_panels(prometheus: Prometheus) -> None:
    assert len(dashboard_expressions()) > 30
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            found = prometheus.query(target["expr"].replace("$__rate_interval", "1m"))
            assert found, f"{panel['title']} shows nothing: {target['expr']}"
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert all(labels <= set(series["metric"]) for series in found), panel["title"]


def test_metrics_in_dashboard_and_rules_exist_and_all_that_exist_are_documented_and_shown(settings):
    exposed = exposed_names(busy_metrics(settings))
    rules = (MONITORING / "alert_rules.yml").read_text() + (MONITORING / "alert_rules_test.yml").read_text()
    shown = metric_names(" ".join(dashboard_expressions()))
    assert metric_names(rules) - exposed == set()
    assert shown - exposed == set()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed}
    assert families - {re.sub(r"_bucket$", "", name) for name in shown} == set()
    table = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", (MONITORING / "README.md").read_text(), re.M)
    assert sorted(f"bike_data_flow_{name}" for name, _, _ in table) == sorted(families)
    for metric in busy_metrics(settings).registry.collect():
        name = metric.name.removeprefix("bike_data_flow_") + ("_total" if metric.type == "counter" else "")
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        [(kind, documented)] = [(kind, found) for known, kind, found in table if known == name]
        assert (kind, set(re.findall(r"`(\w+)`", documented))) == (metric.type, labels), name
        assert metric.documentation
        assert not name.endswith(("seconds", "bytes")) or re.search("second|bytes", metric.documentation), (
            name
        )


def test_the_dashboard_can_be_imported():
    board = dashboard()
    [given] = board["__inputs"]
    assert (given["name"], given["type"], given["pluginId"]) == ("DS_PROMETHEUS", "datasource", "prometheus")
    required = {each["id"] for each in board["__requires"] if each["type"] == "panel"}
    assert {panel["type"] for panel in board["panels"]} == required
    assert (board["id"], board["uid"]) == (None, "bike-data-flow")
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 15
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
        assert all(each["datasource"] == source for each in [panel, *panel["targets"]]), panel["title"]
        assert panel["title"] and panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # of 24 columns
        assert max(x for x, _ in cells) < 24 and not cells & taken, panel["title"]
        taken |= cells


def test_metrics_listen_on_loopback_and_nowhere_else(settings):
    host, _ = load_settings({}).metrics_address
    with Metrics(replace(settings, metrics_address=(host, 0))).served() as url:
        assert re.fullmatch(r"http://127.0.0.1:\d+/metrics", url)
        assert listening_addresses(os.getpid()) == {"127.0.0.1"}
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


def test_a_taken_port_is_said_clearly(settings):
    with Metrics(settings).served() as url:
        port = int(url.split(":")[2].split("/")[0])
        other = Metrics(replace(settings, metrics_address=("127.0.0.1", port)))
        expected = f"Metrics cannot be served: 127.0.0.1:{port} .Address already in use.. End what listens"
        with pytest.raises(CommandError, match=expected), other.served():
            pass


def test_ages_grow_while_nothing_is_measured(settings):
    source = HEALTH.sources[0]
    long_ago = NOW - timedelta(hours=1)
    old = replace(source, last_snapshot_at=long_ago, failing_since=long_ago)  # and measured as fresh
    metrics = Metrics(settings)
    metrics.note_health(replace(HEALTH, sources=[old], measured_at=long_ago))
    first, second = (values(text_of(metrics)) for _ in range(2))
    for name in ('last_snapshot_age_seconds{source="wrm"}', 'feed_failing_seconds{source="wrm"}',
                 "health_age_seconds"):  # fmt: skip
        assert second[f"bike_data_flow_{name}"] > first[f"bike_data_flow_{name}"] >= 3600
    assert first['bike_data_flow_feed_stale{source="wrm"}'] == 1


def test_gauges_say_what_the_figures_say(settings):
    settings = replace(settings, alert_stale_minutes=600.0)  # NOW is when the session began
    served = values(text_of(busy_metrics(settings)))
    expected = {
        'last_snapshot_timestamp_seconds{source="wrm"}': (NOW - timedelta(minutes=10)).timestamp(),
        'feed_failing_since_timestamp_seconds{source="wrm"}': (NOW - timedelta(minutes=5)).timestamp(),
        'feed_stale{source="wrm"}': 0,
        'coverage_ratio{source="wrm"}': 0.93,
        'coverage_gaps{source="wrm"}': 1,
        'quality_score{source="wrm"}': 97.5,
        'lines_today{source="wrm"}': 50_000,
        'quarantined_lines_today{source="wrm"}': 5,
        'lake_rows{layer="bronze"}': 100,
        'lake_objects{layer="gold"}': 2,
        'lake_size_bytes{layer="bronze"}': 3_000,
        "warehouse_up": 1,
        'warehouse_rows{table="free_bikes"}': 110,
        "warehouse_lag_seconds": 42,
        "stale_threshold_seconds": 36_000,
        "score_threshold": 85,
        "quarantine_threshold_ratio": 0.05,
        'last_run_failed{job_name="export"}': 1,
        'last_run_failed{job_name="compact"}': 0,
        'last_run_duration_seconds{job_name="compact"}': 60,
        'last_run_timestamp_seconds{job_name="run"}': NOW.timestamp(),
        'runs_total{job_name="run",outcome="succeeded"}': 1,
        'runs_total{job_name="run",outcome="failed"}': 0,
        'errors_total{kind="postgres"}': 1,
        'errors_total{kind="feed"}': 0,
        'snapshots_total{outcome="taken",source="wrm"}': 1,
        'exported_rows_total{table="bike_stations"}': 235,
        'run_duration_seconds_bucket{job_name="run",le="1.0"}': 0,
        'run_duration_seconds_bucket{job_name="run",le="2.5"}': 1,
        'fetch_duration_seconds_sum{source="wrm"}': 0.3,
        'open_incidents{condition="run"}': 0,
    }
    assert {name: served[f"bike_data_flow_{name}"] for name in expected} == pytest.approx(expected)


def test_what_is_not_known_is_absent_and_not_zero(settings):
    unknown = replace(
        HEALTH.sources[0], last_snapshot_at=None, failing_since=None, coverage_pct=None, quality_score=None
    )
    metrics = Metrics(settings)
    metrics.note_health(replace(HEALTH, sources=[unknown], warehouse=WarehouseHealth("away", {}, None, None)))
    served = values(text_of(metrics))
    for name in ("coverage_ratio", "quality_score", "last_snapshot_timestamp_seconds",
                 "last_snapshot_age_seconds", "feed_failing_since_timestamp_seconds"):  # fmt: skip
        assert f'bike_data_flow_{name}{{source="wrm"}}' not in served
    assert "bike_data_flow_warehouse_lag_seconds" not in served
    assert served["bike_data_flow_warehouse_up"] == 0
    assert served['bike_data_flow_feed_stale{source="wrm"}'] == 1
    assert served['bike_data_flow_feed_failing_seconds{source="wrm"}'] == 0


def test_health_that_was_measured_without_sizes_is_served_and_the_table_says_where_sizes_are(
    workplace, settings
):
    metrics = busy_metrics(settings)
    metrics.note_health(replace(HEALTH, layers=measure_health(workplace.settings).layers))
    served = values(text_of(metrics))
    assert served['bike_data_flow_lake_rows{layer="bronze"}'] == 0
    not_served = exposed_names(busy_metrics(settings)) - exposed_names(metrics)
    assert not_served == {"bike_data_flow_lake_objects", "bike_data_flow_lake_size_bytes"}
    table = re.findall(r"^\| `(\w+)` .* \| textfile \|$", (MONITORING / "README.md").read_text(), re.M)
    assert {f"bike_data_flow_{name}" for name in table} == not_served
    write_textfile(settings, ended("run"), measure_health(workplace.settings))
    assert "lake_rows{" in settings.metrics_textfile.read_text()


def test_a_run_that_was_interrupted_counts_as_such_and_leaves_the_last_one(settings):
    metrics = Metrics(settings)
    metrics.run_ended(ended("run"))
    metrics.run_ended(ended("run", "KeyboardInterrupt: "))
    served = values(text_of(metrics))
    assert served['bike_data_flow_runs_total{job_name="run",outcome="interrupted"}'] == 1
    assert served['bike_data_flow_last_run_failed{job_name="run"}'] == 0
    assert served['bike_data_flow_run_duration_seconds_count{job_name="run"}'] == 1
    assert sum(value for name, value in served.items() if "errors_total" in name) == 0


def test_a_run_on_record_that_was_interrupted_leaves_the_last_one_too(settings):
    interrupted = RunHealth("d", "compact", "manual", NOW - timedelta(hours=1), 5.0, "interrupted", None)
    metrics = Metrics(settings)
    metrics.note_health(replace(HEALTH, runs=[interrupted, *HEALTH.runs]))
    served = values(text_of(metrics))
    assert served['bike_data_flow_last_run_failed{job_name="compact"}'] == 0
    assert served['bike_data_flow_last_run_duration_seconds{job_name="compact"}'] == 60
    metrics.note_health(replace(HEALTH, runs=[interrupted]))
    assert 'bike_data_flow_last_run_failed{job_name="compact"}' not in values(text_of(metrics))


def test_every_incident_that_alerts_know_counts_by_its_condition(tmp_path):
    table = re.findall(r"^ {4}(\w+)/(\S+)", scripts.alerts.__doc__, re.M)
    assert {condition for condition, _ in table} == {*CONDITIONS}
    # with this webhook nothing is told, but noted
    settings = load_settings(environment(tmp_path))
    bad = [Finding(f"{condition}/{of}", True, "it broke", NOW) for condition, of in table]
    Alerts(settings).tell(bad)
    served = values(text_of(Metrics(settings)))
    open_ones = {c: served[f'bike_data_flow_open_incidents{{condition="{c}"}}'] for c in CONDITIONS}
    assert open_ones == dict.fromkeys(CONDITIONS, 1) | {"watch": 4}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("The feed is out of reach: no connection at http://127.0.0.1:9/wrm", "feed"),
        ("The server refused: HTTP 500 from http://127.0.0.1:9/wrm", "feed"),
        ("The body is empty: 0 bytes of data from http://127.0.0.1:9/wrm", "feed"),
        ("2 files were refused, see above; all others are in.", "archive"),
        ("LeaseLostError: Another job took the lake over", "lease"),
        ("EndpointConnectionError: Could not connect to the endpoint URL", "storage"),
        ("ClientError: An error occurred (AccessDenied)", "storage"),
        ("PermissionError: [Errno 13] Permission denied", "storage"),
        ("OperationalError: connection to server failed", "postgres"),
        ("DbtError: dbt failed in exports: 1 of 20 nodes.", "dbt"),
        ("KeyError: 'wrm'", "other"),
    ],
)
def test_errors_have_few_kinds(error, kind):
    assert error_kind(error) == kind and kind in (*ERROR_KINDS, "other")


def test_a_textfile_holds_the_gauges_and_keeps_what_this_job_does_not_know(settings):
    write_textfile(settings, ended("transform"), HEALTH)
    first = values(settings.metrics_textfile.read_text())
    assert first['bike_data_flow_coverage_ratio{source="wrm"}'] == 0.93
    assert first['bike_data_flow_last_run_failed{job_name="transform"}'] == 0
    assert [name for name in first if "_age_" in name or "_total" in name or "_created" in name] == []
    later = NOW + timedelta(minutes=1)
    write_textfile(settings, ended("export", "OSError: away", later), None)
    second = values(settings.metrics_textfile.read_text())
    failed = {name: value for name, value in second.items() if "last_run_failed" in name}
    assert failed == {
        f'bike_data_flow_last_run_failed{{job_name="{job}"}}': failed
        for job, failed in {"compact": 0, "export": 1, "transform": 0}.items()
    }
    assert second['bike_data_flow_coverage_ratio{source="wrm"}'] == 0.93
    without = replace(HEALTH.sources[0], coverage_pct=None)
    write_textfile(settings, ended("run"), replace(HEALTH, sources=[without], runs=[]))
    third = values(settings.metrics_textfile.read_text())
    assert 'bike_data_flow_coverage_ratio{source="wrm"}' not in third
    assert {name for name in third if "last_run_failed" in name} == {
        *failed,
        'bike_data_flow_last_run_failed{job_name="run"}',
    }
    assert [path.name for path in settings.metrics_textfile.parent.iterdir()] == ["bike_data_flow.prom"]
    with open(settings.metrics_textfile) as text:
        command = [find_prometheus() / "promtool", "check", "metrics"]
        assert subprocess.run(command, stdin=text, capture_output=True).stderr == b""


def test_a_textfile_of_another_making_is_replaced(settings):
    settings.metrics_textfile.parent.mkdir(parents=True)
    for text in ("no metrics {", 'bike_data_flow_last_run_failed{job="export"} 1\n'):
        settings.metrics_textfile.write_text(text)
        write_textfile(settings, ended("run"), HEALTH)
        written = values(settings.metrics_textfile.read_text())
        assert written['bike_data_flow_last_run_failed{job_name="run"}'] == 0
        assert 'bike_data_flow_last_run_failed{job="export"}' not in written


def test_after_a_run_alerts_and_textfile_know_of_it_and_neither_hurts_it(settings, tmp_path, caplog):
    after_run(settings, ended("export", "OSError: away"), HEALTH)  # nobody listens at the webhook
    written = values(settings.metrics_textfile.read_text())
    assert written['bike_data_flow_last_run_failed{job_name="export"}'] == 1
    incidents = {c: written[f'bike_data_flow_open_incidents{{condition="{c}"}}'] for c in CONDITIONS}
    assert incidents == dict.fromkeys(CONDITIONS, 0) | {"run": 1}
    assert "planted-secret" not in settings.metrics_textfile.read_text() + caplog.text
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    after_run(replace(settings, metrics_textfile=blocked / "x.prom"), ended("export"), None)
    assert "The metrics could not be written: " in caplog.text


def test_after_a_job_an_embedded_postgres_is_asked_and_the_lake_measured_whole(settings):
    def written_after_a_job() -> dict[str, float]:
        with the_only_job(settings, "transform"):
            pass
        return values(settings.metrics_textfile.read_text())

    assert written_after_a_job()["bike_data_flow_warehouse_up"] == 0
    assert not settings.postgres_data_dir.exists()
    with running_postgres(settings):
        pass
    written = written_after_a_job()
    assert written["bike_data_flow_warehouse_up"] == 1
    assert written['bike_data_flow_lake_size_bytes{layer="bronze"}'] > 0  # the record of the first job
    assert not (settings.postgres_data_dir / "postmaster.pid").exists()


def test_without_the_settings_nothing_is_written_after_a_run(tmp_path):
    settings = load_settings({"DATA_DIR": str(tmp_path / "data")})
    after_run(settings, ended("export", "OSError: away"), HEALTH)
    assert list(tmp_path.iterdir()) == []
