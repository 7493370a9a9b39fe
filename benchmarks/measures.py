"""What a race finds: samples with their statistics, and targets that hold or do not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Measurement:
    """Samples of one quantity of one entrant, or the error that kept it from being measured."""

    name: str
    """Whose, such as `Metaflow`."""
    quantity: str
    """What, such as `5 steps`."""
    samples: tuple[float, ...] = ()
    unit: str = "s"
    error: str = ""

    @property
    def median(self) -> float | None:
        """Half of the samples are at most this. None without samples."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def spread(self) -> float | None:
        """Largest minus smallest sample, as a share of the median: how noisy the machine was. None without samples."""
        middle = self.median
        return (max(self.samples) - min(self.samples)) / middle if middle else None


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and what was measured of it: it holds when `bound / value` is at least `needed`.

    For a promise in absolute terms `bound` is the limit and `needed` is 1; for one against a peer `bound` is what the peer
    took and `needed` how many times as fast Drivetrain has to be.
    """

    race: str
    text: str
    value: float | None
    bound: float | None
    bound_name: str
    needed: float = 1.0
    unit: str = "s"
    error: str = ""
    """Why value or bound is missing."""

    @property
    def ratio(self) -> float | None:
        """`bound / value`. None if either is missing, or for a value of 0 or below."""
        if self.value is None or self.bound is None or self.value <= 0:
            return None
        return self.bound / self.value

    @property
    def verdict(self) -> str:
        """`holds`, `misses` or `unmeasured`."""
        if self.value is None or self.bound is None:
            return "unmeasured"
        return "holds" if self.value * self.needed <= self.bound else "misses"


@dataclass(frozen=True, slots=True)
class Findings:
    """All that one race found. `notes` are lines for the reader: what was compared, what could not be."""

    targets: Sequence[Target] = ()
    measurements: Sequence[Measurement] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def at_most(race: str, text: str, measured: Measurement, limit: float) -> Target:
    """The target that the median of `measured` is at most `limit`."""
    return Target(
        race, text, measured.median, limit, "limit", unit=measured.unit, error=measured.error or _missing(measured)
    )


def faster_than(race: str, text: str, ours: Measurement, peer: Measurement, needed: float) -> Target:
    """The target that our median is at most the peer's divided by `needed`."""
    error = ours.error or peer.error or _missing(ours) or _missing(peer)
    return Target(race, text, ours.median, peer.median, peer.name, needed, ours.unit, error)


def _missing(measured: Measurement) -> str:
    return "" if measured.samples else f"{measured.name}: no samples of {measured.quantity}"


def per_extra(name: str, short: Measurement, long: Measurement, extra: int) -> Measurement:
    """What one more step costs: the difference of the medians over the `extra` steps between the two chains."""
    error = short.error or long.error
    if short.median is None or long.median is None:
        return Measurement(name, "an extra step", error=error or _missing(short) or _missing(long))
    return Measurement(name, "an extra step", ((long.median - short.median) / extra,))
