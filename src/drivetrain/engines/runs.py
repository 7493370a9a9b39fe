"""Answers of two arms, in the order in which they came, as blocks: a run of one arm's and the run of the other's that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Blocks:
    """One entry a block: each arm's share of failed answers, and the latencies (seconds, NaN for a failed answer) of the two answers that
    stand beside each other."""

    candidate_failed: np.ndarray
    champion_failed: np.ndarray
    candidate_took: np.ndarray
    champion_took: np.ndarray


class Runs:
    """Puts answers together. What does not make a block yet is kept: a run goes on until the other arm answers."""

    __slots__ = ("_open",)

    def __init__(self, open_runs: Sequence[Sequence[float]] = ()) -> None:
        # A run is: arm, answers, failed ones, and the latencies of its first and its last answer.
        self._open = np.array(open_runs, dtype=float).reshape(-1, 5)

    def add(self, candidate: np.ndarray, failed: np.ndarray, took: np.ndarray) -> Blocks:
        """The blocks that are whole now. `candidate` and `failed` are booleans, `took` is in seconds."""
        runs = self._joined(_runs(candidate, failed, np.where(failed, np.nan, took)))
        whole = 2 * ((len(runs) - 1) // 2)
        self._open = runs[whole:]
        first, second = runs[:whole:2], runs[1:whole:2]
        ahead = first[:, 0] == 1.0
        failures = [run[:, 2] / run[:, 1] for run in (first, second)]
        latencies = [first[:, 4], second[:, 3]]
        return Blocks(
            np.where(ahead, failures[0], failures[1]),
            np.where(ahead, failures[1], failures[0]),
            np.where(ahead, latencies[0], latencies[1]),
            np.where(ahead, latencies[1], latencies[0]),
        )

    def _joined(self, runs: np.ndarray) -> np.ndarray:
        """The new runs after the open ones, the first of them part of the last open one if both are one arm's."""
        if len(self._open) == 0 or len(runs) == 0 or self._open[-1, 0] != runs[0, 0]:
            return np.concatenate([self._open, runs])
        before = self._open[-1]
        runs[0, 1:4] = before[1] + runs[0, 1], before[2] + runs[0, 2], before[3]
        return np.concatenate([self._open[:-1], runs])

    def to_json(self) -> list[list[float | None]]:
        """What `from_json` makes the same of."""
        return [[None if value != value else float(value) for value in run] for run in self._open]

    @classmethod
    def from_json(cls, found: Sequence[Sequence[float | None]]) -> Runs:
        """As it was kept."""
        return cls([[float("nan") if value is None else value for value in run] for run in found])


def _runs(candidate: np.ndarray, failed: np.ndarray, took: np.ndarray) -> np.ndarray:
    if len(candidate) == 0:
        return np.empty((0, 5))
    starts = np.concatenate([[0], np.flatnonzero(candidate[1:] != candidate[:-1]) + 1])
    ends = np.concatenate([starts[1:], [len(candidate)]])
    columns = (
        candidate[starts],
        ends - starts,
        np.add.reduceat(failed.astype(float), starts),
        took[starts],
        took[ends - 1],
    )
    return np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)
