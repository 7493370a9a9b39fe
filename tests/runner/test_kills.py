"""A run killed or interrupted at any instant goes on where it stood, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LENGTH, SECONDS = 6, 0.05
KILLS = 30


def start(state: Path, *more: str, seconds: float = SECONDS) -> subprocess.Popen[str]:
    state.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(HERE / "chain.py"), str(state), str(LENGTH), str(seconds), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip


def finished(state: Path) -> set[str]:
    if not (state / "journal.db").exists():
        return set()
    db = sqlite3.connect(state / "journal.db")
    try:
        return {row[0] for row in db.execute("select stage from attempts where state in ('done', 'cached')")}
    except sqlite3.OperationalError:  # killed before the tables were made
        return set()
    finally:
        db.close()


def made_twice(state: Path) -> set[str]:
    db = sqlite3.connect(state / "journal.db")
    rows = db.execute("select stage from attempts where state = 'done' group by stage having count(*) > 1").fetchall()
    db.close()
    return {row[0] for row in rows}


def has_run(state: Path) -> list[str]:
    if not (state / "journal.db").exists():
        return []
    db = sqlite3.connect(state / "journal.db")
    try:
        return [row[0] for row in db.execute("select id from runs")]
    except sqlite3.OperationalError:
        return []
    finally:
        db.close()


def digests(printed: str) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[2]) for line in printed.splitlines()]


@pytest.mark.slow
def test_killed_at_thirty_random_instants_no_finished_step_is_repeated_and_the_digests_are_the_same(
    tmp_path: Path,
) -> None:
    whole = start(tmp_path / "undisturbed")
    began = time.monotonic()
    undisturbed, errors = whole.communicate(timeout=120)
    took = time.monotonic() - began
    assert whole.returncode == 0, errors
    kills, number = 0, 0
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    while kills < KILLS:
        state = tmp_path / f"killed{number}"
        number += 1
        while True:
            before = finished(state)
            process = start(state, *has_run(state))
            try:
                printed, errors = process.communicate(timeout=draw.uniform(0.05, took))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                assert before <= finished(state)
                continue
            assert process.returncode == 0, f"seed {seed}: {errors}"
            states = {line.split()[0]: line.split()[1] for line in printed.splitlines()}
            assert all(states[step] == "cached" for step in before), f"seed {seed}: {before} {states}"
            assert digests(printed) == digests(undisturbed), f"seed {seed}"
            assert not made_twice(state), f"seed {seed}"
            break


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = start(tmp_path / "state", seconds=600)
    work = tmp_path / "state" / "work"
    deadline = time.monotonic() + 60
    while not any(work.glob("*/piece.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = group_members(tmp_path)
    assert len(pids) >= 2
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group_members(state: Path) -> list[int]:
    """The processes whose command line or parent's names the state directory."""
    import psutil

    tops = [p for p in psutil.process_iter(["cmdline"]) if any(str(state) in part for part in p.info["cmdline"] or [])]
    return [p.pid for top in tops for p in [top, *top.children(recursive=True)]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "state"
    process = start(state, seconds=1.5)  # the rest takes long enough to be interrupted on a busy machine too
    deadline = time.monotonic() + 60
    while len(finished(state)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    db = sqlite3.connect(state / "journal.db")
    assert db.execute("select state, exit_code from runs").fetchall() == [("interrupted", 130)]
    db.close()
    again = start(state, "run")
    printed, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    states = [line.split()[1] for line in printed.splitlines()]
    assert states[:2] == ["cached", "cached"]
    assert not made_twice(state)
