"""Checks: expectations on a frame, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One expectation and its result, in words: "column `column` `expectation`" reads as a sentence.

    `column` is empty where the expectation is about the whole table. `unexpected` (rows) and `percent` (of the rows
    that were looked at) are None where the expectation is not about single rows. `rows` are the positions (0-based,
    ascending) of its offending rows if it failed, at most as many as are kept.
    """

    expectation: str
    column: str
    passed: bool
    detail: str
    unexpected: int | None
    percent: float | None
    rows: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`lines` stand in the suite's order; `rows` are the positions (0-based, ascending) of the offending rows of all
    lines together; `document` is the library's own JSON form, without times, ids and long lists of rows."""

    passed: bool
    lines: Sequence[CheckLine]
    rows: Sequence[int]
    document: Mapping[str, Any]


class Checks(Protocol):
    """A library of expectations."""

    def load(self, project: Path, suite: str, label: str) -> Any:
        """The suite named by the definition (`checks/suite.json` or `checks.py:suite`); an empty name gives the least
        that any training needs: rows exist, no label is null. Raises `DefinitionError`, `StageError`."""
        ...

    def run(self, suite: Any, frame: pd.DataFrame, keep_rows: int) -> CheckResult:
        """Checks the frame. An expectation that cannot be evaluated (no such column) has failed, and says why."""
        ...

    def page(self, result: CheckResult, title: str) -> str:
        """The result as one self-contained HTML page."""
        ...
