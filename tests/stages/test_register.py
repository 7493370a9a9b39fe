"""Register: one version a tracked run, carrying all digests."""

from __future__ import annotations

import pytest

from drivetrain.errors import StageError
from drivetrain.records import Artifact, Reference, Verdict
from drivetrain.stages import register


@pytest.fixture
def inputs(lab, tracker, tmp_path):
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    rows = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]})
    with tracker.train("delays", "run", {}, {}) as run:
        model = LogisticRegression().fit(rows, [0, 0, 1, 1])
        run.save_model(model, rows, tmp_path / "model", labels=[0, 1], code={})
    made = {
        kind: Artifact(kind, letter * 64, 1, {"value": 0.75} if kind == "report" else {})
        for letter, kind in zip(
            "123456", ("snapshot", "definitions", "frame", "validation", "model", "report"), strict=True
        )
    }
    return register.Inputs(tracked=Reference("mlflow_run", run.id), passed=Verdict(True, "roc_auc 0.75"), **made)


def test_the_version_is_the_challenger_and_carries_every_digest_it_was_made_from(lab, tracker, inputs):
    outputs = register.run(lab.context(), inputs, tracking=tracker)
    found = tracker.version("delays", "challenger")
    assert outputs.version.kind == "model_version"
    assert outputs.version.id == f"delays/{found.version}"
    assert outputs.version.detail == {"name": "delays", "version": found.version, "run_id": inputs.tracked.id}
    assert {name.removeprefix("drivetrain."): value for name, value in found.tags.items()} == {
        "run": "20130101-run", "definition": "d" * 64, "code": "c" * 64, "lock": "e" * 64, "commit": "abc123",
        "snapshot": "1" * 64, "definitions": "2" * 64, "frame": "3" * 64, "validation": "4" * 64, "model": "5" * 64,
        "report": "6" * 64, "metric.roc_auc": "0.75",
    }  # fmt: skip


def test_registering_again_gives_the_same_version(lab, tracker, inputs):
    first = register.run(lab.context(), inputs, tracking=tracker)
    assert register.run(lab.context(), inputs, tracking=tracker) == first


def test_a_model_that_the_gate_refused_is_not_registered(lab, tracker, inputs):
    from dataclasses import replace

    with pytest.raises(StageError, match="the gate refused"):
        register.run(lab.context(), replace(inputs, passed=Verdict(False, "too weak", 3)), tracking=tracker)
