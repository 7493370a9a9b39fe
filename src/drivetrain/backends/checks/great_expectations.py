"""Checks by Great Expectations 1.x: suites as its JSON files or as functions that return an `ExpectationSuite`."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drivetrain.backends.checks import CheckLine, CheckResult, Checks, page, words
from drivetrain.errors import DefinitionError, Problem, StageError
from drivetrain.usercode import load_function

# Usage reports leave the machine unless this is said before the import.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations as gx
import great_expectations.expectations as gxe
from great_expectations.exceptions import ExpectationNotFoundError, GreatExpectationsError
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.registry import list_registered_expectation_implementations

_ROW_COUNTS = ("expect_table_row_count_to_be_between", "expect_table_row_count_to_equal")
# Whole lists of values and row numbers: the partial lists beside them are enough for a reader.
_LONG = ("unexpected_list", "unexpected_index_list", "unexpected_index_query", "unexpected_rows", "missing_list")

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class LoadedSuite:
    """A suite whose expectations are known to be valid, in their order."""

    name: str
    expectations: Sequence[Expectation]
    parameters: Mapping[str, Any]


class GreatExpectations:
    """Great Expectations on a pandas frame, in an ephemeral context that writes no files."""

    def load(self, project: Path, suite: str, label: str) -> LoadedSuite:
        if not suite:
            return LoadedSuite("built-in", _least(label), {})
        loaded = _from_function(project, suite) if ".py:" in suite else _from_file(project, suite)
        if not loaded.expectations:
            raise DefinitionError([Problem(suite.partition(":")[0], 0, "expectations", "the suite expects nothing")])
        return loaded

    def run(self, suite: LoadedSuite, frame: pd.DataFrame, keep_rows: int) -> CheckResult:
        expectations = [*suite.expectations, *_of_an_empty_frame(suite, frame)]
        outcome = _validate(suite, expectations, frame.reset_index(drop=True))
        entries, lines = [], []
        for expectation, found in zip(expectations, _in_order(outcome.results), strict=True):
            offending = (found.result or {}).get("unexpected_index_list") or ()
            found.result = {name: value for name, value in (found.result or {}).items() if name not in _LONG}
            entry = _entry(found)
            _steady(entry["result"], _arguments(expectation), frame)
            rows = () if entry["success"] else tuple(sorted({int(row) for row in offending})[:keep_rows])
            entries.append(entry)
            lines.append(_line(expectation, entry, rows, [str(name) for name in frame.columns]))
        return CheckResult(
            passed=all(line.passed for line in lines),
            lines=tuple(lines),
            rows=tuple(sorted({row for line in lines for row in line.rows})),
            document=_document(suite, entries),
        )

    def page(self, result: CheckResult, title: str) -> str:
        return page.render(result, title)


def open_checks() -> Checks:
    """Great Expectations, ready to load suites."""
    return GreatExpectations()


def _least(label: str) -> list[Expectation]:
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectColumnToExist(column=label),
        gxe.ExpectColumnValuesToNotBeNull(column=label),
    ]


def _from_function(project: Path, name: str) -> LoadedSuite:
    function = load_function(project, name)
    try:
        suite = function()
    except Exception as error:
        raise StageError(f"raised {type(error).__name__}: {_one_line(error)}", where=name) from error
    if not isinstance(suite, gx.ExpectationSuite):
        raise StageError(
            f"returned {type(suite).__name__}, not a great_expectations.ExpectationSuite",
            hint="return gx.ExpectationSuite(name=..., expectations=[...])",
            where=name,
        )
    _check_parameters(suite, name.partition(":")[0])
    return LoadedSuite(suite.name, list(suite.expectations), dict(suite.suite_parameters))


def _from_file(project: Path, file: str) -> LoadedSuite:
    try:
        text = (project / file).read_text(encoding="utf-8")
        document = json.loads(text)
    except OSError as error:
        raise DefinitionError([Problem(file, 0, "", f"cannot be read: {error.strerror}")]) from error
    except ValueError as error:
        line = getattr(error, "lineno", 0)
        raise DefinitionError([Problem(file, line, "", f"is not JSON: {getattr(error, 'msg', error)}")]) from error
    entries = document.get("expectations") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        hint = 'ExpectationSuite.to_json_dict() gives {"name": ..., "expectations": [...]}'
        raise DefinitionError([Problem(file, 1, "expectations", "a list of expectations is wanted", hint)])
    lines, expectations, problems = _lines(text, len(entries)), [], []
    for index, entry in enumerate(entries):
        built = _build(file, lines[index], f"expectations[{index}]", entry)
        if isinstance(built, Problem):
            problems.append(built)
        else:
            expectations.append(built)
    if problems:
        raise DefinitionError(problems)
    parameters = document.get("suite_parameters") or {}
    suite = gx.ExpectationSuite(
        name=str(document.get("name") or Path(file).stem), expectations=expectations, suite_parameters=parameters
    )
    _check_parameters(suite, file)
    return LoadedSuite(suite.name, expectations, parameters)


def _lines(text: str, count: int) -> list[int]:
    """The line on which each entry of `"expectations": [...]` begins, from 1; zeros if they cannot be told apart."""
    begin = re.search(r'"expectations"\s*:\s*\[', text)
    found: list[int] = []
    position, decoder = begin.end() if begin else len(text), json.JSONDecoder()
    while len(found) < count:
        position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
        found.append(text.count("\n", 0, position) + 1)
        try:
            _, position = decoder.raw_decode(text, position)
        except ValueError:
            return [0] * count
    return found


def _build(file: str, line: int, key: str, entry: Any) -> Expectation | Problem:
    # The suite's own constructor logs and drops an entry that it cannot build; a check must not get lost.
    if not isinstance(entry, dict):
        return Problem(file, line, key, "an expectation with `type` and `kwargs` is wanted")
    if "type" not in entry:
        hint = "Great Expectations 1.x writes `type` for `expectation_type`" if "expectation_type" in entry else ""
        return Problem(file, line, key, "`type` is missing", hint)
    try:
        return ExpectationConfiguration(**{"kwargs": {}, **entry, "id": None}).to_domain_obj()
    except ExpectationNotFoundError:
        near = difflib.get_close_matches(str(entry["type"]), list_registered_expectation_implementations(), 1)
        hint = f"did you mean {near[0]}?" if near else ""
        return Problem(file, line, f"{key}.type", f"no expectation is called {entry['type']}", hint)
    except (GreatExpectationsError, TypeError, ValueError) as error:
        return Problem(file, line, f"{key}.kwargs", f"{entry['type']}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    """The error's message; of a pydantic error each field with its first message."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return " ".join(str(error).split())
    fields: dict[str, str] = {}
    for entry in errors():
        fields.setdefault(".".join(str(part) for part in entry["loc"]), str(entry["msg"]))
    return "; ".join(text if name == "__root__" else f"{name}: {text}" for name, text in fields.items())


