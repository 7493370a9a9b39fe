"""Windows long past are read seldom, and no more of them than are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.engines.triggers import Served
from drivetrain.watch import history as history_module
from drivetrain.watch import monitor_store
from drivetrain.watch.history import History
from drivetrain.watch.monitor import Monitor
from drivetrain.watch.window_state import Measured, Moved, WindowReport
from tests.watch.monitored import BEGIN, CANDIDATE, REVISION, WINDOW, a_monitor

DRIFT = (Moved("temp", "psi", 0.3, 0.1, 0.001, significant=True),)
QUALITY = Measured(0.8, 0.7, 0.9, 500)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    with a_monitor(tmp_path) as found:
        yield found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The starts of the windows that were decoded."""
    found: list[float] = []
    decode = monitor_store._report

    def counted(blob: bytes) -> WindowReport:
        report = decode(blob)
        found.append(report.start)
        return report

    monkeypatch.setattr(monitor_store, "_report", counted)
    return found


def close(
    monitor: Monitor, place: int, *, drift: tuple[Moved, ...] = (), passing: float | None = None,
    quality: Measured | None = None, revision: str = REVISION,
) -> None:  # fmt: skip
    start = BEGIN + place * WINDOW
    report = WindowReport(
        revision, start, start + WINDOW, 100, drift=drift, passing=passing, metric="accuracy", quality=quality
    )
    with monitor._store.transaction():
        monitor._store.close_window(report, b"")


def told(history: History, *signals: str) -> dict[str, float]:
    found = history.told_last(REVISION, signals)
    assert {sample.labels["role"] for sample in found} <= {"champion"}
    return {sample.name.removeprefix("drivetrain_monitor_"): sample.value for sample in found}


def test_the_newest_are_read_until_each_signal_has_been_told(monitor: Monitor, decoded: list[float]) -> None:
    for place in range(200):
        close(
            monitor, place, drift=DRIFT if place == 190 else (), passing=0.9, quality=QUALITY if place == 195 else None
        )
    history = History(monitor)
    found = told(history, "drift", "quality")
    assert len(decoded) == 10
    assert (found["drift"], found["quality"], found["window_end_seconds"]) == (0.3, 0.8, BEGIN + 200 * WINDOW)
    decoded.clear()
    assert told(history, "data_quality")["data_quality"] == 0.9
    assert len(decoded) == 1
    close(monitor, 200, revision=CANDIDATE, drift=DRIFT)
    decoded.clear()
    assert told(history, "staleness")["window_end_seconds"] == BEGIN + 200 * WINDOW
    assert len(decoded) == 1


def test_what_no_window_ever_told_is_looked_for_once_for_each_window_that_closes(
    monitor: Monitor, decoded: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a trigger on the quality of a service without labels."""
    monkeypatch.setattr(history_module, "MOST", 50)
    for place in range(120):
        close(monitor, place, passing=0.9)
    history = History(monitor)
    first = told(history, "quality", "drift")
    assert len(decoded) == 50, "no more than that, however many there are"
    for _ in range(20):
        assert told(history, "quality", "drift") == first
    assert len(decoded) == 50 + 20
    close(monitor, 120, quality=QUALITY)
    assert told(history, "quality", "drift")["quality"] == 0.8


def test_without_a_window_nothing_is_told_and_the_first_one_is_seen(monitor: Monitor) -> None:
    history = History(monitor)
    assert told(history, "quality") == {}
    close(monitor, 0, quality=QUALITY)
    assert told(history, "quality")["quality"] == 0.8


def test_what_was_served_is_read_once_and_anew_after_a_retraining(monitor: Monitor, decoded: list[float]) -> None:
    for place in range(100):
        close(monitor, place, quality=QUALITY if place % 2 else None)
    history = History(monitor)
    for _ in range(20):
        found = history.served(REVISION, 0.0, "accuracy")
    assert found == [Served(100, pytest.approx(0.2))] * 50
    assert len(decoded) == 100
    close(monitor, 101, quality=QUALITY)
    assert len(history.served(REVISION, 0.0, "accuracy")) == 51
    assert len(decoded) == 101
    decoded.clear()
    assert len(history.served(REVISION, BEGIN + 90 * WINDOW, "accuracy")) == 6
    assert len(decoded) == 11
    history.forget()
    assert len(history.served(REVISION, BEGIN + 90 * WINDOW, "accuracy")) == 6
    assert len(decoded) == 22
