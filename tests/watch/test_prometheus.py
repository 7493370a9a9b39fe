"""A real Prometheus and a real Alertmanager evaluate what `drivetrain render prometheus` wrote, and tell the loop."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from drivetrain.backends.metrics import prometheus as files
from drivetrain.definition.loop import Trigger
from drivetrain.engines.rules import fingerprint
from drivetrain.watch import conditions
from drivetrain.watch.samples import Sample, exposition
from tests.backends.metrics import servers
from tests.ports import free_port

TOKEN = "a token that is 23 bytes"


class Place:
    """A target that tells the value of its gauge, and a receiver of webhooks."""

    def __init__(self) -> None:
        self.drift = 0.9
        self.received: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                labels = {"service": "flights", "role": "champion", "feature": "hour"}
                self._answer(
                    exposition([Sample("drivetrain_monitor_drift_significant", labels, place.drift)], {}).encode()
                )

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                place.received.put((self.headers.get("Authorization", ""), body))
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def test_an_alert_fires_reaches_the_webhook_with_its_token_and_is_resolved(place: Place, tmp_path: Path) -> None:
    rule = conditions.trigger_rule(Trigger(name="weather", signal="drift", above=0.5, clear=0.2), "flights")
    (tmp_path / "token").write_text(TOKEN)
    ports = free_port(), free_port()
    written = {
        "rules.yml": files.rule_groups("flights", [rule], 1.0),
        "prometheus.yml": files.prometheus([files.Target("loop", place.url, {})], 2.0, f"127.0.0.1:{ports[1]}"),
        "alertmanager.yml": files.alertmanager("flights", f"{place.url}/alerts", tmp_path / "token", 1.0),
    }
    for name, document in written.items():
        YAML().dump(document, tmp_path / name)
    with (
        servers.alertmanager(tmp_path / "alertmanager.yml", tmp_path / "alertmanager", ports[1]),
        servers.prometheus(tmp_path / "prometheus.yml", tmp_path / "prometheus", ports[0]) as prometheus,
    ):
        authorization, told = place.received.get(timeout=60)
        assert authorization == f"Bearer {TOKEN}"
        assert (told["version"], told["status"]) == ("4", "firing")
        [alert] = told["alerts"]
        labels = {"alertname": "weather", "service": "flights", "signal": "drift", "action": "retrain"}
        assert alert["labels"] == labels
        assert alert["fingerprint"] == fingerprint(labels)
        assert alert["annotations"]["value"] == "0.9"
        place.drift = 0.4  # below its level, but not clear
        assert servers.until(lambda: [state for value, state in prometheus.alerts() if value == 0.4]) == ["firing"]
        place.drift = 0.1
        _, told = place.received.get(timeout=60)
        assert (told["status"], told["alerts"][0]["fingerprint"]) == ("resolved", alert["fingerprint"])
        assert told["alerts"][0]["startsAt"] == alert["startsAt"]
