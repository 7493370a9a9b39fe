"""The training data's expectations, held against live traffic: those of a Great Expectations suite that speak of single rows.

    checks = LiveChecks.of(suite, served=["airline", "hour", "temp"])
    found = checks.failing(columns, rows)        # which rows break any; how many were seen and broken by each
    checks.verdicts(seen, broken)                # over a window: the sums of those counts

A suite is the library's own JSON, or a validation result with the expectations in it; the library itself is not needed.
What speaks of the whole table (row counts, means, uniqueness, order) says nothing of a window of requests, and columns that
are not served (the label, the key) are not there: both are left out, and named in `left_out`.

A value that is missing meets every expectation but `not_be_null`, as in Great Expectations. Live values come from JSON and
not from a typed table: 5 is as good as 5.0, and a value that cannot be compared with what is expected breaks the expectation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_LONGEST = 4096
"""Characters of a text that is matched; a longer one breaks every expectation about its form, so that no caller can keep
the monitor busy."""

_NULL, _NOT_NULL = "expect_column_values_to_be_null", "expect_column_values_to_not_be_null"
_OF_ROWS = ("expect_column_values_", "expect_column_value_lengths_")
_OF_SEVERAL = ("expect_column_pair_values_", "expect_multicolumn_", "expect_select_column_values_")
_OF_COLUMNS = ("unique", "increasing", "decreasing", "z_scores", "outliers")
"""What is expected of values in the light of all others."""

_Meets = Callable[[np.ndarray], np.ndarray]
"""Which values, none of them missing, are as expected."""


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation about the values of one column."""

    expectation: str
    """Its type in Great Expectations' words."""
    column: str
    arguments: Mapping[str, Any]
    """Its other arguments."""
    mostly: float
    """Share of the rows that have to meet it, over a window."""
    severity: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An expectation that is not held against live traffic, and why."""

    expectation: str
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class Failing:
    """What some rows look like; `seen` and `broken` add up over batches."""

    rows: np.ndarray
    """Whether each row breaks any check, shape (rows,)."""
    seen: np.ndarray
    """By check: rows that it judges, shape (checks,)."""
    broken: np.ndarray
    """By check: rows that break it, shape (checks,)."""


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """One check over a window."""

    check: Check
    seen: int
    broken: int

    @property
    def share(self) -> float:
        """Share of the rows that meet it; 1 without any."""
        return (self.seen - self.broken) / self.seen if self.seen else 1.0

    @property
    def passed(self) -> bool:
        """Whether as many rows meet it as have to."""
        return self.share >= self.check.mostly


class LiveChecks:
    """The checks of one model."""

    __slots__ = ("_meets", "checks", "left_out")

    def __init__(self, checks: Sequence[Check], left_out: Sequence[LeftOut]) -> None:
        """Of checks that `of` has read."""
        self.checks = tuple(checks)
        self.left_out = tuple(left_out)
        self._meets = [_meets(check) for check in self.checks]

    @classmethod
    def of(cls, suite: Mapping[str, Any], served: Collection[str]) -> LiveChecks:
        """Those expectations of a suite's or a validation result's JSON that make sense, on the columns that are served."""
        checks: list[Check] = []
        left_out: list[LeftOut] = []
        parameters = suite.get("suite_parameters") or {}
        for entry in _entries(suite):
            read = _read(entry, served, parameters)
            if isinstance(read, Check):
                checks.append(read)
            else:
                left_out.append(read)
        return cls(checks, left_out)

    def failing(self, columns: Mapping[str, np.ndarray], rows: int) -> Failing:
        """What so many rows look like: columns of shape (rows,), of numbers or of objects; one that is not there is missing
        in every row. None and NaN are missing."""
        found = Failing(np.zeros(rows, dtype=bool), *np.zeros((2, len(self.checks)), dtype=np.int64))
        nothing = np.full(rows, None, dtype=object)
        there: dict[str, np.ndarray] = {}
        for place, (check, meets) in enumerate(zip(self.checks, self._meets, strict=True)):
            values = columns.get(check.column, nothing)
            if check.column not in there:
                there[check.column] = ~missing_of(values)
            present = there[check.column]
            if meets is None:
                seen, bad = rows, present == (check.expectation == _NULL)
            else:
                seen, bad = int(np.count_nonzero(present)), np.zeros(rows, dtype=bool)
                bad[present] = ~meets(values[present])
            found.seen[place], found.broken[place] = seen, np.count_nonzero(bad)
            found.rows[bad] = True
        return found

    def verdicts(self, seen: np.ndarray, broken: np.ndarray) -> tuple[CheckVerdict, ...]:
        """Each check over a window, given the sums of `Failing.seen` and `Failing.broken`."""
        each = zip(self.checks, seen.tolist(), broken.tolist(), strict=True)
        return tuple(CheckVerdict(check, rows, bad) for check, rows, bad in each)


def missing_of(values: np.ndarray) -> np.ndarray:
    """Which values are None or NaN, shape (rows,)."""
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    if values.dtype.kind != "O":
        return np.zeros(len(values), dtype=bool)
    return np.array([value is None or (isinstance(value, float) and value != value) for value in values.tolist()], bool)


def _entries(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    results = suite.get("results")
    return list(suite["expectations"]) if results is None else [result["expectation_config"] for result in results]


def _read(entry: Mapping[str, Any], served: Collection[str], parameters: Mapping[str, Any]) -> Check | LeftOut:
    kind = str(entry["type"])
    arguments = {name: _resolved(value, parameters) for name, value in (entry.get("kwargs") or {}).items()}
    column = str(arguments.pop("column", ""))
    mostly = arguments.pop("mostly", None)
    check = Check(
        kind, column, arguments, 1.0 if mostly is None else float(mostly), str(entry.get("severity") or "critical")
    )
    reason = _why_not(check, served)
    return LeftOut(kind, column, reason) if reason else check


def _resolved(value: Any, parameters: Mapping[str, Any]) -> Any:
    """The value of a suite's parameter for `{"$PARAMETER": name}`, and itself for all else."""
    if isinstance(value, dict) and "$PARAMETER" in value:
        return parameters.get(value["$PARAMETER"], value)
    return value


