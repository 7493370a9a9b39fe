"""Tensors of several calls put together for one `infer`, and its results taken apart again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Tensors = Mapping[str, Any]


def kind(tensors: Tensors) -> tuple[object, ...] | None:
    """What tensors must agree in to be put together: names, types and trailing shapes. None for those that have no rows to join:
    scalars, or tensors that differ in their number of rows."""
    if not tensors or any(array.ndim == 0 for array in tensors.values()):
        return None
    if len({len(array) for array in tensors.values()}) != 1:
        return None
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(tensors.items()))


def rows(tensors: Tensors) -> int:
    """How many rows they have."""
    return next((len(array) for array in tensors.values() if array.ndim), 1)


def join(parts: Sequence[Tensors]) -> dict[str, Any]:
    """Tensors of one kind, one after the other along the first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Any, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The outputs of each part. Raises `ValueError` if an output has not a row for each row that went in."""
    checked = {name: np.asarray(array) for name, array in dict(outputs).items()}
    total = sum(sizes)
    for name, array in checked.items():
        if array.ndim == 0 or len(array) != total:
            raise ValueError(f"infer() gave '{name}' with shape {array.shape} for {total} rows")
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in checked.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]
