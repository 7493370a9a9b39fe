"""What the loop tells of itself."""

from __future__ import annotations

import re
from pathlib import Path

from drivetrain.engines.rules import Alert
from drivetrain.journal import Decision
from drivetrain.watch import loop
from drivetrain.watch.loop_metrics import METRICS, loop_samples


def decision(number: int, state: str) -> Decision:
    return Decision(str(number), 0.0, "weather", "retrain", state, "", {}, None, None, 0.0)


def test_triggers_fire_or_not_and_decisions_are_counted_by_state() -> None:
    alerts = [Alert("weather", "f", "firing", 0.0, 0.0, 1.0), Alert("slow", "g", "pending", 0.0, 0.0, 1.0)]
    decisions = [decision(1, "promoted"), decision(2, "promoted"), decision(3, "training")]
    found = loop_samples("flights", ["weather", "slow"], alerts, decisions, 25, {"availability": 0.5}, 17.0)
    assert [sample.value for sample in found] == [1.0, 0.0, 2.0, 1.0, 25.0, 0.5, 17.0]
    assert found[2].labels == {"service": "flights", "trigger": "weather", "action": "retrain", "state": "promoted"}
    for sample in found:
        assert set(sample.labels) == {"service", *METRICS[sample.name].labels}


def test_the_documentation_lists_every_metric_with_its_kind_and_labels_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(drivetrain_(?:monitor|loop)_\w+)` \| (\w+) \| (.*?) \|", text, re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == {name: (about.kind, about.labels) for name, about in loop.METRICS.items()}
