"""What the rules compute from series: the part of PromQL that they need, once as text for Prometheus and once as numbers.

Each expression has the value that Prometheus 2.42 gives it, to the last rule: a series' value is its last sample of five minutes,
a range has both ends, `rate` extrapolates to them, `histogram_quantile` interpolates within a bucket. Labels of a result never hold
the metric's name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from drivetrain.engines.series import LOOKBACK, Labels, Matcher, SeriesStore

Vector = Mapping[Labels, float]
"""A value for each set of labels."""


class Expression(Protocol):
    """Something that has a value for each set of labels at any instant."""

    @property
    def promql(self) -> str:
        """The same for Prometheus."""
        ...

    @property
    def binary(self) -> bool:
        """Whether its text needs parentheses within another one."""
        ...

    def value(self, series: SeriesStore, at: float) -> Vector:
        """Its values at `at`, in seconds since the epoch."""
        ...

    def reads(self) -> Iterator[tuple[str, float]]:
        """The metrics that it reads, and how far back each, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Select:
    """The series of a metric whose labels match."""

    metric: str
    matchers: tuple[Matcher, ...] = ()
    binary: ClassVar[bool] = False

    @property
    def promql(self) -> str:
        inner = ", ".join(matcher.promql for matcher in self.matchers)
        return f"{self.metric}{{{inner}}}" if inner else self.metric

    def value(self, series: SeriesStore, at: float) -> Vector:
        return dict(series.latest(self.metric, self.matchers, at))

    def reads(self) -> Iterator[tuple[str, float]]:
        yield self.metric, LOOKBACK


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast counters rise, per second, over the `window` seconds before. A counter that falls has started anew."""

    select: Select
    window: float
    binary: ClassVar[bool] = False

    @property
    def promql(self) -> str:
        return f"rate({self.select.promql}[{duration(self.window)}])"

    def value(self, series: SeriesStore, at: float) -> Vector:
        found = series.within(self.select.metric, self.select.matchers, at, self.window)
        end = round(at * 1000)
        return {labels: _rate(times, values, end, self.window) for labels, times, values in found if len(times) > 1}

    def reads(self) -> Iterator[tuple[str, float]]:
        yield self.select.metric, self.window


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Sets of labels put together that agree in the labels `by`."""

    how: Literal["sum", "max", "min", "avg"]
    expression: Expression
    by: tuple[str, ...]
    binary: ClassVar[bool] = False

    @property
    def promql(self) -> str:
        return f"{self.how} by ({', '.join(self.by)}) ({self.expression.promql})"

    def value(self, series: SeriesStore, at: float) -> Vector:
        groups: dict[Labels, list[float]] = defaultdict(list)
        for labels, value in self.expression.value(series, at).items():
            groups[tuple((name, text) for name, text in labels if name in self.by)].append(value)
        return {labels: _together(self.how, values) for labels, values in groups.items()}

    def reads(self) -> Iterator[tuple[str, float]]:
        return self.expression.reads()


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of histograms, from the rates of their cumulative buckets (label `le`)."""

    q: float
    expression: Expression
    binary: ClassVar[bool] = False

    @property
    def promql(self) -> str:
        return f"histogram_quantile({number(self.q)}, {self.expression.promql})"

    def value(self, series: SeriesStore, at: float) -> Vector:
        histograms: dict[Labels, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for labels, value in self.expression.value(series, at).items():
            bound = _bound(dict(labels).get("le", ""))
            if bound is not None:
                histograms[tuple(pair for pair in labels if pair[0] != "le")][bound] += value
        return {labels: _quantile(self.q, sorted(buckets.items())) for labels, buckets in histograms.items()}

    def reads(self) -> Iterator[tuple[str, float]]:
        return self.expression.reads()


@dataclass(frozen=True, slots=True)
class Divide:
    """One by the other, where both have a value for the same labels. By zero: infinite, or no number, as floats have it."""

    numerator: Expression
    denominator: Expression
    binary: ClassVar[bool] = True

    @property
    def promql(self) -> str:
        return f"{_operand(self.numerator)} / {_operand(self.denominator)}"

    def value(self, series: SeriesStore, at: float) -> Vector:
        below = self.denominator.value(series, at)
        above = self.numerator.value(series, at)
        return {labels: _divided(value, below[labels]) for labels, value in above.items() if labels in below}

    def reads(self) -> Iterator[tuple[str, float]]:
        return chain(self.numerator.reads(), self.denominator.reads())


@dataclass(frozen=True, slots=True)
class Share:
    """What the values are of a number."""

    expression: Expression
    whole: float
    binary: ClassVar[bool] = True

    @property
    def promql(self) -> str:
        return f"{_operand(self.expression)} / {number(self.whole)}"

    def value(self, series: SeriesStore, at: float) -> Vector:
        return {labels: _divided(value, self.whole) for labels, value in self.expression.value(series, at).items()}

    def reads(self) -> Iterator[tuple[str, float]]:
        return self.expression.reads()


@dataclass(frozen=True, slots=True)
class Compare:
    """The values that are above or below a level; the others have none."""

    expression: Expression
    operator: Literal[">", "<"]
    level: float
    binary: ClassVar[bool] = True

    @property
    def promql(self) -> str:
        return f"{_operand(self.expression)} {self.operator} {number(self.level)}"

    def value(self, series: SeriesStore, at: float) -> Vector:
        return {labels: value for labels, value in self.expression.value(series, at).items() if self.holds(value)}

    def holds(self, value: float, level: float | None = None) -> bool:
        """Whether it holds of a value; with a level in place of its own, if one is given. Of what is no number it never does."""
        bound = self.level if level is None else level
        return value > bound if self.operator == ">" else value < bound

    def reads(self) -> Iterator[tuple[str, float]]:
        return self.expression.reads()


@dataclass(frozen=True, slots=True)
class Both:
    """The values of the first condition for which the second holds as well."""

    first: Compare
    second: Compare
    binary: ClassVar[bool] = True

    @property
    def promql(self) -> str:
        return f"({self.first.promql}) and ({self.second.promql})"

    def value(self, series: SeriesStore, at: float) -> Vector:
        second = self.second.value(series, at)
        return {labels: value for labels, value in self.first.value(series, at).items() if labels in second}

    def reads(self) -> Iterator[tuple[str, float]]:
        return chain(self.first.reads(), self.second.reads())


def number(value: float) -> str:
    """A number as PromQL writes it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def duration(seconds: float) -> str:
    """A span as Prometheus writes it, in the largest unit that is whole: `5m`, `90s`, `1500ms`."""
    milliseconds = round(seconds * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def rise(values: NDArray[np.float64]) -> float:
    """By how much a counter has risen between the first of these values and the last. One that fell has started anew."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(values[-1] - values[0] + values[:-1][values[1:] < values[:-1]].sum())


def _operand(expression: Expression) -> str:
    return f"({expression.promql})" if expression.binary else expression.promql


def _rate(times: NDArray[np.int64], values: NDArray[np.float64], end: int, window: float) -> float:
    """`rate` of two samples or more, as `extrapolatedRate` of Prometheus' promql/functions.go. Times in milliseconds.

    The rise between the first and the last sample is stretched to the ends of the window: up to an end that is hardly further away
    than two samples are, by half the distance between two otherwise, and never to before the counter was zero.
    """
    risen = rise(values)
    sampled = float(times[-1] - times[0]) / 1000
    between = sampled / (len(times) - 1)
    to_start = (float(times[0] - end) / 1000) + window
    to_end = float(end - times[-1]) / 1000
    if risen > 0 and values[0] >= 0:
        to_start = min(to_start, sampled * (float(values[0]) / risen))
    reach = between * 1.1
    covered = sampled + (to_start if to_start < reach else between / 2) + (to_end if to_end < reach else between / 2)
    return risen * (covered / sampled / window)


def _together(how: str, values: Sequence[float]) -> float:
    if how in ("sum", "avg"):
        return sum(values) / (1 if how == "sum" else len(values))
    numbers = [value for value in values if not math.isnan(value)]
    return (max if how == "max" else min)(numbers, default=math.nan)


def _bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _quantile(q: float, buckets: Sequence[tuple[float, float]]) -> float:
    """`bucketQuantile` of Prometheus' promql/quantile.go: buckets are (upper bound, how many at most that), rising."""
    bounds = [bound for bound, _ in buckets]
    counts = list(accumulate((count for _, count in buckets), max))
    if bounds[-1] != math.inf or len(buckets) < 2 or counts[-1] == 0 or math.isnan(counts[-1]):
        return math.nan
    rank = q * counts[-1]
    at = next(place for place, count in enumerate((*counts[:-1], math.inf)) if count >= rank)
    if at == len(bounds) - 1:
        return bounds[-2]
    start, below = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    if at == 0 and bounds[0] <= 0:
        return bounds[0]
    return start + (bounds[at] - start) * _divided(rank - below, counts[at] - below)


def _divided(numerator: float, denominator: float) -> float:
    """A quotient of floats as the processor has it, infinite or no number where the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))