def _why_not(check: Check, served: Collection[str]) -> str:
    """Why the check is not held against live traffic; nothing if it is."""
    if check.expectation.startswith(_OF_SEVERAL):
        return "compares columns, which is not done live"
    if not check.expectation.startswith(_OF_ROWS) or check.expectation.endswith(_OF_COLUMNS):
        return "speaks of the table, not of a row"
    if check.column not in served:
        return "the column is not served"
    if check.arguments.get("row_condition"):
        return "holds under a condition, which is not evaluated live"
    try:
        _meets(check)
    except (KeyError, TypeError, ValueError, re.error) as error:
        return error.args[0] if type(error) is _NotLive else "its arguments cannot be read"
    return ""


class _NotLive(ValueError):
    """The expectation is not evaluated live; the message says why."""


def _meets(check: Check) -> _Meets | None:
    """How values are judged; None where it is whether they are missing. Raises `_NotLive`, and what bad arguments raise."""
    arguments, kind = check.arguments, check.expectation
    if kind in (_NULL, _NOT_NULL):
        return None
    if kind == "expect_column_values_to_be_between":
        return _number_between(_Bounds.of(arguments))
    if kind in ("expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set"):
        return _in_set(arguments["value_set"], wanted="not_be" not in kind)
    if kind in ("expect_column_values_to_be_of_type", "expect_column_values_to_be_in_type_list"):
        return _of_types([arguments["type_"]] if "type_" in arguments else arguments["type_list"])
    return _of_texts(_form(kind, arguments))


@dataclass(frozen=True, slots=True)
class _Bounds:
    least: float
    most: float
    strict: tuple[bool, bool]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> _Bounds:
        ends = arguments.get("min_value"), arguments.get("max_value")
        if not all(end is None or isinstance(end, int | float) for end in ends):
            raise _NotLive("its bounds are no numbers")
        least, most = -np.inf if ends[0] is None else ends[0], np.inf if ends[1] is None else ends[1]
        return cls(least, most, (bool(arguments.get("strict_min")), bool(arguments.get("strict_max"))))

    def hold(self, values: Any) -> Any:
        """Whether a number, or each of an array, lies within."""
        above = values > self.least if self.strict[0] else values >= self.least
        return above & (values < self.most if self.strict[1] else values <= self.most)


