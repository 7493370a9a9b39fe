"""`drivetrain render prometheus` and `render grafana`: files that Prometheus, Alertmanager and the operator take as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

Command = Callable[..., subprocess.CompletedProcess[str]]
CRD = Path(__file__).parents[1] / "backends" / "metrics" / "data" / "prometheusrules.crd.yaml"
DEFINITION = """\
name: wine
data: {source: rows.csv, label: target}
train: {function: "train.py:train"}
evaluate: {metric: accuracy}
serving: {port: 5000, slo: {latency: 50ms}}
loop: {port: 5100, every: 15s}
triggers:
  - {name: drifted, signal: drift, above: 0.2, clear: 0.1, hold: 1h}
  - {name: slow, signal: latency, above: 50ms, window: 90s, hold: 90s, action: rollback}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "drivetrain.yaml").write_text(DEFINITION)
    (tmp_path / "rows.csv").write_text("a,target\n1,0\n")
    (tmp_path / "train.py").write_text("def train(features, label): ...\n")
    return tmp_path


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def checked(*command: str) -> None:
    if shutil.which(command[0]) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{command[0]} is not installed")
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_what_is_rendered_is_what_prometheus_and_alertmanager_take(drivetrain: Command, project: Path) -> None:
    found = drivetrain("render", "prometheus", "-o", "made", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    made = project / "made"
    assert [Path(file).name for file in json.loads(found.stdout)["files"]] == [
        "rules.yml", "prometheus.yml", "alertmanager.yml", "prometheusrule.yaml",
    ]  # fmt: skip
    checked("promtool", "check", "config", str(made / "prometheus.yml"))
    checked("amtool", "check-config", str(made / "alertmanager.yml"))
    [group] = read(made / "rules.yml")["groups"]
    assert group["interval"] == "15s"
    assert {rule["alert"]: rule.get("for") for rule in group["rules"]} | {"drifted": "1h", "slow": "90s"} == {
        rule["alert"]: rule.get("for") for rule in group["rules"]
    }
    assert [config["static_configs"][0] for config in read(made / "prometheus.yml")["scrape_configs"]] == [
        {"targets": ["127.0.0.1:5000"], "labels": {"service": "wine"}}, {"targets": ["127.0.0.1:5100"]},
    ]  # fmt: skip
    [hook] = read(made / "alertmanager.yml")["receivers"][1]["webhook_configs"]
    assert hook["url"] == "http://127.0.0.1:5100/alerts"
    token = Path(hook["http_config"]["authorization"]["credentials_file"])
    assert token.stat().st_mode & 0o077 == 0
    assert token.read_text() not in "".join(file.read_text() for file in made.iterdir())


def test_the_operators_manifest_has_the_same_rules_and_fits_its_schema(drivetrain: Command, project: Path) -> None:
    assert drivetrain("render", "prometheus", directory=project).returncode == 0
    manifest = read(project / "out" / "prometheusrule.yaml")
    schema = read(CRD)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator(schema).validate(manifest)
    assert manifest["spec"] == read(project / "out" / "rules.yml")


def test_a_name_with_quotes_stays_one_name(drivetrain: Command, project: Path) -> None:
    from drivetrain.backends.metrics.prometheus import rule_groups
    from drivetrain.engines.expressions import Compare, Select
    from drivetrain.engines.rules import Rule

    rule = Rule('a "b" \\ {{ c', Compare(Select("level"), ">", 1), clear=0.5, annotations={"summary": "x"})
    YAML().dump(rule_groups("wine", [rule], 30.0), project / "rules.yml")
    checked("promtool", "check", "rules", str(project / "rules.yml"))


def test_addresses_can_be_given_and_have_to_be_where_ports_are_free(drivetrain: Command, project: Path) -> None:
    path = project / "drivetrain.yaml"
    path.write_text(path.read_text().replace("port: 5000", "port: 0").replace("port: 5100", "port: 0"))
    for given, missing in (([], "loop.port"), (["--door", "http://door:1"], "serving.port")):
        found = drivetrain("render", "prometheus", *given, directory=project)
        assert found.returncode == 2
        assert f"{missing} is 0" in found.stderr
    given = ["--door", "http://door:1", "--gateway", "https://wine.example", "--alertmanager", "alerts:9093"]
    assert drivetrain("render", "prometheus", *given, directory=project).returncode == 0
    made = read(project / "out" / "prometheus.yml")
    assert [(one["scheme"], one["static_configs"][0]["targets"]) for one in made["scrape_configs"]] == [
        ("https", ["wine.example"]), ("http", ["door:1"]),
    ]  # fmt: skip
    assert made["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alerts:9093"]


def test_the_dashboards_are_four_and_each_panel_has_a_query_and_a_place(drivetrain: Command, project: Path) -> None:
    found = drivetrain("render", "grafana", "-o", "made", directory=project)
    assert found.returncode == 0, found.stderr
    files = sorted(file.name for file in (project / "made").iterdir())
    assert files == ["wine-drift.json", "wine-loop.json", "wine-quality.json", "wine-service.json"]
    for file in files:
        dashboard = json.loads((project / "made" / file).read_text())
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
        assert len(set(places)) == len(places)
        assert all(panel["targets"] and panel["targets"][0]["expr"] for panel in dashboard["panels"])
    loop = json.loads((project / "made" / "wine-loop.json").read_text())
    lines = {panel["title"]: panel["fieldConfig"]["defaults"].get("thresholds") for panel in loop["panels"]}
    assert lines["drifted"]["steps"][1] == {"value": 0.2, "color": "red"}
