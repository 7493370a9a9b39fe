"""What belongs to one prediction while it runs: the lines it prints, the metrics it records.

A runner writes to `sys.stdout` and calls `record_metric` without saying which prediction it means. With one prediction at a time it is
the one that runs, from whichever thread; with several, a context variable tells.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TextIO

_SEGMENT = re.compile(r"[a-zA-Z][a-zA-Z0-9]*(_[a-zA-Z0-9]+)*")
_KINDS = (bool, int, float, str, list, dict)
_LONGEST, _DEEPEST = 128, 4
_MOST = 1024 * 1024
_CUT = "\n(the rest is in the replica's log)\n"


class Metrics:
    """Cog's `scope.metrics`: values by name, of a type that stays, replaced or accumulated."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def record(self, key: str, value: Any, mode: str | None = None) -> None:
        """Keeps a value; `mode` is "replace" (default), "incr" or "append"; a value of None removes it."""
        _check(key)
        if value is None:
            self.delete(key)
        elif not isinstance(value, _KINDS):
            kind = type(value).__name__
            raise TypeError(f"Unsupported metric value type: {kind}. Expected bool, int, float, str, list, or dict.")
        elif mode == "append":
            self._values[key] = [*self._list(key), value]
        elif mode == "incr":
            self._values[key] = self._number(key, value) + value
        elif mode in (None, "replace"):
            self._same_kind(key, value)
            self._values[key] = value
        else:
            raise ValueError(f"Invalid metric mode: '{mode}'. Expected 'replace', 'incr', or 'append'.")

    def delete(self, key: str) -> None:
        """Forgets a value, after which another type may be recorded under its name."""
        self._values.pop(key, None)

    __setitem__ = record
    __delitem__ = delete

    def nested(self) -> dict[str, Any]:
        """The values, with dots in names as nested objects."""
        found: dict[str, Any] = {}
        for key, value in self._values.items():
            *parents, last = key.split(".")
            place = found
            for parent in parents:
                inner = place.get(parent)
                if not isinstance(inner, dict):
                    inner = place[parent] = {}
                place = inner
            place[last] = value
        return found

    def _same_kind(self, key: str, value: Any) -> None:
        known = self._values.get(key)
        if known is not None and type(known) is not type(value):
            was, now = type(known).__name__, type(value).__name__
            raise TypeError(f"Metric '{key}' has type {was}, cannot set to {now} without deleting first")

    def _list(self, key: str) -> list[Any]:
        known = self._values.get(key, [])
        return known if isinstance(known, list) else [known]

    def _number(self, key: str, value: Any) -> Any:
        known = self._values.get(key, 0)
        for one in (known, value):
            if isinstance(one, bool) or not isinstance(one, int | float):
                raise TypeError(f"Metric '{key}' is no number, it cannot be incremented")
        return known


class Scope:
    """One prediction's lines and metrics. `told` is called with each piece of text, if the caller wants to follow it."""

    __slots__ = ("_metrics", "_size", "context", "lines", "told")

    def __init__(self, told: Callable[[str], None] | None = None, context: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.told = told
        self.context: dict[str, str] = dict(context) if context else {}
        self._size = 0
        self._metrics: Metrics | None = None

    def write(self, text: str) -> None:
        """Keeps what was printed, as far as it is of a size that goes into an answer."""
        self._size += len(text)
        if self._size <= _MOST:
            self.lines.append(text)
            if self.told is not None:
                self.told(text)
        elif self.lines and self.lines[-1] is not _CUT:
            self.lines.append(_CUT)

    @property
    def metrics(self) -> Metrics:
        """Where metrics are recorded."""
        if self._metrics is None:
            self._metrics = Metrics()
        return self._metrics

    def record_metric(self, key: str, value: Any, mode: str | None = None) -> None:
        """The same as `metrics.record`."""
        self.metrics.record(key, value, mode)

    @property
    def logs(self) -> str:
        """All that was printed."""
        return sendable("".join(self.lines))

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The recorded metrics."""
        return self._metrics.nested() if self._metrics is not None else {}

    @property
    def untouched(self) -> bool:
        """Whether nothing was given, printed or recorded, so that another prediction can have this scope."""
        return not self.lines and self._metrics is None and not self.context


_inner: ContextVar[Scope | None] = ContextVar("prediction", default=None)
_outer: list[Scope | None] = [None]


def current() -> Scope:
    """The scope of the prediction that calls this; one that nobody reads where there is none."""
    return _inner.get() or _outer[0] or Scope()


def enter(scope: Scope | None) -> None:
    """Says which prediction runs, where there is one at a time."""
    _outer[0] = scope


def enter_task(scope: Scope | None) -> None:
    """Says which prediction the current asyncio task is."""
    _inner.set(scope)


class Tee:
    """Stands for `sys.stdout` or `sys.stderr`: what a prediction prints goes to its scope, and everything to the process's log."""

    def __init__(self, behind: TextIO) -> None:
        self._behind = behind

    def write(self, text: str) -> int:
        """Keeps the text with the prediction that prints it."""
        scope = _inner.get() or _outer[0]
        if scope is not None:
            scope.write(text)
        return self._behind.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def sendable(text: str) -> str:
    """The text without what UTF-8 has no form for: lone surrogates, as the names of files may hold them."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def install() -> None:
    """Puts a `Tee` before the process's standard output and error. What is printed is in the log at once: the process may die next."""
    os.register_at_fork(
        after_in_child=lambda: enter(None)
    )  # a child's lines are not to be sent on its parent's connection
    streams: Any = sys
    for stream in (streams.stdout, streams.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    streams.stdout, streams.stderr = Tee(sys.stdout), Tee(sys.stderr)


def _check(key: str) -> None:
    if key == "predict_time":
        raise ValueError("'predict_time' is reserved by the runtime")
    if key.startswith("cog."):
        raise ValueError("the 'cog.' prefix is reserved for system metrics")
    if len(key) > _LONGEST:
        raise ValueError(f"metric name must be {_LONGEST} characters or fewer (got {len(key)} characters)")
    segments = key.split(".")
    if len(segments) > _DEEPEST:
        raise ValueError(f"metric name must have at most {_DEEPEST} dot-separated segments (got {len(segments)})")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(
                f"metric name segment '{segment}' must start with a letter and have only letters, digits "
                "and single underscores between them"
            )
