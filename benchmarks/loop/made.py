"""The rows that drift is measured on, drawn from seeds, so that every tool sees the same ones. It needs NumPy alone: the peers import it
in environments of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Columns = dict[str, np.ndarray]

# the report: as many rows as a busy service sees in an hour

REPORT_ROWS = 1_000_000
NUMBERS = [f"number_{n}" for n in range(16)]
WORDS = [f"word_{n}" for n in range(4)]


def report_rows(seed: int, rows: int = REPORT_ROWS) -> Columns:
    """16 columns of numbers, half of them skewed, and 4 of words."""
    draw = np.random.default_rng(seed)
    words = np.array([f"value {n}" for n in range(20)], object)
    return {
        **{name: draw.lognormal(size=rows) if n % 2 else draw.normal(size=rows) for n, name in enumerate(NUMBERS)},
        **{name: words[draw.integers(0, 20, rows)] for name in WORDS},
    }


# the windows: alike, or with one feature moved

REFERENCE_ROWS, ROWS = 10_000, 1000
REFERENCES, WINDOWS = 20, 500
"""Windows like the reference: 20 references with 500 each, since one reference by itself may be a lucky or an unlucky one."""
MOVED = 25
"""Moved windows for each shift and reference."""

CATEGORIES = ("few", "many")
_WORDS = np.array([f"value {n}" for n in range(31)], object)
_FEW = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
_MANY = 1.0 / np.arange(1, 31)


@dataclass(frozen=True, slots=True)
class Shift:
    """Something that happens to one feature."""

    name: str
    feature: str
    moved: Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _some(draw: np.random.Generator, column: np.ndarray, share: float, value: object) -> np.ndarray:
    moved = column.copy()
    moved[draw.random(len(column)) < share] = value
    return moved


SHIFTS = (
    Shift("mean by 0.1 deviations", "normal", lambda draw, column: column + 0.1),
    Shift("mean by 0.2 deviations", "normal", lambda draw, column: column + 0.2),
    Shift("spread 1.15x", "normal", lambda draw, column: column * 1.15),
    Shift("2 % of it at 6 deviations", "normal", lambda draw, column: _some(draw, column, 0.02, 6.0)),
    Shift("3 % of it missing", "normal", lambda draw, column: _some(draw, column, 0.03, np.nan)),
    Shift("scale 1.15x, skewed", "skewed", lambda draw, column: column * 1.15),
    Shift("a tenth no more nought", "spike", lambda draw, column: np.where(
        (column == 0.0) & (draw.random(len(column)) < 0.1), draw.lognormal(size=len(column)), column)),
    Shift("one category 6 % more", "few", lambda draw, column: _some(draw, column, 0.06, "value 4")),
    Shift("2 % a new category", "many", lambda draw, column: _some(draw, column, 0.02, "value 30")),
)  # fmt: skip


def rows(draw: np.random.Generator, count: int) -> Columns:
    """Rows of six features: normal, skewed, mostly nought, a flag, few and many categories."""
    return {
        "normal": draw.normal(size=count),
        "skewed": draw.lognormal(size=count),
        "spike": np.where(draw.random(count) < 0.9, 0.0, draw.lognormal(size=count)),
        "flag": (draw.random(count) < 0.3).astype(float),
        "few": _WORDS[draw.choice(5, count, p=_FEW)],
        "many": _WORDS[draw.choice(30, count, p=_MANY / _MANY.sum())],
    }


def frames(windows: int = WINDOWS) -> Iterator[tuple[str, Columns, Columns]]:
    """For each reference: what happened (``""``: nothing), the reference, and all rows of that many windows one after another."""
    for seed in range(REFERENCES):
        draw = np.random.default_rng([seed, 17])
        reference = rows(draw, REFERENCE_ROWS)
        yield "", reference, rows(draw, ROWS * windows)
        for shift in SHIFTS:
            live = rows(draw, ROWS * MOVED)
            yield shift.name, reference, {**live, shift.feature: shift.moved(draw, live[shift.feature])}


Judged = dict[str, dict[str, list[list[float]]]]
"""What happened -> feature -> for each window a score and whether it was an alarm."""


def judged_frames(judge: Callable[[Columns, Columns], Mapping[str, list[list[float]]]]) -> Judged:
    """The verdicts of a tool that takes all windows of one reference at once."""
    found: Judged = {}
    for name, reference, live in frames():
        for feature, verdicts in judge(reference, live).items():
            found.setdefault(name, {}).setdefault(feature, []).extend(verdicts)
    return found


def judged_windows(judge: Callable[[np.ndarray, np.ndarray, str], tuple[float, bool]]) -> Judged:
    """The verdicts of a tool that takes one window and one feature at a time; where something moved, of that feature alone."""
    moved = {shift.name: shift.feature for shift in SHIFTS}
    found: Judged = {}
    for name, reference, live in frames():
        for feature in [moved[name]] if name else reference:
            verdicts = found.setdefault(name, {}).setdefault(feature, [])
            for start in range(0, len(live[feature]), ROWS):
                score, alarm = judge(reference[feature], live[feature][start : start + ROWS], feature)
                verdicts.append([float(score), float(alarm)])
    return found
