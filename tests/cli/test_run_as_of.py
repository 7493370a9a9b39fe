"""`drivetrain run --as-of`: which window a training gets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from drivetrain.cli import run
from drivetrain.errors import UsageError

DEFINITION = """\
name: wine
data: {{source: wine.csv, label: target, timestamp: picked, window: {window}}}
train: {{function: train.py:train}}
evaluate: {{metric: accuracy}}
"""
JULY = datetime(2013, 7, 1, tzinfo=UTC)


def written(place: Path, window: str) -> Path:
    (place / "drivetrain.yaml").write_text(DEFINITION.format(window=window))
    return place


def test_the_window_ends_then_and_begins_where_the_definition_says(tmp_path: Path) -> None:
    place = written(tmp_path, "{start: 2013-01-01, end: 2013-04-01}")
    assert run._window(place, JULY, {}) == {"data.window.end": "2013-07-01T00:00:00+00:00"}


def test_with_a_length_the_window_moves_along(tmp_path: Path) -> None:
    place = written(tmp_path, "{start: 2013-01-01, end: 2013-04-01, length: 30d}")
    expected = {"data.window.end": "2013-07-01T00:00:00+00:00", "data.window.start": "2013-06-01T00:00:00+00:00"}
    assert run._window(place, JULY, {}) == expected
    assert run._window(place, JULY, {"data.window.length": "60d"})["data.window.start"].startswith("2013-05-02")


def test_the_end_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="when the window ends"):
        run._window(written(tmp_path, "{}"), JULY, {"data.window.end": "2013-05-01"})
