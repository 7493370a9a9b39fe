"""Live traffic counted in the cells of a reference: exact, mergeable, and of the same few kilobytes whatever comes.

The cells are those of `engines.reference`, so a window holds no value of its own. Two windows merge by adding, in any order, and
a window that was read twice from the same events is the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from drivetrain.engines.reference import Categorical, Numeric, Reference, single, tally
from drivetrain.errors import DataError

_CHUNK = 4096
"""Values sorted at once: they and the edges stay in the processor's nearest cache."""

_HEAD = struct.Struct("<4s16sQ")
_MAGIC = b"DTW1"
_LEAST = -np.finfo(np.float32).max


class Window:
    """Counts of the rows of one window, feature by feature of the reference. Not safe for two threads at once."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.rows = 0
        """Rows added so far."""
        self._digest = bytes.fromhex(reference.digest)
        # Less than the first key is minus infinity alone, not less than the last are infinity and NaN.
        self._keys = {
            name: np.array([_LEAST, *feature.edges, np.inf], np.float32)
            for name, feature in reference.features.items()
            if isinstance(feature, Numeric)
        }
        self._counts = {name: np.zeros(_cells(feature), np.int64) for name, feature in reference.features.items()}

    def empty(self) -> Window:
        """A window of the same reference without rows; cheaper than to make one from the reference."""
        made = object.__new__(Window)
        made.reference, made.rows, made._digest, made._keys = self.reference, 0, self._digest, self._keys
        made._counts = {name: np.zeros_like(counts) for name, counts in self._counts.items()}
        return made

    def add(self, columns: Mapping[str, np.ndarray], rows: int) -> None:
        """Counts `rows` rows. A feature that has no column is missing in all of them; columns that are no features are passed over.

        Whatever a value is, it counts: as a number or a category, as one never seen, or as missing. Raises `DataError` if a
        column is not `rows` long; then nothing has been counted.
        """
        for name, values in columns.items():
            if len(values) != rows:
                raise DataError(f"the column {name} has {len(values)} values for {rows} rows")
        for name, feature in self.reference.features.items():
            column, counts = columns.get(name), self._counts[name]
            if column is None:
                continue
            if isinstance(feature, Numeric):
                _add_numbers(counts, self._keys[name], single(column))
            else:
                _add_categories(counts, feature, column)
        self.rows += rows

    def merge(self, other: Window) -> None:
        """Adds the other's rows to these. Raises `DataError` if it was counted against another reference."""
        if other._digest != self._digest:
            raise DataError("windows of different references cannot be merged")
        self.rows += other.rows
        for name, counts in self._counts.items():
            counts += other._counts[name]

    def counts(self, feature: str) -> np.ndarray:
        """Rows in each cell, int64. A number: below the first edge, between one edge and the next, and not below the last. A
        category: each of the reference's values, then all others. Rows that are in no cell are missing. Raises `KeyError`."""
        return self._counts[feature]

    def to_bytes(self) -> bytes:
        """The same bytes for the same counts; at most 4 KB a feature."""
        parts = [_HEAD.pack(_MAGIC, self._digest, self.rows)]
        for name in sorted(self._counts):
            counts = self._counts[name]
            width = next(w for w in (1, 2, 4, 8) if w == 8 or int(counts.max()) < 1 << (8 * w))
            parts += [bytes([width]), counts.astype(f"<u{width}").tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, reference: Reference, data: bytes) -> Window:
        """The window that was written. Raises `DataError` if it was counted against another reference, or is cut short."""
        window = cls(reference)
        try:
            magic, digest, window.rows = _HEAD.unpack_from(data)
            if magic != _MAGIC or digest != window._digest:
                raise DataError("this window was counted against another reference")
            place = _HEAD.size
            for name in sorted(window._counts):
                counts = window._counts[name]
                width = data[place]
                counts[:] = np.frombuffer(data, f"<u{width}", len(counts), place + 1)
                place += 1 + width * len(counts)
        except (struct.error, IndexError, TypeError, ValueError) as error:
            raise DataError(f"this window is cut short or damaged: {error}") from error
        return window


def _cells(feature: Numeric | Categorical) -> int:
    return len(feature.edges if isinstance(feature, Numeric) else feature.values) + 1


def _add_numbers(counts: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
    """To look the edges up among sorted values is much faster than to look each value up among the edges."""
    below = np.zeros(len(keys), np.int64)
    for start in range(0, len(values), _CHUNK):
        below += np.searchsorted(np.sort(values[start : start + _CHUNK]), keys)
    counts += np.diff(below)


def _add_categories(counts: np.ndarray, feature: Categorical, column: np.ndarray) -> None:
    found = tally(column)
    known = [found.pop(value, 0) for value in feature.values]
    found.pop(None, None)
    counts += np.array([*known, found.total()])
