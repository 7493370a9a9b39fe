"""Chunks from the user's function: what it is given, what it may return, and what it did wrong."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa

from drivetrain.errors import DrivetrainError, StageError
from drivetrain.usercode import load_function

Chunk: TypeAlias = "pd.DataFrame | pa.Table | pa.RecordBatch"

_CHUNKS = (pd.DataFrame, pa.Table, pa.RecordBatch)


@dataclass(frozen=True, slots=True)
class Loader:
    """A user's function with those of the shared parameters that it names."""

    project: Path
    name: str
    function: Callable[..., Any]
    parameters: dict[str, Any]
    accepts: frozenset[str]
    """Every name that it takes."""
    bounds: frozenset[str]
    """Which of `start` and `end` it takes."""

    @property
    def takes_window(self) -> bool:
        return self.bounds == {"start", "end"}

    def chunks(self, **bounds: object) -> Iterator[Chunk]:
        """Calls the function with its parameters and with those of the bounds that it takes; yields what it returns.

        Raises `StageError` if the function raises, in its body or while its iterator runs, or returns anything but a
        DataFrame, a pyarrow Table, or an iterator of those.
        """
        given = {name: value for name, value in bounds.items() if name in self.bounds}
        try:
            result = self.function(**self.parameters, **given)
        except DrivetrainError:
            raise
        except Exception as error:
            raise self._failed(error) from error
        if isinstance(result, _CHUNKS):
            yield result
        elif isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping):
            yield from self._iterated(result)
        else:
            raise self._wrong(f"returned {_described(result)}")

    def _iterated(self, result: Iterable[object]) -> Iterator[Chunk]:
        try:
            for chunk in result:
                if not isinstance(chunk, _CHUNKS):
                    raise self._wrong(f"gave {_described(chunk)} in {_described(result)}")
                yield chunk
        except DrivetrainError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def _wrong(self, what: str) -> StageError:
        return StageError(
            f"the function {what}", hint="return a DataFrame, a pyarrow Table, or an iterator of those", where=self.name
        )

    def _failed(self, error: Exception) -> StageError:
        place = ""
        for frame in traceback.extract_tb(error.__traceback__):
            path = Path(frame.filename)
            if path.is_relative_to(self.project) and "site-packages" not in path.parts:
                place = f" at {path.relative_to(self.project)}:{frame.lineno}"
        return StageError(f"the function raised {type(error).__name__}{place}: {error}", where=self.name)


def loader(project: Path, name: str, parameters: Mapping[str, Any]) -> Loader:
    """The function named `FILE.py:FUNCTION`, ready to be called.

    Raises `StageError` if it cannot be imported, or needs a parameter that is not given.
    """
    function = load_function(project, name)
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise StageError("the function has no signature", hint="name a plain Python function", where=name) from error
    named = {entry.name: entry for entry in signature.parameters.values() if entry.kind in _BY_NAME}
    takes_all = any(entry.kind is entry.VAR_KEYWORD for entry in signature.parameters.values())
    bounds = frozenset(named) & {"start", "end"}
    chosen = {key: value for key, value in parameters.items() if (takes_all or key in named) and key not in bounds}
    positional = [entry.name for entry in signature.parameters.values() if entry.kind is entry.POSITIONAL_ONLY]
    missing = [key for key, entry in named.items() if entry.default is entry.empty and key not in {*chosen, *bounds}]
    if missing or positional:
        wanted = ", ".join(repr(key) for key in [*positional, *missing])
        raise StageError(
            f"the function needs {wanted}, which data.parameters does not give by name",
            hint="add it to data.parameters, or give it a default", where=name,
        )  # fmt: skip
    return Loader(project, name, function, chosen, frozenset(named), bounds)


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _described(value: object) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    return "None" if value is None else f"a {name}"