def _number_between(bounds: _Bounds) -> _Meets:
    def meets(values: np.ndarray) -> np.ndarray:
        if values.dtype.kind in "fiub":
            return np.asarray(bounds.hold(values))
        each = (isinstance(value, int | float) and bounds.hold(value) for value in values.tolist())
        return np.fromiter(each, bool, len(values))

    return meets


def _in_set(allowed: Sequence[Any], *, wanted: bool) -> _Meets:
    known = frozenset(allowed)
    known_numbers = [value for value in allowed if isinstance(value, int | float)]

    def meets(values: np.ndarray) -> np.ndarray:
        if values.dtype.kind in "fiub":
            return np.asarray(np.isin(values, known_numbers) == wanted)
        return np.fromiter((_among(value, known) == wanted for value in values.tolist()), bool, len(values))

    return meets


def _among(value: Any, known: frozenset[Any]) -> bool:
    try:
        return value in known
    except TypeError:  # a list or an object
        return False


_FAMILIES = {
    "text": re.compile(r"str(ing)?|StringDtype|(VAR)?CHAR|TEXT"),
    "whole": re.compile(r"u?int(8|16|32|64)?|U?Int(8|16|32|64)(Dtype)?|INTEGER|BIGINT|SMALLINT"),
    "number": re.compile(r"float(16|32|64)?|Float(32|64)(Dtype)?|FLOAT|DOUBLE|NUMERIC|DECIMAL"),
    "boolean": re.compile(r"bool|boolean|bool_|BOOL|BOOLEAN|BooleanDtype"),
}


def _of_types(names: Sequence[str]) -> _Meets:
    families = set()
    for name in names:
        found = [family for family, pattern in _FAMILIES.items() if pattern.fullmatch(name)]
        if not found:
            raise _NotLive(f"the type {name} cannot be told from a request")
        families.update(found)

    def one(value: Any) -> bool:
        if isinstance(value, str):
            return "text" in families
        if not isinstance(value, int | float):
            return False
        if isinstance(value, bool):
            return "boolean" in families
        return "number" in families or ("whole" in families and value == value // 1)

    def meets(values: np.ndarray) -> np.ndarray:
        # An array of numbers has forgotten which of its noughts and ones were false and true.
        truths = values.dtype.kind in "fiu" and "boolean" in families
        each = (one(value) or (truths and value in (0, 1)) for value in values.tolist())
        return np.fromiter(each, bool, len(values))

    return meets


def _form(kind: str, arguments: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a text has the form that is expected. A pattern is searched for, not matched from the beginning."""
    if kind == "expect_column_value_lengths_to_equal":
        length = int(arguments["value"])
        return lambda text: len(text) == length
    if kind == "expect_column_value_lengths_to_be_between":
        bounds = _Bounds.of(arguments)
        return lambda text: bool(bounds.hold(len(text)))
    one = kind in ("expect_column_values_to_match_regex", "expect_column_values_to_not_match_regex")
    if not one and kind not in (
        "expect_column_values_to_match_regex_list",
        "expect_column_values_to_not_match_regex_list",
    ):
        raise _NotLive("is not evaluated live")
    patterns = [re.compile(text) for text in ([arguments["regex"]] if one else arguments["regex_list"])]
    wanted = "_not_match_" not in kind
    every = all if wanted and arguments.get("match_on") == "all" else any

    def form(text: str) -> bool:
        return len(text) <= _LONGEST and every(pattern.search(text) is not None for pattern in patterns) == wanted

    return form


def _of_texts(form: Callable[[str], bool]) -> _Meets:
    def one(value: Any) -> bool:
        if isinstance(value, float) and value.is_integer():
            # A whole number may have been an integer in the training data.
            return form(str(value)) or form(str(int(value)))
        if isinstance(value, int) and value.bit_length() > _LONGEST:
            return False
        return isinstance(value, str | int | float) and form(str(value))

    def meets(values: np.ndarray) -> np.ndarray:
        listed = values.tolist()
        try:
            known = {value: one(value) for value in set(listed)}
        except TypeError:  # a list or an object among them
            return np.fromiter((one(value) for value in listed), bool, len(listed))
        return np.fromiter((known[value] for value in listed), bool, len(listed))

    return meets
