"""`result.json`: how a `CheckResult` is stored, and read back where the library behind it is not imported.

The file is the library's own document; the lines in words stand in its free part, under `meta.drivetrain`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from drivetrain.backends.checks import CheckLine, CheckResult

_WIDEST = 48
"""Characters to which the columns of the table are aligned; a longer text pushes its own line aside."""


def to_bytes(result: CheckResult) -> bytes:
    """The bytes of `result.json`; equal results give equal bytes."""
    lines = [
        {
            "expectation": line.expectation,
            "column": line.column,
            "passed": line.passed,
            "detail": line.detail,
            "unexpected": line.unexpected,
            "percent": line.percent,
        }
        for line in result.lines
    ]
    meta = {**result.document.get("meta", {}), "drivetrain": {"passed": result.passed, "lines": lines}}
    document = {**result.document, "meta": meta}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def table_rows(document: bytes) -> list[CheckLine]:
    """The lines of a `result.json`, without the positions of rows. Raises `ValueError` if it is not such a file."""
    try:
        return [CheckLine(**line) for line in json.loads(document)["meta"]["drivetrain"]["lines"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("not a result.json of the stage validate") from error


def sentence(line: CheckLine) -> str:
    """The expectation with its column: "column `temp` between -40 and 50"."""
    return f"column `{line.column}` {line.expectation}" if line.column else line.expectation


def format_lines(lines: Sequence[CheckLine]) -> str:
    """A table in plain text, one line an expectation: state, column, expectation, detail."""
    cells = [("ok" if line.passed else "FAILED", line.column, line.expectation, line.detail) for line in lines]
    widths = [min(_WIDEST, max((len(row[place]) for row in cells), default=0)) for place in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row[:3], widths, strict=True)), row[3]]).rstrip()
        for row in cells
    )
