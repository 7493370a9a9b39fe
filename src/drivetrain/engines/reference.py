"""What the training rows look like, feature by feature: the fixed side of every comparison with live traffic.

The same rows give the same reference, byte for byte. A number is described by a grid of its own order statistics, a category
by its most frequent values; nothing is interpolated, so that no feature is too large, too skewed or too discrete for it. Numbers are
compared in single precision: seven digits say where a value lies, and are sorted twice as fast as sixteen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drivetrain.errors import DataError

CELLS = 500
"""Cells of the grid: what lies between two neighbouring edges is 0.2 % of the reference, and no distance looks closer."""

_LONGEST = 64
"""Characters of a category that are kept; a longer one is told apart by its digest."""

MOST_ROWS = 200_000
"""Rows of a longer history that are looked at: what they leave uncertain, a PSI of 0.0002, is far below any that matters."""

_SEED = 20_130_101

_OFTEN = 20
"""Values that all occur so often in the reference were hardly found by luck: they are counted where they were found."""


@dataclass(frozen=True, slots=True)
class Numeric:
    """A feature that is a number. Its bins are unions of cells, so one count of the cells serves every distance."""

    edges: tuple[float, ...]
    """Ascending, of single precision: the least value, order statistics, the next above the greatest. Empty without values."""
    below: tuple[int, ...]
    """How many values of the reference are less than each edge."""
    bins: tuple[int, ...]
    """Positions in `edges` of the inner bin edges."""
    size: int
    """Rows with a finite number."""
    missing: int
    """Rows without one."""


@dataclass(frozen=True, slots=True)
class Categorical:
    """A feature that is one of several values, as text."""

    values: tuple[str, ...]
    """The most frequent ones, by frequency."""
    counts: tuple[int, ...]
    others: int
    """Rows with any other value."""
    missing: int

    @property
    def size(self) -> int:
        """Rows with a value."""
        return sum(self.counts) + self.others


@dataclass(frozen=True, slots=True)
class Reference:
    """The features of the training rows by name. What the model answers is the feature `prediction`."""

    features: Mapping[str, Numeric | Categorical]
    rows: int
    """Rows that were looked at."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes an equal reference."""
        kinds = {
            name: {"kind": type(feature).__name__.lower(), **{key: _plain(v) for key, v in asdict(feature).items()}}
            for name, feature in self.features.items()
        }
        return {"rows": self.rows, "features": kinds}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reference:
        """The reference that was written. Raises `DataError` for anything else."""
        try:
            features = {name: _feature(dict(entry)) for name, entry in content["features"].items()}
            return cls(features, int(content["rows"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no reference of training rows: {error}") from error

    @property
    def digest(self) -> str:
        """Names the content: two references are equal where their digests are."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def with_feature(self, name: str, column: np.ndarray) -> Reference:
        """The same with one feature more, such as `prediction`, whose rows need not be those of the others."""
        return Reference({**self.features, **reference_of({name: column}).features}, self.rows)


def reference_of(columns: Mapping[str, np.ndarray], bins: int = 10, categories: int = 50) -> Reference:
    """The reference of these columns, all of one length.

    Numbers, booleans, and object columns that hold nothing else are numeric; other object and text columns are categorical;
    instants and everything else are left out. NaN, infinities (from 3.4e38 on), None and NaT are missing. Of more than `MOST_ROWS`
    rows so many are looked at, one drawn from each of as many equal stretches; the draw is always the same.

    Raises `DataError` if the columns differ in length.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise DataError(f"the columns of a reference have different lengths: {sorted(lengths)}")
    rows = min(next(iter(lengths), 0), MOST_ROWS)
    features: dict[str, Numeric | Categorical] = {}
    for name, whole in columns.items():
        column = whole if len(whole) == rows else whole[_drawn(len(whole), rows)]
        if column.dtype.kind in "biuf" or (column.dtype.kind == "O" and _all_numbers(column)):
            features[name] = _numeric(single(column), bins)
        elif column.dtype.kind in "OUST":
            features[name] = _categorical(column, categories)
    return Reference(features, rows)


def _drawn(rows: int, wanted: int) -> np.ndarray:
    """A position in each of `wanted` equal stretches. Every n-th row might always be of the same hour, or the same shop."""
    within = np.random.default_rng(_SEED).random(wanted)
    return ((np.arange(wanted) + within) * (rows / wanted)).astype(np.int64)


# what a value counts as


def numbers_of(column: np.ndarray) -> np.ndarray:
    """The column as float64; what is no number is NaN."""
    if column.dtype.kind in "biuf":
        return column.astype(np.float64, copy=False)
    return np.fromiter((_number(value) for value in column.tolist()), np.float64, len(column))


def single(column: np.ndarray) -> np.ndarray:
    """The column as numbers of single precision, in which they are compared; infinite what is too large for it."""
    with np.errstate(over="ignore"):
        return numbers_of(column).astype(np.float32)


def _number(value: object) -> float:
    if isinstance(value, str) and len(value) > _LONGEST:
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def text_of(value: object) -> str | None:
    """The category that a value counts as; None if it is missing. `1`, `1.0` and `"1"` are one category."""
    if value is None:
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else float(value)
    text = str(value)
    if text in ("NaT", "<NA>") and not isinstance(value, str):
        return None
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 18]}..{hashlib.blake2b(text.encode(errors='replace'), digest_size=8).hexdigest()}"


def tally(column: np.ndarray) -> Counter[str | None]:
    """How often each category occurs; None: missing."""
    values = column.tolist()
    try:
        found: Iterable[tuple[object, int]] = Counter(values).items()
    except TypeError:  # a list or an object among them
        found = ((value, 1) for value in values)
    counted: Counter[str | None] = Counter()
    for value, count in found:
        counted[text_of(value)] += count
    return counted


def _all_numbers(column: np.ndarray) -> bool:
    """Whether every value that is there is a number, and one is there."""
    numbers = (int, float, np.number, np.bool_)
    found = False
    for value in column.tolist():
        if isinstance(value, numbers):
            found = True
        elif isinstance(value, str) or text_of(value) is not None:
            return False
    return found


# the two kinds


def _numeric(column: np.ndarray, bins: int) -> Numeric:
    values = np.sort(column[np.isfinite(column)])
    size = len(values)
    if not size:
        return Numeric((), (), (), 0, len(column))
    places = np.unique(np.arange(CELLS) * size // CELLS)
    with np.errstate(over="ignore"):
        beyond = min(np.nextafter(values[-1], np.float32(np.inf)), np.finfo(np.float32).max)
    edges = np.unique(np.append(values[places], beyond))
    below = np.searchsorted(values, edges, side="left")
    cuts = _cuts(np.diff(below), size / bins)
    return Numeric(tuple(edges.tolist()), tuple(below.tolist()), cuts, size, len(column) - size)


def _cuts(cells: np.ndarray, least: float) -> tuple[int, ...]:
    """Where the bins end: each takes cells until it holds `least` rows. Many equal values are a cell and so a bin of their own,
    and a few on the far side of them are still told apart."""
    cuts: list[int] = []
    held = 0
    for place, count in enumerate(cells[:-1].tolist(), start=1):
        held += count
        # Half a row is forgiven: cells are whole rows, bins need not be.
        if held >= least - 0.5:
            cuts.append(place)
            held = 0
    return tuple(cuts)


def _categorical(column: np.ndarray, categories: int) -> Categorical:
    everything = tally(column)
    known = [(value, count) for value, count in everything.items() if value is not None]
    if len(known) <= categories and all(count >= _OFTEN for _, count in known):
        values, counted = _most_frequent(known, categories), everything
    else:
        # Values chosen for being frequent would look rarer in any later rows: every other row chooses, the rest are counted.
        chosen = tally(column[::2])
        values = _most_frequent([(v, c) for v, c in chosen.items() if v is not None], categories)
        counted = tally(column[1::2])
    counts = tuple(counted.get(value, 0) for value in values)
    missing = counted.get(None, 0)
    return Categorical(values, counts, sum(counted.values()) - sum(counts) - missing, missing)


def _most_frequent(found: Sequence[tuple[str, int]], most: int) -> tuple[str, ...]:
    return tuple(value for value, _ in sorted(found, key=lambda entry: (-entry[1], entry[0]))[:most])


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _feature(entry: dict[str, Any]) -> Numeric | Categorical:
    kind = entry.pop("kind")
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Numeric(**made) if kind == "numeric" else Categorical(**made)