def _check_parameters(suite: gx.ExpectationSuite, file: str) -> None:
    problems = [
        Problem(file, 0, "suite_parameters", f"no value for the suite parameter {name}")
        for name in suite.suite_parameter_options
        if name not in suite.suite_parameters
    ]
    if problems:
        raise DefinitionError(problems)


def _of_an_empty_frame(suite: LoadedSuite, frame: pd.DataFrame) -> Iterator[Expectation]:
    """A row count of at least 1, where there are no rows: expectations on columns hold of nothing."""
    for expectation in suite.expectations:
        arguments = _arguments(expectation)
        if expectation.expectation_type in _ROW_COUNTS and (arguments.get("min_value") or arguments.get("value")):
            return
    if len(frame) == 0:
        yield gxe.ExpectTableRowCountToBeBetween(min_value=1)


def _validate(suite: LoadedSuite, expectations: Sequence[Expectation], frame: pd.DataFrame) -> Any:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    # Results come back grouped by column, those that raised first: the id tells which expectation each is of.
    configurations = []
    for position, expectation in enumerate(expectations):
        configuration = expectation.configuration
        configuration.id = f"{position:06d}"
        configurations.append(configuration)
    numbered = gx.ExpectationSuite(name=suite.name, expectations=configurations)
    asset = context.data_sources.add_pandas("drivetrain").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
    try:
        return batch.validate(numbered, result_format="COMPLETE", expectation_parameters=dict(suite.parameters))
    except Exception as error:
        raise StageError(
            f"Great Expectations could not evaluate the suite {suite.name}: {type(error).__name__}: {_one_line(error)}"
        ) from error


