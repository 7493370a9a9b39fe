"""Rows of the past as requests: which are asked, when, under which id, and when their labels become known.

All of it depends on the rows and the seed alone, whichever range is replayed: a row has the same id, and is in the sample or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from drivetrain import deployment, wiring
from drivetrain.errors import UsageError
from drivetrain.project import Project
from drivetrain.stages.frame import Frame

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """How a row is put to the service: `rows` (the default runner), `list` (one input, the features in their order), or `names`.

    `wanted` are the names of the inputs, the only one for a list.
    """

    kind: str
    wanted: Sequence[str]

    def inputs(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Cog's `input` of a row, whose missing values are None."""
        if self.kind == "rows":
            return {"rows": [row]}
        if self.kind == "list":
            return {self.wanted[0]: list(row.values())}
        return {name: row[name] for name in self.wanted if row.get(name) is not None}


def shape_of(project: Project) -> Shape:
    """How the champion's service takes a row of features. Raises `UsageError` if it takes something else, or nothing is deployed."""
    bundle, store = deployment.leading(project).outputs.bundle, wiring.project_objects(project)
    if project.definition.serving.runner is None:
        return Shape("rows", ())
    if "example.json" not in store.files(bundle):
        raise UsageError(
            "the service's inputs are not the features: rows cannot be put to it",
            hint="a runner whose inputs have the features' names, or one list of numbers, can be replayed",
        )
    example: dict[str, Any] = json.loads(store.read(bundle, "example.json"))
    schema = json.loads(store.read(bundle, ".cog/openapi_schema.json"))
    only = next(iter(example)) if len(example) == 1 else None
    if only is not None and isinstance(example[only], list):
        return Shape("list", (only,))
    return Shape("names", tuple(schema["components"]["schemas"]["Input"]["properties"]))


@dataclass(frozen=True, slots=True)
class Ask:
    """A row to be asked about at `at`, seconds since 1970."""

    at: float
    id: str
    place: int
    """Where it stands in the frame."""


@dataclass(frozen=True, slots=True)
class Told:
    """A label that becomes known at `at`."""

    at: float
    id: str
    label: Any


class Rows:
    """The sampled rows of a frame, in order of time."""

    def __init__(self, frame: Frame, shape: Shape, *, delay: float, share: float, seed: int) -> None:
        """`delay` is how long after a row its label is known, in seconds; `share` of the rows is asked about. Raises `UsageError`
        for a frame without times."""
        if frame.times is None:
            raise UsageError("rows without times cannot be replayed", hint="name their column in data.timestamp")
        self._frame = frame
        self._shape = shape
        self._delay = delay
        self._times = frame.times / _MICRO
        ids = list(_ids(frame.times))
        threshold = round(share * 2**32)
        chosen = (_drawn(f"{seed}:{name}") < threshold for name in ids)
        self._places = np.flatnonzero(np.fromiter(chosen, dtype=bool, count=len(ids)))
        self._ids = [ids[place] for place in self._places]
        self._at = self._times[self._places]

    def __len__(self) -> int:
        return len(self._places)

    def between(self, start: float, end: float) -> int:
        """How many rows are asked about from `start` up to `end`."""
        first, last = np.searchsorted(self._at, [start, end])
        return int(last - first)

    def events(self, start: float, end: float, owed_from: float) -> list[Ask | Told]:
        """What happens from `start` up to `end`, in order of time. Labels are told of rows from `owed_from` on."""
        first, last = np.searchsorted(self._at, [start, end])
        found: list[Ask | Told] = [
            Ask(float(self._at[n]), self._ids[n], int(self._places[n])) for n in range(first, last)
        ]
        early = max(start - self._delay, owed_from)
        first, last = np.searchsorted(self._at, [early, max(early, end - self._delay)])
        labels = self._frame.rows[self._frame.label]
        for n in range(first, last):
            label = _plain(labels.iloc[self._places[n]])
            found.append(Told(float(self._at[n]) + self._delay, self._ids[n], label))
        return sorted(found, key=lambda event: event.at)

    def bodies(self, asks: Sequence[Ask]) -> Iterator[bytes]:
        """The body of each request, in Cog's form."""
        part = self._frame.rows.iloc[[ask.place for ask in asks]]
        columns = {name: [_plain(value) for value in part[name]] for name in self._frame.features}
        for number, ask in enumerate(asks):
            row = {name: values[number] for name, values in columns.items()}
            yield json.dumps({"id": ask.id, "input": self._shape.inputs(row)}, allow_nan=False).encode()

    def labels(self, places: Sequence[int]) -> np.ndarray:
        """The labels of rows, by their places in the frame."""
        return self._frame.rows[self._frame.label].to_numpy()[np.asarray(places, dtype=np.int64)]

    def features(self, places: Sequence[int]) -> pd.DataFrame:
        """The features of rows, by their places in the frame."""
        return self._frame.rows.iloc[np.asarray(places, dtype=np.int64)][list(self._frame.features)]


def _ids(times: np.ndarray) -> Iterator[str]:
    """A name for each row: its time, and its number among those of the same time."""
    before, number = None, 0
    for time in times.tolist():
        number = number + 1 if time == before else 0
        before = time
        yield f"replay-{time:x}-{number}"


def _drawn(text: str) -> int:
    """A number below 2**32 for each text. No checksum: those of two seeds would differ by the same bits for every row."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest())


def _plain(value: Any) -> Any:
    """A value that JSON knows; None for what is missing."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)
