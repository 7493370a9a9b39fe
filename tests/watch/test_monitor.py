"""The monitor: what its windows tell, and that each event counts once, whenever and however it comes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from drivetrain.watch import gauges
from drivetrain.watch.monitor import Monitor
from tests.watch.monitored import (
    BEGIN,
    CANDIDATE,
    LATE,
    REVISION,
    WINDOW,
    Events,
    a_monitor,
    answered,
    asked,
    features,
    probabilities,
    told,
    traffic,
    truth,
)  # fmt: skip

END = BEGIN + 10 * WINDOW


@pytest.fixture
def monitor(tmp_path):
    with a_monitor(tmp_path) as found:
        yield found


def counters(monitor: Monitor) -> dict[tuple[str, str], int]:
    return {
        (sample.labels["kind"], sample.labels["outcome"]): int(sample.value)
        for sample in monitor.samples(END, REVISION)
        if sample.name == "drivetrain_monitor_events_total"
    }


def values(monitor: Monitor, name: str, now: float = END, **labels: str) -> list[float]:
    return [
        sample.value
        for sample in monitor.samples(now, REVISION, CANDIDATE)
        if sample.name == f"drivetrain_monitor_{name}" and labels.items() <= sample.labels.items()
    ]


# what a window tells


def test_traffic_like_the_training_rows_is_no_drift_and_meets_every_check(monitor):
    found = monitor.catch_up(Events(traffic(600)), END)
    assert found.events == 1200
    (report,) = found.closed
    assert (report.revision, report.start, report.end, report.rows) == (REVISION, BEGIN, BEGIN + WINDOW, 600)
    assert report.outcomes["answered"] == 600
    assert {moved.feature for moved in report.drift} == {"temp", "hour", "airline", "prediction"}
    assert not any(moved.significant for moved in report.drift)
    assert report.passing == 1.0
    assert monitor.history() == [report]
    assert counters(monitor) == {("request", "taken"): 600, ("response", "taken"): 600}


def test_warmer_weather_is_a_drift_of_the_temperature_and_of_the_prediction(monitor):
    monitor.catch_up(Events(traffic(600, warmer=15.0)), END)
    significant = {(s.feature, s.distance) for s in monitor.history()[0].drift if s.significant}
    assert {("temp", "psi"), ("prediction", "psi")} <= significant
    assert ("hour", "psi") not in significant
    (value,) = values(monitor, "drift_significant", feature="temp", distance="psi", role="champion")
    assert value > 0.25
    assert values(monitor, "drift_significant", feature="hour", distance="psi") == [0.0]
    assert values(monitor, "drift", feature="hour", distance="psi")[0] > 0


def test_quality_is_that_of_the_labels_that_became_known_in_the_window(monitor):
    monitor.catch_up(Events(traffic(600, delay=2 * WINDOW)), END)
    first, third = monitor.history()
    assert first.quality is None
    assert (third.start, third.rows, third.labels) == (BEGIN + 2 * WINDOW, 0, 600)
    columns = features(600)
    expected = roc_auc_score(truth(columns, 1), probabilities(columns))
    assert third.quality.value == pytest.approx(expected, abs=0.002)
    assert third.quality.low < expected < third.quality.high
    assert set(third.slices) == {"airline=AA", "airline=DL", "airline=UA"}
    assert sum(found.rows for found in third.slices.values()) == 600
    assert counters(monitor)["label", "taken"] == 600
    assert counters(monitor)["prediction", "labelled"] == 600
    assert values(monitor, "quality", slice="") == [third.quality.value]
    assert values(monitor, "new_rows", role="champion") == [600]
    assert values(monitor, "staleness_seconds", role="champion") == [END - BEGIN]


def test_the_estimate_comes_before_the_labels_and_is_near_to_what_they_say(monitor):
    monitor.catch_up(Events(traffic(600)), END)
    columns = features(600)
    expected = roc_auc_score(truth(columns, 1), probabilities(columns))
    (value,) = values(monitor, "quality_estimate", metric="roc_auc")
    assert value == pytest.approx(expected, abs=0.05)


def test_rows_that_break_a_check_and_refused_requests_are_data_of_poor_quality(monitor):
    events = traffic(80)
    events += [
        asked("hot", BEGIN + 100, {"temp": 500.0, "hour": 1.0, "airline": "AA"}),
        answered("hot", BEGIN + 100, {"probability": 0.9}),
    ]
    for number in range(19):
        events += [
            asked(f"r{number}", BEGIN + 200, {"temp": "x"}),
            answered(f"r{number}", BEGIN + 200, b'{"detail":[]}', status=422),
        ]
    monitor.catch_up(Events(events), END)
    (report,) = monitor.history()
    assert (report.rows, report.outcomes["refused"]) == (81, 19)
    assert report.passing == 0.8
    assert report.broken == {"temp expect_column_values_to_be_between": 1}
    assert values(monitor, "data_quality") == [0.8]


def test_a_prediction_that_failed_is_counted_and_is_no_row(monitor):
    failed = b'{"id":"b","logs":"","error":"no","metrics":{},"status":"failed"}'
    events = [
        asked("a", BEGIN, {"temp": 50.0}), answered("a", BEGIN, b'{"error":"gone"}', status=503),
        asked("b", BEGIN, {"temp": 50.0}), answered("b", BEGIN, failed),
    ]  # fmt: skip
    monitor.catch_up(Events(events), END)
    (report,) = monitor.history()
    assert (report.rows, report.outcomes["failed"], report.passing) == (0, 2, None)


def test_few_rows_tell_no_drift_and_few_labels_no_quality(monitor):
    monitor.catch_up(Events(traffic(99, delay=1.0)[: 3 * 19]), END)
    (report,) = monitor.history()
    assert (report.drift, report.quality, report.estimate) == ((), None, None)
    assert values(monitor, "quality") == []


def test_what_a_window_has_told_is_told_until_the_next_one_tells_and_not_for_ever(monitor):
    monitor.catch_up(Events(traffic(600, warmer=15.0) + traffic(10, BEGIN + WINDOW, seed=3)), END)
    assert len(monitor.history()) == 2
    assert values(monitor, "drift_significant", feature="temp", distance="psi")[0] > 0.25
    assert values(monitor, "window_rows") == [10]
    assert values(monitor, "drift_significant", now=BEGIN + 3 * 86_400) == []


def test_champion_candidate_and_former_revisions_are_told_apart(monitor):
    events = sorted(traffic(200) + traffic(200, seed=5, revision=CANDIDATE), key=lambda event: event.at)
    monitor.catch_up(Events(events), END)
    roles = {
        (s.labels["revision"], s.labels["role"])
        for s in monitor.samples(END, REVISION, CANDIDATE)
        if "role" in s.labels
    }
    assert roles == {(REVISION, "champion"), (CANDIDATE, "candidate")}
    roles = {(s.labels["revision"], s.labels["role"]) for s in monitor.samples(END, CANDIDATE) if "role" in s.labels}
    assert roles == {(REVISION, "former"), (CANDIDATE, "champion")}
    assert all(s.labels["service"] == "delays" for s in monitor.samples(END, REVISION))


def test_a_copy_for_the_candidate_has_the_same_id_and_both_get_the_label(monitor):
    events = [
        event for revision in (REVISION, CANDIDATE)
        for event in (asked("x", BEGIN, {"temp": 70.0}, revision), answered("x", BEGIN, {"probability": 0.8}, revision))
    ]  # fmt: skip
    monitor.catch_up(Events([*events, told("x", BEGIN + 5, True)]), END)
    assert [(report.revision, report.rows, report.labels) for report in monitor.history()] == [
        (REVISION, 1, 1),
        (CANDIDATE, 1, 1),
    ]
    assert counters(monitor)["prediction", "labelled"] == 2
    assert values(monitor, "new_rows", role="champion") == [1]


def test_the_bins_of_a_closed_window_are_there_for_a_picture(monitor):
    (report,) = monitor.catch_up(Events(traffic(600, warmer=15.0)), END).closed
    shares = monitor.shares(report, "temp")
    assert sum(shares.live) == pytest.approx(1.0)
    assert shares.live[-1] > 3 * shares.reference[-1]
    assert monitor.shares(report, "nothing") is None


# late, repeated, disordered


def labelled_traffic():
    return traffic(300, every=4.0, delay=90.0)


def test_events_in_any_order_that_is_within_the_lateness_give_the_same_windows(tmp_path):
    events = labelled_traffic()
    reports = []
    for seed in range(4):
        draw = random.Random(seed)
        disordered = sorted(events, key=lambda event: event.at + (draw.uniform(0, 0.99 * LATE) if seed else 0))
        with a_monitor(tmp_path / str(seed)) as monitor:
            monitor.catch_up(Events(disordered), END)
            reports.append(monitor.history())
            assert not any(outcome == "late" for _, outcome in counters(monitor))
    assert len(reports[0]) == 3
    assert all(found == reports[0] for found in reports)


def test_repeated_events_count_once_and_are_told(tmp_path):
    events = labelled_traffic()
    with a_monitor(tmp_path / "once") as once, a_monitor(tmp_path / "twice") as twice:
        once.catch_up(Events(events), END)
        draw = random.Random(1)
        again = sorted([*events, *events], key=lambda event: event.at + draw.uniform(0, 0.9 * LATE))
        twice.catch_up(Events(again), END)
        assert twice.history() == once.history()
        found = counters(twice)
        assert [found[kind, "repeated"] for kind in ("request", "response", "label")] == [300, 300, 300]
        assert values(twice, "duplicates_total", kind="request") == [300]


def test_an_event_after_its_window_was_closed_is_late_and_changes_nothing(monitor):
    events = traffic(10)
    later = [
        asked("l", BEGIN + WINDOW + LATE, {"temp": 1.0}),
        answered("l", BEGIN + WINDOW + LATE, {"probability": 0.1}),
    ]
    straggler = [asked("s", BEGIN + 1, {"temp": 1.0}), answered("s", BEGIN + 1, {"probability": 0.1})]
    monitor.catch_up(Events(events + later + straggler), BEGIN + WINDOW + LATE)
    assert [report.rows for report in monitor.history()] == [10]
    assert counters(monitor)["request", "late"] == counters(monitor)["response", "late"] == 1


def test_an_answer_that_comes_after_the_window_was_closed_makes_both_late(monitor):
    events = [
        asked("slow", BEGIN + 1, {"temp": 1.0}),
        *traffic(2, BEGIN + WINDOW + LATE),
        answered("slow", BEGIN + WINDOW + LATE, {"probability": 0.5}),
    ]
    monitor.catch_up(Events(events), BEGIN + WINDOW + LATE)
    found = counters(monitor)
    assert found["request", "late"] == found["response", "late"] == 1
    assert monitor.history() == []


def test_a_request_without_answer_waits_until_its_window_is_closed(monitor):
    monitor.catch_up(Events([asked("a", BEGIN, {"temp": 1.0})]), BEGIN + WINDOW)
    assert counters(monitor) == {}
    monitor.catch_up(Events([]), BEGIN + WINDOW + LATE)
    assert counters(monitor) == {("request", "unanswered"): 1}


def test_a_label_that_comes_before_its_prediction_waits_for_it(monitor):
    events = [
        told("a", BEGIN + 1, True),
        asked("a", BEGIN, {"temp": 1.0}),
        answered("a", BEGIN + 1, {"probability": 0.9}),
    ]
    source = Events(events[:1])
    monitor.catch_up(source, BEGIN + 2)
    source.events = events
    monitor.catch_up(source, END)
    assert [report.labels for report in monitor.history()] == [1]
    assert counters(monitor)["label", "taken"] == 1


def test_a_label_of_nothing_is_unknown_after_a_while(monitor):
    monitor.catch_up(Events([told("ghost", BEGIN, True), *traffic(1, BEGIN + 3 * LATE)]), END)
    assert counters(monitor)["label", "unknown"] == 1


def test_a_label_that_tells_an_old_time_counts_in_the_window_that_is_open(monitor):
    events = [*traffic(5), *traffic(5, BEGIN + 3 * WINDOW, seed=2), told("0-3", BEGIN + 4, False)]
    monitor.catch_up(Events(events), BEGIN + 3 * WINDOW)
    monitor.catch_up(Events(events), END)
    labels = {report.start: report.labels for report in monitor.history()}
    assert labels == {BEGIN: 0, BEGIN + 2 * WINDOW: 1, BEGIN + 3 * WINDOW: 0}


def test_a_prediction_is_let_go_when_its_label_has_not_come_in_time(tmp_path):
    with a_monitor(tmp_path, labels_within=WINDOW) as monitor:
        monitor.catch_up(
            Events([*traffic(5), *traffic(1, BEGIN + 5 * WINDOW, seed=2), told("0-1", BEGIN + 5 * WINDOW, True)]), END
        )
        found = counters(monitor)
        assert found["prediction", "unlabelled"] == 5
        assert ("label", "taken") not in found


def test_events_ahead_of_the_clock_are_left_out_and_close_nothing(monitor):
    events = [asked("f", BEGIN + 1e8, {"temp": 1.0}), *traffic(10)]
    monitor.catch_up(Events(events), BEGIN + 20)
    assert monitor.history() == []
    monitor.catch_up(Events(events), END)
    assert [report.rows for report in monitor.history()] == [10]
    assert counters(monitor)["request", "future"] == 1


def test_when_the_clock_is_set_back_the_windows_go_on_from_there(monitor):
    year = 366 * 86_400.0
    source = Events(traffic(10, BEGIN + year, prefix="wrong-"))
    monitor.catch_up(source, BEGIN + year + 20)
    source.events = [*source.events, *traffic(10)]
    monitor.catch_up(source, BEGIN + 20)
    monitor.catch_up(source, END)
    first = monitor.history()[0]
    assert (first.start, first.rows) == (BEGIN, 10)


def test_a_window_without_further_traffic_is_closed_by_the_clock_and_stays_closed(monitor):
    source = Events(traffic(10))
    assert not monitor.catch_up(source, BEGIN + WINDOW + LATE - 1).closed
    assert len(monitor.catch_up(source, BEGIN + WINDOW + LATE).closed) == 1
    source.events = [*source.events, *traffic(5, BEGIN + 20, seed=9)]
    assert not monitor.catch_up(source, END).closed
    assert counters(monitor)["request", "late"] == 5


def test_a_revision_of_nobody_is_counted_and_no_more(monitor):
    monitor.catch_up(Events(traffic(3, revision="other-1-00000000")), END)
    assert counters(monitor) == {("request", "unknown_revision"): 3, ("response", "unknown_revision"): 3}
    assert monitor.history() == []


def test_nothing_at_all_tells_nothing(monitor):
    assert monitor.catch_up(Events([]), END).events == 0
    assert {sample.value for sample in monitor.samples(END, None)} == {0}
    assert np.isfinite([sample.value for sample in monitor.samples(END, "other-1-00000000")]).all()


def test_every_metric_is_described_and_documented(monitor):
    monitor.catch_up(Events(traffic(300, delay=5.0)), END)
    told_of = {sample.name: set(sample.labels) for sample in monitor.samples(END, REVISION)}
    assert told_of.keys() == gauges.DESCRIBED.keys()
    for name, described in gauges.DESCRIBED.items():
        assert told_of[name] == {"service", *described.labels}
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in gauges.DESCRIBED if f"`{name}`" not in documented] == []
