"""The report: the page holds what is known, says what is not, and nothing that a name holds becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from drivetrain import champion
from drivetrain.backends.checks import CheckLine, CheckResult
from drivetrain.backends.checks.result import to_bytes
from drivetrain.backends.serving.gateway.events import head
from drivetrain.backends.serving.gateway.segments import Segments, packed
from drivetrain.champion import Champion
from drivetrain.cli.main import cli
from drivetrain.engines.watched import watched
from drivetrain.errors import UsageError
from drivetrain.journal import Decision
from drivetrain.project import Project, open_project
from drivetrain.records import (
    Artifact,
    DeployOutputs,
    EvaluateOutputs,
    Reference,
    RegisterOutputs,
    ValidateOutputs,
    Verdict,
    encode,
)  # fmt: skip
from drivetrain.service import capture_directory
from drivetrain.watch import report
from drivetrain.watch.monitor import open_monitor, open_source
from drivetrain.watch.report_found import find, interval, moment, number, percent, span
from drivetrain.watch.report_service import latency
from drivetrain.wiring import project_objects
from tests.watch.monitored import (
    BEGIN,
    REVISION,
    SUITE,
    WINDOW,
    answered,
    asked,
    features,
    probabilities,
    traffic,
    truth,
)
from tests.watch.test_rollout import CANDIDATE, World, carried_out

HOSTILE = "<script>alert('x')</script>&$x^{"
NOW = BEGIN + 86_400.0
DEFINITION = """
name: delays
data: {source: rows.csv, label: late, timestamp: time}
train: {function: "train.py:train"}
evaluate: {metric: roc_auc, slices: [airline]}
monitoring: {window: 10m, late: 1m, least_labels: 20, output: probability}
"""
EVALUATION = {
    "task": "classification", "classes": [False, True],
    "metric": {"name": "roc_auc", "greater_is_better": True, "minimum": 0.7, "value": 0.7654321, "low": 0.741, "high": 0.789},
    "metrics": {"roc_auc": 0.7654321, "f1": 0.4321, "log_loss": None},
    "champion": {"model": "m", "compared": True, "value": 0.7511, "tolerance": 0.0,
                 "gain": {"value": 0.0143, "low": 0.001, "high": 0.027}},
    "holdout": {"rows": 500, "training_rows": 1000, "embargoed_rows": 12, "first": "2013-03-01T00:00:00+00:00",
                "last": "2013-03-31T00:00:00+00:00"},
    "slices": [
        {"column": "airline", "value": "AA", "rows": 170, "metric": 0.7321, "few_rows": False},
        {"column": HOSTILE, "value": None, "rows": 7, "metric": None, "few_rows": True},
    ],
    "resamples": 100, "passed": True, "reason": "fine",
}  # fmt: skip


class Page(HTMLParser):
    """Reads a page; `text` is what is seen of it, `tags` are its elements. Raises `AssertionError` if tags do not match."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)


Stored = Callable[[str, dict[str, bytes]], Artifact]


def seen() -> Any:
    columns = features(1000)
    columns[HOSTILE] = columns["hour"]
    held_out = features(500, 3)
    p = probabilities(held_out)
    y = truth(held_out).astype(int)
    return watched(columns, [False, True], "roc_auc", y, np.stack([1 - p, p], 1), slices=("airline",), until=BEGIN)


def checked() -> bytes:
    lines = [
        CheckLine("between -30 and 125", "temp", True, "all 1,000", 0, 0.0),
        CheckLine(f"in {HOSTILE}", HOSTILE, False, "17 of 1,000 not in the set", 17, 1.7),
    ]
    results = [{"success": True, "expectation_config": entry} for entry in SUITE["expectations"]]
    return to_bytes(CheckResult(False, lines, (), {"results": results}))


