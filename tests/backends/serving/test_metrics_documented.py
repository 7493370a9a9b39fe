"""`docs/metrics.md` lists what `/metrics` of a service gives: every metric with its type and its labels, and no other."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from drivetrain.backends.serving.gateway.settings import Capturing, LookingUp
from drivetrain.backends.serving.replica.metrics import Metrics
from tests.backends.serving.gateways import running, wait_until

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
Found = dict[str, tuple[str, set[str]]]
"""Metric -> its type and its labels."""
GPU = {"gpu_memory_used_bytes": {"0": 1.0}, "gpu_memory_total_bytes": {"0": 2.0}}


def documented() -> Found:
    rows = re.findall(
        r"^\| `(drivetrain_(?:gateway|replica)_\w+)` \| (\w+) \| (.*?) \|", DOCS.read_text(), re.MULTILINE
    )
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def exposed(text: str, added: set[str]) -> Found:
    found: Found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"} - added
        found[name] = (family.type, labels)
    return found


def test_every_metric_is_documented_and_every_documented_one_is_there(
    tmp_path: Path, bundle: Callable[[str], Path]
) -> None:
    lookup = LookingUp("tests.backends.serving.test_gateway_seen:Features", {"base": 1})
    capturing = Capturing(directory=str(tmp_path / "log"))
    with running(tmp_path / "home", lookup=lookup, capturing=capturing) as gateway:
        gateway.serve("one", bundle("echo"))
        assert gateway.predict(carrier=1, x=2).status in (200, 422)
        wait_until(lambda: "drivetrain_replica_ready" in gateway.request("GET", "/metrics").body.decode())
        text = gateway.request("GET", "/metrics").body.decode()
    own = "\n".join(line for line in text.splitlines() if "drivetrain_gateway_" in line) + "\n"
    replica = "\n".join(line for line in text.splitlines() if "drivetrain_replica_" in line) + "\n"
    # No machine that runs this has to have a GPU.
    gpu = Metrics("echo", lambda: GPU, deque()).render().decode()
    found = exposed(own, set()) | exposed(gpu, {"model_name"}) | exposed(replica, {"model_name", "revision", "replica"})
    assert found == documented()
