"""What is watched of a revision, as a project's journal and objects tell it; and a project's own monitor."""

from __future__ import annotations

import json

import numpy as np
import pytest

from drivetrain.backends.serving.gateway.events import head
from drivetrain.backends.serving.gateway.segments import Segments, packed
from drivetrain.engines.watched import watched
from drivetrain.project import open_project
from drivetrain.records import Artifact, DeployOutputs, EvaluateOutputs, Reference, ValidateOutputs, Verdict, encode
from drivetrain.service import capture_directory
from drivetrain.watch.monitor import open_monitor, open_source, posted_directory
from drivetrain.watch.subject import ProjectSubjects, subject
from drivetrain.wiring import project_objects
from tests.watch.monitored import BEGIN, REVISION, SUITE, features, probabilities, traffic, truth

DEFINITION = """
name: delays
data: {source: rows.csv, label: late, timestamp: time}
train: {function: "train.py:train"}
evaluate: {metric: roc_auc, slices: [airline]}
monitoring: {window: 10m, features: [temp, airline], output: probability}
"""


def seen():
    columns = features(1000)
    held_out = features(500, 3)
    p = probabilities(held_out)
    return watched(
        columns,
        [False, True],
        "roc_auc",
        truth(held_out).astype(int),
        np.stack([1 - p, p], 1),
        slices=("airline",),
        until=BEGIN,
    )


@pytest.fixture
def project(tmp_path):
    """A project with one run in its journal that has deployed a revision."""
    (tmp_path / "drivetrain.yaml").write_text(DEFINITION)
    (tmp_path / "train.py").write_text("def train(features, label): ...\n")
    (tmp_path / "rows.csv").write_text("time,late\n")
    opened = open_project(tmp_path)
    objects = project_objects(opened)

    def stored(kind: str, name: str, document) -> Artifact:
        directory = tmp_path / kind
        directory.mkdir()
        (directory / name).write_text(json.dumps(document))
        return objects.put(kind, directory)

    results = {"results": [{"success": True, "expectation_config": entry} for entry in SUITE["expectations"]]}
    deploy = DeployOutputs(Reference("revision", REVISION), Artifact("bundle", "0" * 64, 0))
    outputs = {
        "validate": ValidateOutputs(Verdict(True, ""), stored("validation", "result.json", results)),
        "evaluate": EvaluateOutputs(Verdict(True, ""), stored("evaluation", "reference.json", seen().to_json())),
        "deploy": deploy,
    }
    journal = opened.journal
    journal.start_run("run-1", "delays", {}, 1, BEGIN)
    for stage, record in outputs.items():
        attempt = journal.start_attempt("run-1", stage, "key", BEGIN)
        journal.end_attempt("run-1", stage, attempt, "done", BEGIN, outputs=encode(record))
    return opened


def test_a_revision_is_watched_with_the_reference_and_the_checks_of_its_own_run(project):
    found = ProjectSubjects(project).find(REVISION)
    assert (found.revision, found.run_id, found.until) == (REVISION, "run-1", BEGIN)
    assert list(found.watched.features) == ["temp", "hour", "airline"]
    assert set(found.watched.reference.features) == {"temp", "airline", "prediction"}
    assert len(found.checks.checks) == 3
    assert (
        found.watched
        == subject(REVISION, "run-1", seen(), found.checks, BEGIN, only=frozenset(["temp", "airline"])).watched
    )


def test_a_revision_that_was_not_deployed_here_is_looked_for_again(project):
    subjects = ProjectSubjects(project)
    assert subjects.find("delays-9-99999999") is None
    outputs = DeployOutputs(Reference("revision", "delays-9-99999999"), Artifact("bundle", "0" * 64, 0))
    attempt = project.journal.start_attempt("run-1", "deploy", "other", BEGIN)
    project.journal.end_attempt("run-1", "deploy", attempt, "done", BEGIN, outputs=encode(outputs))
    assert subjects.find("delays-9-99999999") is None
    subjects.look_again()
    assert subjects.find("delays-9-99999999").run_id == "run-1"


def test_a_report_without_a_reference_cannot_be_watched_and_says_so(project, caplog):
    (project.root / "old").mkdir()
    (project.root / "old" / "evaluation.json").write_text("{}")
    report = project_objects(project).put("evaluation", project.root / "old")
    attempt = project.journal.start_attempt("run-1", "evaluate", "key", BEGIN)
    project.journal.end_attempt(
        "run-1", "evaluate", attempt, "done", BEGIN, outputs=encode(EvaluateOutputs(Verdict(True, ""), report))
    )
    assert ProjectSubjects(project).find(REVISION) is None
    assert f"{REVISION} cannot be watched" in caplog.text


def test_the_projects_monitor_reads_what_was_captured_and_what_was_posted(project):
    events = traffic(300)
    for place, directory in enumerate((capture_directory(project.state, "delays"), posted_directory(project))):
        segments = Segments(directory, segment=1 << 20, keep=1 << 24, sync="never")
        segments.append([packed(head(event), event.body) for event in events[place::2]])
        segments.close()
    # Requests are in one log and their answers in the other.
    with open_monitor(project) as monitor:
        assert monitor.catch_up(open_source(project), BEGIN + 10_000).events == 600
        (report,) = monitor.history()
        assert report.rows == 300
        assert {moved.feature for moved in report.drift} == {"temp", "airline", "prediction"}
        names = {sample.name for sample in monitor.samples(BEGIN + 10_000, REVISION)}
    assert "drivetrain_monitor_drift" in names
    assert (project.state / "monitor" / "delays.db").is_file()
    with open_monitor(project) as monitor:
        assert monitor.catch_up(open_source(project), BEGIN + 10_000).events == 0
        assert monitor.history() == [report]
