"""A whole lifecycle killed at random instants, each time resumed: nothing is repeated, the digests are the same."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

KILLS = 30


def start(project: Path, *more: str) -> subprocess.Popen[str]:
    code = "from drivetrain.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", "--json", *more], cwd=project, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip


def rows(project: Path, query: str) -> list[Any]:
    path = project / ".drivetrain" / "journal.db"
    if not path.exists():
        return []
    db = sqlite3.connect(path)
    try:
        return [row[0] for row in db.execute(query)]
    except sqlite3.OperationalError:  # killed before the tables were made
        return []
    finally:
        db.close()


def finished(project: Path) -> set[str]:
    return set(rows(project, "select stage from attempts where state in ('done', 'cached')"))


def digests(document: dict[str, Any]) -> dict[str, dict[str, str | None]]:
    return {
        entry["stage"]: {k: v and v.get("digest") for k, v in entry["outputs"].items()} for entry in document["stages"]
    }


@pytest.mark.slow
def test_killed_at_random_instants_a_lifecycle_ends_as_an_undisturbed_one(
    drivetrain: Command, make_wine: Callable[[str], Path]
) -> None:
    began = time.monotonic()
    found = drivetrain("run", "--json", directory=make_wine("whole"))
    took = time.monotonic() - began
    assert found.returncode == 0, found.stderr
    undisturbed = digests(json.loads(found.stdout))
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    kills, number = 0, 0
    while kills < KILLS:
        project = make_wine(f"killed{number}")
        number += 1
        while True:
            before = finished(project)
            process = start(project, *(["--resume"] if rows(project, "select id from runs") else []))
            try:
                # Most stages take a few seconds, nearly all of it imports: kill within the first ones of each start.
                printed, errors = process.communicate(timeout=draw.uniform(0.1, took / 4))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                if kills < KILLS:
                    continue
                process = start(project, *(["--resume"] if rows(project, "select id from runs") else []))
                printed, errors = process.communicate(timeout=300)
            assert process.returncode == 0, f"seed {seed}: {errors}"
            document = json.loads(printed)
            states = {entry["stage"]: entry["state"] for entry in document["stages"]}
            assert all(states[stage] == "cached" for stage in before), f"seed {seed}: {before} {states}"
            assert digests(document) == undisturbed, f"seed {seed}"
            twice = rows(project, "select stage from attempts where state = 'done' group by stage having count(*) > 1")
            assert not twice, f"seed {seed}: {twice}"
            break
