"""What nobody should send: each such event is counted once, and nothing that is kept grows with it."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from drivetrain.watch import arrivals, labels
from drivetrain.watch import monitor as monitor_module
from drivetrain.watch.monitor import Monitor
from drivetrain.watch.payloads import LARGEST
from tests.watch.monitored import (
    BEGIN,
    LATE,
    NO_LABELS,
    REVISION,
    WINDOW,
    Events,
    a_monitor,
    answered,
    asked,
    told,
    traffic,
)

END = BEGIN + 10 * WINDOW
ROW = {"temp": 60.0, "hour": 3.0, "airline": "DL"}


@pytest.fixture
def monitor(tmp_path):
    with a_monitor(tmp_path) as found:
        yield found


def counters(monitor: Monitor) -> dict[tuple[str, str], int]:
    return {key: count for key, count in monitor._store.counters().items() if count}


def pairs(bodies, output=None):
    found = []
    for number, body in enumerate(bodies):
        at = BEGIN + 0.001 * number
        answer = {"probability": 0.5} if output is None else output
        found += [asked(f"p{number}", at, body), answered(f"p{number}", at, answer)]
    return found


def state_size(monitor: Monitor) -> int:
    (entry,) = monitor._store.windows()
    return len(entry[2])


def test_numbers_that_are_none_or_beyond_all_bounds_are_missing_or_unseen(monitor):
    raw = [b'{"input":{"temp":%b,"hour":3,"airline":"DL"}}' % value for value in (
        b"1e308", b"-1e308", b"1e400", b"NaN", b"Infinity", b'"NaN"', b"1e-320", b"9" * 400,
    )]  # fmt: skip
    monitor.catch_up(Events(pairs(raw) + traffic(200, BEGIN + 10)), END)
    (report,) = monitor.history()
    assert report.outcomes["answered"] + report.outcomes["unreadable"] == 208
    assert counters(monitor)["request", "taken"] == report.outcomes["answered"]
    assert all(np.isfinite(moved.value) for moved in report.drift)
    assert report.passing is not None


def test_predictions_beyond_all_bounds_are_no_predictions(monitor):
    raw = [
        b'{"output":{"probability":%b},"status":"succeeded"}' % value
        for value in (b"1e308", b"1e400", b'"x"', b"null", b"7")
    ]
    events = []
    for number, body in enumerate(raw):
        events += [
            asked(f"p{number}", BEGIN, ROW),
            answered(f"p{number}", BEGIN, body),
            told(f"p{number}", BEGIN + 1, True),
        ]
    monitor.catch_up(Events(events + traffic(200, BEGIN + 10, delay=5.0)), END)
    (report,) = monitor.history()
    assert report.rows == 205
    assert report.quality.rows == 200
    assert 0 <= report.estimate.value <= 1


def test_new_categories_without_end_take_no_room(monitor):
    monitor.catch_up(Events(pairs({**ROW, "airline": f"A{n}"} for n in range(100))), BEGIN + 10)
    before = state_size(monitor)
    events = pairs({**ROW, "airline": f"{'B' * 200}{n}"} for n in range(4000))
    tracemalloc.start()
    monitor.catch_up(Events([*pairs({**ROW, "airline": f"A{n}"} for n in range(100)), *events[200:]]), BEGIN + 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Counters grow from one byte to two or four.
    assert state_size(monitor) < 4 * before
    assert state_size(monitor) < 20 * 1024 * 4
    assert peak < 30 * 1024**2
    monitor.catch_up(Events(events), END)
    (report,) = monitor.history()
    unseen = next(moved for moved in report.drift if (moved.feature, moved.distance) == ("airline", "unseen"))
    assert unseen.value == pytest.approx(1.0)
    assert unseen.significant


def test_texts_of_megabytes_are_counted_and_left_alone(monitor):
    long = {**ROW, "airline": "x" * (10 * 1024**2)}
    nearly = {**ROW, "airline": "y" * (LARGEST // 2)}
    monitor.catch_up(Events(pairs([long, nearly, ROW])), END)
    (report,) = monitor.history()
    assert report.outcomes["too_large"] == 1
    assert report.rows == 2
    assert report.broken["airline expect_column_values_to_be_in_set"] == 1
    assert counters(monitor)["request", "too_large"] == 1
    assert counters(monitor)["request", "taken"] == 2


def test_what_cannot_be_looked_into_is_a_metric_by_its_kind_and_a_row_that_fails(monitor):
    bodies = [ROW] * 6 + [b"{", b'{"input":{"unknown":1}}', {**ROW, "airline": "x" * (10 * 1024**2)}]
    events = pairs(bodies)
    events += [asked("r", BEGIN, ROW), answered("r", BEGIN, b"{}", status=422)]
    events += [asked("a", BEGIN, ROW), answered("a", BEGIN, b'{"status":"succeeded"}')]
    monitor.catch_up(Events(events), END)
    (report,) = monitor.history()
    wanted = {"answered": 6, "refused": 1, "failed": 0, "unreadable": 2, "too_large": 1, "unreadable_answer": 1}
    assert report.outcomes == wanted
    assert report.rows == 7
    assert report.passing == 7 / 11
    assert counters(monitor) == {
        ("request", "taken"): 8, ("request", "unreadable"): 2, ("request", "too_large"): 1, ("response", "taken"): 10,
        ("response", "unreadable"): 1, ("prediction", "left_out"): 1,
    }  # fmt: skip
    samples = monitor.samples(END, REVISION)
    told_of = {one.labels["outcome"]: one.value for one in samples if one.name == "drivetrain_monitor_window_requests"}
    assert told_of == wanted


def test_large_requests_without_answers_wait_in_bounded_room(monitor, monkeypatch):
    monkeypatch.setattr(arrivals, "MOST_HALVES_BYTES", 10_000)
    monkeypatch.setattr(arrivals, "MOST_HALVES", 50)
    large = [asked(f"l{n}", BEGIN, b"x" * 4000) for n in range(5)]
    many = [asked(f"m{n}", BEGIN, {"temp": 1.0}) for n in range(100)]
    monitor.catch_up(Events(large + many), BEGIN + 10)
    assert len(monitor._store.halves()) == 50
    assert sum(len(event.body) for event in monitor._store.halves().values()) <= 10_000
    monitor.catch_up(Events(large + many), END)
    assert monitor._store.halves() == {}
    assert counters(monitor) == {("request", "dropped"): 55, ("request", "unanswered"): 50}


def test_a_flood_of_labels_for_nothing_waits_in_bounded_room(monitor, monkeypatch):
    monkeypatch.setattr(labels, "MOST_WAITING", 100)
    flood = [told(f"ghost{n}", BEGIN + 10, True) for n in range(3000)]
    monitor.catch_up(Events(traffic(50) + flood + [told("0-7", BEGIN + 50, True)]), BEGIN + 60)
    assert len(monitor._store.waiting()) == 100
    assert counters(monitor)["label", "taken"] == 1
    monitor.catch_up(
        Events([*traffic(50), *flood, told("0-7", BEGIN + 50, True), *traffic(1, BEGIN + 3 * LATE, seed=2)]), END
    )
    assert counters(monitor)["label", "unknown"] == 3000
    assert monitor._store.waiting() == {}


def test_the_same_label_ten_thousand_times_counts_once(monitor):
    monitor.catch_up(Events([*traffic(50), *[told("0-7", BEGIN + 55, True)] * 10_000]), END)
    assert counters(monitor)["label", "taken"] == 1
    assert counters(monitor)["label", "repeated"] == 9_999
    assert [report.labels for report in monitor.history()] == [1]


@pytest.mark.parametrize("body", NO_LABELS)
def test_a_label_that_is_none_is_unreadable(monitor, body):
    event = told("0-3", BEGIN + 50, True)
    event = type(event)(event.type, event.id, "", event.path, event.content_type, body, event.at)
    monitor.catch_up(Events([*traffic(10), event]), END)
    assert counters(monitor)["label", "unreadable"] == 1
    assert [report.labels for report in monitor.history()] == [0]


def test_when_too_many_predictions_wait_a_fair_sample_of_them_stays(monitor, monkeypatch):
    monkeypatch.setattr(labels, "MOST_KEPT", 100)
    monkeypatch.setattr(monitor_module, "BATCH", 50)
    events = traffic(400, every=0.5, delay=250.0)
    monitor.catch_up(Events(events), END)
    found = counters(monitor)
    joined = found["label", "taken"]
    assert 30 < joined <= 100
    assert found["label", "left_out"] > 200
    assert found["label", "left_out"] + joined + len(monitor._store.waiting()) == 400
    assert found["prediction", "left_out"] + found["prediction", "labelled"] == 400
    assert monitor._store.count_predictions() == 0
    monitor.catch_up(Events([*events, *traffic(10, BEGIN + 2 * WINDOW, seed=4)]), END)
    assert int(monitor._store.facts()["level"]) < 3


def test_slices_without_end_are_the_first_fifty(monitor):
    events = []
    for number in range(200):
        row = {**ROW, "airline": f"A{number}"}
        events += [
            asked(f"s{number}", BEGIN, row),
            answered(f"s{number}", BEGIN, {"probability": 0.5}),
            told(f"s{number}", BEGIN, True),
        ]
    monitor.catch_up(Events(events), BEGIN + 10)
    ((_, _, state),) = monitor._store.windows()
    assert len(state) < 200_000


def test_identities_and_revisions_of_any_text_are_taken(monitor):
    names = ["", "\0", "a\0b", "ü" * 1000, "'; drop table kept; --"]
    events = []
    for name in names:
        events += [asked(name, BEGIN, ROW), answered(name, BEGIN, {"probability": 0.5})]
    events.append(asked("x", BEGIN, ROW, "'\0"))
    monitor.catch_up(Events(events), END)
    assert [report.rows for report in monitor.history()] == [len(names)]


def test_revisions_that_somebody_makes_up_leave_nothing_behind(monitor):
    events = []
    for number in range(500):
        name = f"made-up-{number}"
        events += [asked(name, BEGIN, ROW, name), answered(name, BEGIN, {"probability": 0.5}, name)]
    monitor.catch_up(Events(events), END)
    assert counters(monitor) == {("request", "unknown_revision"): 500, ("response", "unknown_revision"): 500}
    assert json.dumps([sample.labels for sample in monitor.samples(END, REVISION)], default=dict).count("made-up") == 0
