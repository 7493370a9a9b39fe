"""Latencies of two arms as histograms of fine bins, and whether one arm's are more than a factor above the other's at some quantile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from drivetrain.engines.sequential import band_p_value

_FIRST, _LAST = 1e-4, 1e3
"""Seconds. What is beyond counts into the outermost bins."""
_RATIO = 1.02


class Latencies:
    """As many latencies of the candidate as of the champion. The bins' edges are a geometric series of which `slower` is a member, so that
    F(x / slower) is read at an edge too, without interpolation."""

    __slots__ = ("_candidate", "_champion", "_ratio", "_shift", "count")

    def __init__(self, slower: float) -> None:
        self._shift = max(1, round(math.log(slower) / math.log(_RATIO))) if slower > 1.0 else 0
        self._ratio = math.log(slower) / self._shift if self._shift else math.log(_RATIO)
        bins = math.ceil(math.log(_LAST / _FIRST) / self._ratio) + 2
        self._candidate, self._champion = np.zeros(bins, dtype=np.int64), np.zeros(bins, dtype=np.int64)
        self.count = 0

    def add(self, candidate: np.ndarray, champion: np.ndarray) -> None:
        """More pairs, in seconds."""
        for kept, values in ((self._candidate, candidate), (self._champion, champion)):
            np.add.at(kept, self._bins(values), 1)
        self.count += len(candidate)

    def _bins(self, values: np.ndarray) -> np.ndarray:
        places = np.floor(np.log(np.maximum(values, _FIRST) / _FIRST) / self._ratio).astype(np.int64)
        clipped: np.ndarray = np.clip(places, 0, len(self._candidate) - 1)
        return clipped

    @property
    def p_value(self) -> float:
        """Of the hypothesis that at no quantile the candidate's latency is more than `slower` times the champion's: by the largest
        distance of its distribution function below the champion's, stretched by that factor."""
        if self.count == 0:
            return 1.0
        ours, theirs = np.cumsum(self._candidate) / self.count, np.cumsum(self._champion) / self.count
        stretched = np.concatenate([np.zeros(self._shift), theirs[: len(theirs) - self._shift]])
        return band_p_value(float((stretched - ours).max()), self.count)

    def quantiles(self, level: float) -> tuple[float, float]:
        """That quantile of the candidate's and of the champion's latencies, in seconds; NaN before there are any."""
        if self.count == 0:
            return math.nan, math.nan
        found = [
            _FIRST * math.exp(self._ratio * (int(np.searchsorted(np.cumsum(kept), level * self.count)) + 0.5))
            for kept in (self._candidate, self._champion)
        ]
        return found[0], found[1]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same of: the bins that are not empty."""
        return {
            name: {str(place): int(kept[place]) for place in np.flatnonzero(kept)}
            for name, kept in (("candidate", self._candidate), ("champion", self._champion))
        }

    @classmethod
    def from_json(cls, slower: float, found: Mapping[str, Any]) -> Latencies:
        """As it was kept."""
        made = cls(slower)
        for name, kept in (("candidate", made._candidate), ("champion", made._champion)):
            for place, count in found[name].items():
                kept[int(place)] = count
        made.count = int(made._candidate.sum())
        return made
