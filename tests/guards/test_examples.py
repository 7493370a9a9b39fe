"""Every folder under examples/ is started by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/drivetrain.yaml"))


def test_every_folder_under_examples_is_a_project() -> None:
    folders = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_dir())
    assert folders == EXAMPLES != []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_a_test_that_starts_it_and_a_page_that_tells_how(name: str) -> None:
    tests = (ROOT / "tests" / "examples" / f"test_{name}.py").read_text()
    started = (ROOT / "tests" / "conftest.py").read_text() + tests
    assert f'"examples" / "{name}"' in started
    assert '"run", "--json"' in started
    page = (ROOT / "examples" / name / "README.md").read_text()
    assert "drivetrain run" in page
