"""Exactness: in whichever portions the events are read, wherever the process is killed, the windows are the same."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drivetrain.backends.serving.gateway.events import head
from drivetrain.backends.serving.gateway.segments import Segments, packed
from drivetrain.watch import monitor as monitor_module
from drivetrain.watch.monitor import Monitor
from drivetrain.watch.sources import Log, Merged
from drivetrain.watch.window_state import WindowState
from tests.watch.monitored import (
    BEGIN,
    CANDIDATE,
    REVISION,
    WINDOW,
    Events,
    a_monitor,
    features,
    probabilities,
    rules,
    subjects,
    traffic,
    truth,
)

END = BEGIN + 10 * WINDOW


def mixed():
    """Two revisions, labels, some of it repeated, some of it late, all of it in some disorder."""
    events = traffic(250, every=5.0, delay=200.0) + traffic(100, every=8.0, seed=5, revision=CANDIDATE, delay=30.0)
    draw = random.Random(0)
    events += draw.sample(events, 60)
    disordered = sorted(events, key=lambda event: event.at + draw.uniform(0, 50))
    for _ in range(15):
        disordered.append(disordered.pop(draw.randrange(100)))
    return disordered


def everything(monitor: Monitor):
    return monitor.history(), [(s.name, dict(s.labels), s.value) for s in monitor.samples(END, REVISION, CANDIDATE)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    with a_monitor(tmp_path_factory.mktemp("undisturbed")) as monitor:
        monitor.catch_up(Events(mixed()), END)
        found = everything(monitor)
    assert len(found[0]) >= 5
    return found


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_size_of_the_portions_changes_nothing(tmp_path, monkeypatch, expected, size):
    monkeypatch.setattr(monitor_module, "BATCH", size)
    with a_monitor(tmp_path) as monitor:
        monitor.catch_up(Events(mixed()), END)
        assert everything(monitor) == expected


def test_a_monitor_that_is_opened_anew_for_each_portion_gives_the_same(tmp_path, expected):
    events = mixed()
    for end in [*range(90, len(events), 90), len(events)]:
        with a_monitor(tmp_path) as monitor:
            monitor.catch_up(Events(events[:end]), max(event.at for event in events[:end]))
    with a_monitor(tmp_path) as monitor:
        monitor.catch_up(Events(events), END)
        assert everything(monitor) == expected


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a process that does the work."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def catch_up(directory: Path, kill_at: int | None) -> None:
    """Reads everything, unless it is killed before a statement of SQLite's."""
    with a_monitor(directory) as monitor:
        count = 0

        def statement(_: str) -> None:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        monitor._store._db.set_trace_callback(statement)
        monitor.catch_up(Events(mixed()), END)


def test_killed_between_any_two_statements_it_loses_and_doubles_nothing(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(monitor_module, "BATCH", 150)
    draw = random.Random(3)
    kills = 0
    for trial in range(4):
        directory = tmp_path / str(trial)
        # Sooner or later within what is left; until it comes through.
        for _ in range(5):
            status = in_child(lambda: catch_up(directory, draw.randrange(1, 700)))  # noqa: B023
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert in_child(lambda: catch_up(directory, None)) == 0  # noqa: B023
        with a_monitor(directory) as monitor:
            assert everything(monitor) == expected
    assert kills >= 8


@pytest.mark.slow
def test_killed_before_every_seventh_statement_it_loses_and_doubles_nothing(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(monitor_module, "BATCH", 400)
    number = 0
    while True:
        number += 7
        directory = tmp_path / str(number)
        if in_child(lambda: catch_up(directory, number)) == 0:  # noqa: B023
            break
        with a_monitor(directory) as monitor:
            monitor.catch_up(Events(mixed()), END)
            assert everything(monitor) == expected
    assert number > 800


def test_a_batch_that_fails_leaves_the_state_as_it_was_and_is_read_again(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(monitor_module, "BATCH", 100)
    with a_monitor(tmp_path) as monitor:
        original, calls = monitor._store.keep_counters, []

        def fails_at_times(counters):
            calls.append(1)
            if len(calls) % 2:
                raise MemoryError
            original(counters)

        monitor._store.keep_counters = fails_at_times
        for _ in range(30):
            try:
                monitor.catch_up(Events(mixed()), END)
            except MemoryError:
                continue
            break
        monitor._store.keep_counters = original
        monitor.catch_up(Events(mixed()), END)
        assert everything(monitor) == expected


def test_another_process_that_reads_on_is_noticed(tmp_path, expected):
    events = mixed()
    source = Events(events[:300])
    now = max(event.at for event in events[:300]) + 1
    with a_monitor(tmp_path) as one, a_monitor(tmp_path) as other:
        one.catch_up(source, now)
        source.events = events
        other.catch_up(source, END)
        one.catch_up(source, END)
        assert everything(one)[0] == everything(other)[0] == expected[0]


def test_events_are_read_from_capture_logs_as_they_are_written(tmp_path, expected):
    events = mixed()
    captured, posted = (
        Segments(tmp_path / name, segment=40_000, keep=100 * 1024**2, sync="never") for name in ("captured", "posted")
    )
    source = Merged([Log(tmp_path / "captured", "captured"), Log(tmp_path / "posted", "posted")])
    for place, event in enumerate(events):
        (posted if place % 3 == 0 else captured).append([packed(head(event), event.body)])
    with a_monitor(tmp_path) as monitor:
        assert monitor.catch_up(source, END).events == len(events)
        assert monitor.catch_up(source, END).events == 0
        history = monitor.history()
    assert [(r.revision, r.start) for r in history] == [(r.revision, r.start) for r in expected[0]]
    captured.close()
    posted.close()


def test_windows_of_several_monitors_are_merged_into_the_one_that_saw_everything():
    subject = subjects().find(REVISION)
    columns = features(900)
    p, y = probabilities(columns)[:, None], truth(columns).astype(float)
    slices = [{"airline": name} for name in columns["airline"]]

    def counted(rows: np.ndarray) -> WindowState:
        state = WindowState(subject)
        state.add_rows({name: values[rows] for name, values in columns.items()}, p[rows])
        state.add_outcomes({"answered": len(rows), "refused": 1})
        state.add_labels(p[rows], y[rows], [slices[row] for row in rows])
        return state

    whole = counted(np.arange(900))
    whole.add_outcomes({"refused": 2})
    merged = counted(np.arange(0, 100))
    merged.merge(counted(np.arange(400, 900)))
    merged.merge(WindowState.from_bytes(subject, counted(np.arange(100, 400)).to_bytes()))
    settings = rules().settings(4)
    one, other = whole.report(0, WINDOW, settings), merged.report(0, WINDOW, settings)
    assert other.drift == one.drift
    assert (other.rows, other.outcomes, other.passing, other.labels) == (
        one.rows,
        one.outcomes,
        one.passing,
        one.labels,
    )
    assert other.quality.value == pytest.approx(one.quality.value)
    assert other.slices.keys() == one.slices.keys()