def _in_order(results: Sequence[Any]) -> list[Any]:
    return sorted(results, key=lambda result: str(result.expectation_config.id))


def _entry(found: Any) -> dict[str, Any]:
    """One result in Great Expectations' JSON form, without ids and tracebacks (which hold paths of this machine)."""
    entry = plain(found.to_json_dict())
    configuration = entry["expectation_config"]
    configuration.pop("id", None)
    configuration.get("kwargs", {}).pop("batch_id", None)
    entry["exception_info"] = _exception(entry.get("exception_info") or {})
    return dict(entry)


def _steady(result: dict[str, Any], arguments: Mapping[str, Any], frame: pd.DataFrame) -> None:
    """Puts lists of distinct values in order. The library takes them from Python sets: their order, and from a longer
    list the choice of the 20 that are shown, would differ from process to process."""
    column, values = arguments.get("column"), arguments.get("value_set")
    for name, count in (("partial_missing_list", "missing_count"), ("partial_unexpected_list", "unexpected_count")):
        if "element_count" in result or name not in result:
            continue
        if result[count] > _SHOWN and isinstance(values, list) and column in frame:
            wanted = {repr(value): value for value in values}
            seen = {repr(value): value for value in plain(frame[column].dropna().unique())}
            more, less = (wanted, seen) if "missing" in name else (seen, wanted)
            result[name] = [more[key] for key in more.keys() - less.keys()]
        result[name] = sorted(result[name], key=repr)[:_SHOWN]


def _exception(info: Mapping[str, Any]) -> dict[str, Any]:
    # Flat where the expectation itself raised or nothing did, else one entry for each metric that raised.
    parts = [info] if "raised_exception" in info else list(info.values())
    messages = sorted({part["exception_message"] for part in parts if part.get("raised_exception")})
    return {"raised_exception": bool(messages), "exception_message": "; ".join(messages) or None}


def _line(expectation: Expectation, entry: Mapping[str, Any], rows: Sequence[int], columns: Sequence[str]) -> CheckLine:
    kind, arguments = expectation.expectation_type, _arguments(expectation)
    result, error = entry["result"], entry["exception_info"]["exception_message"]
    about_rows = "element_count" in result
    description = expectation.description
    return CheckLine(
        expectation=description or words.wanted(kind, arguments),
        column=str(arguments.get("column") or ""),
        passed=entry["success"],
        detail=words.not_evaluated(error, columns) if error else words.found(kind, arguments, result, entry["success"]),
        unexpected=result.get("unexpected_count") if about_rows else None,
        percent=result.get("unexpected_percent") if about_rows else None,
        rows=rows,
    )


def _arguments(expectation: Expectation) -> dict[str, Any]:
    """The expectation's own fields that have a value. Unlike its configuration it knows defaults set by a subclass."""
    names = [name for name in expectation.__fields__ if name not in Expectation.__fields__ and name != "batch_id"]
    values = {name: plain(getattr(expectation, name)) for name in names}
    condition = getattr(expectation, "row_condition", None)
    if condition is not None:
        values["row_condition"] = getattr(condition, "pass_through_filter", None) or str(repr(condition)).strip("'")
    return {name: value for name, value in values.items() if value is not None}


def _document(suite: LoadedSuite, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `ExpectationSuiteValidationResult.to_json_dict()` gives, without the batch and its times."""
    held = sum(entry["success"] for entry in entries)
    return {
        "success": held == len(entries),
        "suite_name": suite.name,
        "suite_parameters": plain(dict(suite.parameters)),
        "results": list(entries),
        "statistics": {
            "evaluated_expectations": len(entries),
            "successful_expectations": held,
            "unsuccessful_expectations": len(entries) - held,
            "success_percent": 100.0 * held / len(entries),
        },
        "meta": {"great_expectations_version": gx.__version__},
        "id": None,
    }


def plain(value: Any) -> Any:
    """JSON-ready values: NumPy's and pandas' own become Python's, times ISO text, what is no number None."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(entry) for entry in value), key=repr)
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "to_json_dict") or hasattr(value, "dict"):
        return plain(value.to_json_dict() if hasattr(value, "to_json_dict") else value.dict())
    return str(value)
