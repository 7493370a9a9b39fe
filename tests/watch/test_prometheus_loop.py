"""The whole loop with Debian's Prometheus and Alertmanager in it: a real service is scraped, an alert starts a retraining, and every
query of the dashboards finds data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drivetrain import wiring
from drivetrain.backends.runner.local import is_held
from drivetrain.engines.rules import fingerprint
from drivetrain.journal import Journal
from tests.backends.metrics import servers
from tests.backends.metrics.servers import until
from tests.ports import free_port

pytestmark = pytest.mark.slow

DEFINITION = """\
name: orders
data: {{source: orders.csv, label: returned}}
train: {{function: "train.py:train"}}
evaluate: {{metric: roc_auc, minimum: 0.6, slices: [kind]}}
serving: {{port: 0, runner: "run.py:Runner"}}
monitoring: {{window: 2s, late: 1s, least_labels: 20}}
loop: {{evaluator: prometheus, port: {port}, every: 1s}}
triggers:
  - {{name: prices, signal: drift, above: 0.2, clear: 0.1}}
  - {{name: slow, signal: latency, above: 10s, action: notify}}
  - {{name: nightly, signal: schedule, cron: "0 4 * * *", action: notify}}
"""
TRAIN = """\
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder


def train(features, label):
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["kind"]), remainder="passthrough")
    return make_pipeline(columns, LogisticRegression()).fit(features, label)
"""
RUNNER = """\
from pathlib import Path

import cloudpickle
import pandas as pd
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.model = cloudpickle.loads((Path(__file__).parent / "model" / "model.pkl").read_bytes())

    def run(self, price: float, kind: str) -> dict:
        rows = pd.DataFrame({"price": [price], "kind": [kind]})
        return {"probability": float(self.model.predict_proba(rows)[0, 1])}
"""


def orders(rows: int, seed: int, dearer: float = 0.0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    price, kind = random.normal(50 + dearer, 10, rows), random.choice(["book", "shoe"], rows)
    returned = (price + 10 * (kind == "shoe") + random.normal(0, 10, rows) > 55 + dearer).astype(int)
    return pd.DataFrame({"price": price.round(2), "kind": kind, "returned": returned})


@dataclass(frozen=True)
class Watched:
    project: Path
    prometheus: servers.Prometheus
    alertmanager: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, drivetrain: Callable[..., Any]) -> Iterator[Watched]:
    """A service that is watched, and asked for dearer things than it was trained on; Prometheus and Alertmanager as rendered."""
    project = tmp_path_factory.mktemp("orders")
    ports = [free_port() for _ in range(3)]
    (project / "drivetrain.yaml").write_text(DEFINITION.format(port=ports[0]))
    (project / "train.py").write_text(TRAIN)
    (project / "run.py").write_text(RUNNER)
    orders(600, 1).to_csv(project / "orders.csv", index=False)
    ran = drivetrain("run", "--json", directory=project)
    assert ran.returncode == 0, ran.stderr
    rendered = drivetrain("render", "prometheus", "--alertmanager", f"127.0.0.1:{ports[1]}", directory=project)
    assert rendered.returncode == 0, rendered.stderr
    out = project / "out"
    with (project / "watch.log").open("wb") as log:
        watching = subprocess.Popen(
            [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "watch", "--json"],
            cwd=project, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with (
            servers.alertmanager(out / "alertmanager.yml", project / "alertmanager", ports[1]) as alertmanager,
            servers.prometheus(out / "prometheus.yml", project / "prometheus", ports[2]) as prometheus,
        ):
            endpoint = wiring.serving(project / ".drivetrain").find("orders")
            assert endpoint is not None
            ask(endpoint.url, project)
            yield Watched(project, prometheus, alertmanager)
    finally:
        watching.send_signal(signal.SIGTERM)
        watching.wait()
        # A retraining that was begun goes on by itself, and would bring its revision up after the service has ended.
        until(lambda: not is_held(project / ".drivetrain"), 120)
        drivetrain("deploy", "--stop", directory=project)


def ask(url: str, project: Path) -> None:
    """Asks three times with so many rows that drift can be told, and tells what was true; each time in a window of its own, so that
    the first two are closed."""
    token = (project / ".drivetrain" / "serving" / "orders.token").read_text()
    for part in range(3):
        rows = orders(200, 2 + part, dearer=40)
        instances = rows[["price", "kind"]].to_dict("records")
        name = f"orders-{part}"
        servers.post(f"{url}/v1/models/orders:predict", {"instances": instances}, {"X-Request-Id": name})
        told = {"id": name, "label": rows["returned"].tolist()}
        servers.post(f"{url}/feedback", told, {"Authorization": f"Bearer {token}"})
        began = time.time() // 2
        until(lambda began=began: time.time() // 2 > began, what="the next window")


def test_an_alert_of_a_real_prometheus_starts_one_retraining(watched: Watched) -> None:
    journal = Journal(watched.project / ".drivetrain" / "journal.db")
    [decision] = until(lambda: [row for row in journal.decisions(100) if row.run_id], within=90, what="a decision")
    assert (decision.trigger, decision.action) == ("prices", "retrain")
    assert float(str(decision.numbers["value"])) > 0.2
    until(lambda: any(run.id == decision.run_id for run in journal.runs(10)), within=60, what="its run")
    labels = {"alertname": "prices", "service": "orders", "signal": "drift", "action": "retrain"}
    known = servers.get(f"{watched.alertmanager}/api/v2/alerts")
    assert fingerprint(labels) in {alert["fingerprint"] for alert in known if alert["labels"] == labels}
    # Alertmanager tells it again and again; a retraining it remains.
    assert len([row for row in journal.decisions(100) if row.run_id]) == 1


def test_every_query_of_the_dashboards_finds_data(watched: Watched, drivetrain: Callable[..., Any]) -> None:
    assert drivetrain("render", "grafana", directory=watched.project).returncode == 0
    queries = [
        (file.name, panel["title"], target["expr"])
        for file in sorted((watched.project / "out").glob("*.json"))
        for panel in json.loads(file.read_text())["panels"]
        for target in panel["targets"]
    ]
    assert len(queries) > 30
    missing: list[Any] = []

    def all_found() -> bool:
        missing[:] = [query for query in queries if not watched.prometheus.query(query[2])]
        return not missing

    try:
        until(all_found, within=60, what="data")
    except AssertionError:
        pytest.fail(f"no data for {missing}")