def predictions(directory: Path) -> bytes:
    held_out = features(500, 3)
    columns = {
        "label": truth(held_out),
        "prediction": probabilities(held_out) >= 0.5,
        "probability": probabilities(held_out),
    }
    pq.write_table(pa.table(columns), directory / "predictions.parquet")
    return (directory / "predictions.parquet").read_bytes()


def a_run(project: Project, run_id: str, revision: str | None, **outputs: Any) -> None:
    journal = project.journal
    journal.start_run(run_id, "delays", {"code": "c0de" * 16, "param.train.depth": HOSTILE}, 1, BEGIN - 900)
    if revision is not None:
        outputs["register"] = RegisterOutputs(Reference("version", f"delays/{revision.split('-')[1]}"))
        outputs["deploy"] = DeployOutputs(Reference("revision", revision), Artifact("bundle", "b" * 64, 0))
    for stage, record in outputs.items():
        attempt = journal.start_attempt(run_id, stage, "key", BEGIN - 900)
        journal.end_attempt(run_id, stage, attempt, "done", BEGIN - 880, outputs=encode(record))
    journal.end_run(run_id, "done", 0, BEGIN - 870)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One revision that has answered for two windows and was decided about, one that was rolled out, and a run that made nothing."""
    root = tmp_path_factory.mktemp("delays")
    (root / "drivetrain.yaml").write_text(DEFINITION)
    (root / "train.py").write_text("def train(features, label): ...\n")
    (root / "rows.csv").write_text("time,late\n")
    opened = open_project(root)
    objects = project_objects(opened)

    def stored(kind: str, files: dict[str, bytes]) -> Artifact:
        directory = root / kind
        directory.mkdir()
        for name, data in files.items():
            (directory / name).write_bytes(data)
        return objects.put(kind, directory)

    judged = stored("evaluation", {
        "reference.json": json.dumps(seen().to_json()).encode(), "evaluation.json": json.dumps(EVALUATION).encode(),
        "predictions.parquet": predictions(root),
    })  # fmt: skip
    a_run(
        opened, "run-1", REVISION,
        validate=ValidateOutputs(Verdict(False, f"1 of 2 failed: {HOSTILE}"), stored("validation", {"result.json": checked()})),
        evaluate=EvaluateOutputs(Verdict(True, "roc_auc 0.7654 meets the minimum 0.7"), judged),
    )  # fmt: skip
    champion.write(objects, Champion(Artifact("model", "m" * 64, 1), Reference("version", "delays/1"), "run-1", None))
    a_run(opened, "run-2", CANDIDATE)
    a_run(opened, "run-3", None)
    serve(opened)
    decide(opened)
    return opened


def serve(opened: Project) -> None:
    events = [*traffic(400, delay=60.0), *traffic(400, BEGIN + WINDOW, warmer=15.0, prefix="w", delay=30.0)]
    events += [asked("f", BEGIN + 5, {"temp": 400.0}), answered("f", BEGIN + 5, b"{}", status=503)]
    events += [asked("r", BEGIN + 6, {"temp": "x"}), answered("r", BEGIN + 6, b"{}", status=422)]
    segments = Segments(capture_directory(opened.state, "delays"), segment=1 << 20, keep=1 << 24, sync="never")
    segments.append([packed(head(event), event.body) for event in sorted(events, key=lambda event: event.at)])
    segments.close()
    with open_monitor(opened) as monitor:
        monitor.catch_up(open_source(opened), NOW)
    carried_out(World(opened.journal))


def decide(opened: Project) -> None:
    for name, at, revision, reason in (
        ("mine", BEGIN + 600, None, f"drift of {HOSTILE} is 0.4321, above 0.25"),
        ("other", BEGIN - 86_400, "delays-9-99999999", "long before"),
    ):
        numbers = {"signal": "drift", "value": 0.43211, "threshold": 0.25, "since": BEGIN + 300}
        decided = Decision(name, at, "warmth", "retrain", "training", reason, numbers, None, revision, at)
        opened.journal.open_decision(decided)


@pytest.fixture(scope="module")
def html(project: Project) -> str:
    return report.page(project, REVISION, NOW)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# what stands on it


def test_the_page_says_what_it_is_and_of_what_it_was_made(page: Page) -> None:
    assert f"{REVISION} champion" in page.text
    for fact in (
        "run-1",
        "delays/1",
        "c0de" * 16,
        "b" * 64,
        "train.depth",
        "Written by drivetrain report, 2013-04-02 00:00 UTC",
    ):
        assert fact in page.text


def test_checks_metric_and_slices_stand_there_with_their_numbers(page: Page) -> None:
    assert "passed temp between -30 and 125 all 1,000" in page.text
    assert "17 of 1,000 not in the set" in page.text
    assert "1 of 2 hold on the training rows" in page.text
    assert "0.7654, 95 % interval 0.741 to 0.789 (higher is better)" in page.text
    assert "0.7511; gain 0.0143, 95 % interval 0.001 to 0.027" in page.text
    assert "500 rows, 2013-03-01 00:00 to 2013-03-31 00:00 UTC" in page.text
    assert re.search(r"airline AA 170 0\.7321 0\.\d+ 0\.\d+ to 0\.\d+", page.text), "a slice, beside what it is live"
    assert "7 (few) -" in page.text


def test_live_windows_give_drift_quality_data_quality_and_service_in_numbers_and_pictures(
    project: Project, page: Page, html: str
) -> None:
    with open_monitor(project) as monitor:
        first, second = monitor.history(revision=REVISION)
    moved = {one.feature: one for one in second.drift if one.distance == "psi"}
    assert moved["temp"].significant
    assert f"temp {number(moved['temp'].value)} {number(moved['temp'].critical)}" in page.text
    assert f"roc_auc is {number(second.quality.value)} in the newest window with labels" in page.text
    assert f"Estimated, not measured: {number(second.estimate.value)}" in page.text
    assert first.passing is not None
    assert first.outcomes["failed"] == 1
    assert "Of 802 answers in the gateway's log" in page.text
    assert "half took at most 10 ms and 99 % at most 10 ms; 1 failed and 1 were refused" in page.text
    shown = [attributes["aria-label"] for tag, attributes in page.tags if tag == "figure"]
    for wanted in (
        "roc on the hold-out", "calibration on the hold-out", "confusion on the hold-out", "psi of 5 features over 2 windows",
        "bins of temp, live and as trained on", "psi of temp over time", "psi of prediction over time",
        "roc_auc over time, measured and estimated", "share of rows that meet every check over time",
        "median and 99th percentile of the answers' time",
    ):  # fmt: skip
        assert wanted in shown
    assert html.count("<svg") == len(shown)
    assert "estimate, before labels" in page.text
    assert "critical level" in page.text


def test_what_was_decided_while_it_answered_stands_there_and_nothing_else(page: Page) -> None:
    assert "warmth: retrain training drift of" in page.text
    assert "value 0.4321, threshold 0.25, since 2013-04-01 00:05" in page.text
    assert "long before" not in page.text


def test_a_rollout_has_its_curves_its_numbers_and_how_it_ended(project: Project) -> None:
    page = Page(report.page(project, CANDIDATE, NOW))
    assert "Rollout promoted no worse over" in page.text
    assert "share of failed answers 0 0" in page.text
    shown = [attributes["aria-label"] for tag, attributes in page.tags if tag == "figure"]
    assert shown[0] == "the candidate's share of the traffic"
    assert "Failed answers, %, candidate and champion" in shown
    assert "not the champion" in page.text


# what is not known


def test_each_part_of_which_nothing_is_known_says_so_in_a_sentence(project: Project) -> None:
    page = Page(report.page(project, CANDIDATE, NOW))
    for sentence in (
        "The training rows were not checked in this run.", "No model was judged in this run.", "No window of live traffic is closed yet.",
        "The gateway's log holds no answer of this revision",
    ):  # fmt: skip
        assert sentence in page.text


def test_a_run_that_deployed_nothing_has_a_page_as_well(project: Project) -> None:
    page = Page(report.page(project, "run-3", NOW))
    assert "delays, run run-3" in page.text
    assert "This run deployed nothing" in page.text
    assert "No stage has begun." in page.text
    assert "The loop has decided nothing about it." in page.text


def test_files_that_are_gone_are_told(project: Project) -> None:
    gone = Artifact("gone", "f" * 64, 1)
    a_run(
        project, "run-4", None, validate=ValidateOutputs(Verdict(True, "held"), gone), evaluate=EvaluateOutputs(Verdict(True, "good"), gone)
    )  # fmt: skip
    page = Page(report.page(project, "run-4", NOW))
    assert "passed held Its files are not kept any more." in page.text
    assert "accepted good Its files are not kept any more." in page.text


def test_what_is_neither_run_nor_revision_nor_version_is_refused(project: Project) -> None:
    with pytest.raises(UsageError, match="nothing is no run, revision or model version"):
        report.page(project, "nothing", NOW)


def test_a_version_and_nothing_at_all_lead_to_the_champion(project: Project) -> None:
    for subject in ("1", "delays/1", None):
        found = find(project, subject)
        assert (found.run.id, found.revision, found.leads) == ("run-1", REVISION, True)
    assert not find(project, CANDIDATE).leads


def test_the_same_is_written_the_same(project: Project) -> None:
    assert report.page(project, CANDIDATE, NOW) == report.page(project, CANDIDATE, NOW)


# one safe file


def test_a_name_that_is_markup_stays_a_name(page: Page, html: str) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    # In facts, checks, slices, drift, pictures and decisions.
    assert page.text.count("<script>alert('x')</script>") >= 8
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing(page: Page, html: str) -> None:
    assert "://" not in html
    assert "@import" not in html
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "script", "iframe", "object"})
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:"))


def test_no_two_elements_of_the_pictures_that_are_referred_to_share_an_id(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        if str(attributes.get("xlink:href") or "").startswith("#"):
            assert str(attributes["xlink:href"])[1:] in ids


def test_the_command_writes_the_page(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "report.html"
    done = CliRunner().invoke(cli, ["-C", str(project.root), "report", "run-3", "-o", str(file)])
    assert done.exit_code == 0, done.output
    assert "delays, run run-3" in Page(file.read_text(encoding="utf-8")).text


# numbers


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (number(0.123456), "0.1235"), (number(12_345), "12,345"), (number(None), "-"), (number(True), "True"), (number("x"), "x"),
        (percent(0.0), "0 %"), (percent(0.1234), "12.3 %"), (percent(0.00012), "0.012 %"), (percent(0.99988), "99.988 %"),
        (percent(1.0), "100 %"), (span(0.0123), "12.3 ms"), (span(2.5), "2.5 s"), (moment(None), ""), (interval(None, 1.0), ""),
    ],
)  # fmt: skip
def test_numbers_are_written_so_that_they_can_be_read(found: str, wanted: str) -> None:
    assert found == wanted


def test_of_a_long_log_the_newest_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert latency(tmp_path, REVISION) is None
    segments = Segments(tmp_path, segment=4096, keep=1 << 20, sync="never")
    for place in range(100):
        event = answered(str(place), BEGIN + place, 0.5)
        segments.append([packed(head(event), event.body)])
    segments.close()
    whole = latency(tmp_path, REVISION)
    assert whole is not None
    assert (whole.answers, whole.start, whole.end, len(whole.at)) == (100, BEGIN, BEGIN + 99, 3)
    monkeypatch.setattr("drivetrain.watch.report_service.MOST_BYTES", 9000)
    part = latency(tmp_path, REVISION)
    assert part is not None
    assert (part.end, part.answers) == (BEGIN + 99, 99 - int(part.start - BEGIN) + 1)
    assert 5 < part.answers < 60
