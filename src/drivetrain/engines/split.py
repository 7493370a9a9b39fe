"""Which rows train and which decide: the latest rows are held out, and nothing unknown at their start is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SEED = 20_130_101
"""The draw without timestamps is the same in every run, so that candidate and champion are judged on the same rows."""


@dataclass(frozen=True, slots=True)
class Split:
    """`train` and `holdout` are boolean masks over the rows, never both true. `cut` is the hold-out's first instant, in
    the unit of `times`; None without times. `embargoed` counts the rows left out because their label was not yet known."""

    train: np.ndarray
    holdout: np.ndarray
    cut: int | None
    embargoed: int


def by_time(times: np.ndarray, *, fraction: float, start: int | None = None, delay: int = 0) -> Split:
    """The latest `fraction` of the rows held out, or those from `start` on; rows of equal time stay together.

    `times` are integers in any one unit, with `start` and `delay` in the same. A row trains only if its label, known
    `delay` after its time, was known when the hold-out begins: `time < cut` and `time + delay <= cut`.
    """
    if start is None and len(times):
        first = min(len(times) - 1, int(np.floor(len(times) * (1.0 - fraction) + 1e-9)))
        start = int(np.partition(times, first)[first])
    cut = int(start or 0)
    before = times < cut
    # Subtracting from the cut cannot overflow where adding to the latest representable time would.
    train = before & (times <= cut - delay)
    return Split(train=train, holdout=~before, cut=cut, embargoed=int(before.sum() - train.sum()))


def by_draw(rows: int, *, fraction: float, seed: int = _SEED) -> Split:
    """About `fraction` of the rows held out, drawn by position: a row keeps its side when rows are added after it."""
    holdout = np.random.default_rng(seed).random(rows) < fraction
    return Split(train=~holdout, holdout=holdout, cut=None, embargoed=0)
