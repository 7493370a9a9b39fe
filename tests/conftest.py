"""What several test folders use: the command line, and projects that have been run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]
LONGEST = (
    "watch/test_kills.py", "examples/test_flights_pipeline_image.py", "examples/test_flights_image.py",
    "lifecycle/test_gate.py", "lifecycle/test_kills.py", "lifecycle/test_faults.py", "lifecycle/test_rollback.py",
    "examples/test_digits.py", "examples/test_flights.py", "runner/test_kills.py", "backends/test_s3_lifecycle.py",
)  # fmt: skip
"""Files that take long, longest first: begun first, so that none of them is left over for one process alone."""


def pytest_configure() -> None:
    """Ctrl-C counts also in what tests start: a shell that runs the tests in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("unhurried", deadline=None)  # on a busy machine any example may take its time
    settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they are."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((number for number, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=place)


def run_command(
    *arguments: str, directory: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`drivetrain ARGUMENTS` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from drivetrain.cli.main import main; main()", *arguments],
        capture_output=True, text=True, cwd=directory, check=False, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
    )  # fmt: skip


@pytest.fixture(scope="session")
def drivetrain() -> Command:
    """The command line: `drivetrain("run", "--json", directory=project)`."""
    return run_command


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """examples/flights, run once from nothing to its endpoint: the project and the run as JSON."""
    project = tmp_path_factory.mktemp("flights") / "flights"
    shutil.copytree(ROOT / "examples" / "flights", project, ignore=shutil.ignore_patterns(".drivetrain", "__pycache__"))
    set_port(project, 0)
    found = run_command("run", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    yield project, json.loads(found.stdout)
    run_command("deploy", "--stop", directory=project)


def set_port(project: Path, port: int) -> None:
    """Has the project serve on a port (0: a free one), so that tests never meet each other."""
    path = project / "drivetrain.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.strip().startswith("port:")]
    text = "\n".join(lines) + "\n"
    text = (
        text.replace("serving:\n", f"serving:\n  port: {port}\n")
        if "serving:\n" in text
        else text + f"serving: {{port: {port}}}\n"
    )
    path.write_text(text)
