"""Validate: the training frame is judged by a suite of expectations; a frame that fails is not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.backends.checks import CheckLine, CheckResult, Checks
from drivetrain.backends.checks.result import format_lines, sentence, to_bytes
from drivetrain.definition.parts import Validate
from drivetrain.records import Artifact, ValidateOutputs, Verdict
from drivetrain.stages import StageContext

_NAMED = 3
"""So many failed expectations are named in the verdict; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is judged: the training rows with their features."""

    frame: Artifact


def run(context: StageContext, inputs: Inputs, *, checks: Checks) -> ValidateOutputs:
    """The verdict on the frame, with `result.json`, `result.html` and, if rows failed, `offending.parquet`.

    Raises `DefinitionError` if the suite's file is wrong, `StageError` if its function is.
    """
    part = context.definition.validation
    suite = checks.load(context.project, part.suite if part else "", context.definition.data.label)
    frame = pq.read_table(context.objects.get(inputs.frame, context.work / "frame") / "frame.parquet")
    context.say(f"checking {frame.num_rows:,} rows with {part.suite if part else 'the built-in suite'}")
    keep_rows = part.keep_rows if part else Validate.model_fields["keep_rows"].default
    result = checks.run(suite, frame.to_pandas(), keep_rows)
    print(format_lines(result.lines))
    verdict = _verdict(result.lines, frame.num_rows)
    return ValidateOutputs(verdict, _store(context, checks, result, frame))


def _verdict(lines: Sequence[CheckLine], rows: int) -> Verdict:
    failed = [line for line in lines if not line.passed]
    count = f"{len(lines)} expectation{'' if len(lines) == 1 else 's'}"
    if not failed:
        return Verdict(True, f"{count} held for {rows:,} rows")
    named = "; ".join(f"{sentence(line)}: {line.detail}" for line in failed[:_NAMED])
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return Verdict(False, f"{len(failed)} of {count} failed: {named}{more}", exit_code=4)


def _store(context: StageContext, checks: Checks, result: CheckResult, frame: pa.Table) -> Artifact:
    directory = context.work / "validation"
    directory.mkdir()
    (directory / "result.json").write_bytes(to_bytes(result))
    page = checks.page(result, f"{context.definition.name}: training frame")
    (directory / "result.html").write_text(page, encoding="utf-8")
    if result.rows:
        # Without pandas' own metadata, which names library versions.
        rows = _offending(result, frame).replace_schema_metadata(None)
        pq.write_table(rows, directory / "offending.parquet", compression="zstd")
    metadata = {
        "expectations": len(result.lines),
        "failed": sum(not line.passed for line in result.lines),
        "rows": frame.num_rows,
        "offending": len(result.rows),
    }
    return context.objects.put("validation", directory, metadata)


def _offending(result: CheckResult, frame: pa.Table) -> pa.Table:
    """The offending rows in the frame's order, each with the expectations that it failed."""
    reasons: dict[int, list[str]] = {row: [] for row in result.rows}
    for line in result.lines:
        for row in line.rows:
            reasons[row].append(sentence(line))
    texts = pa.array(["; ".join(reasons[row]) for row in result.rows], pa.string())
    return frame.take(pa.array(result.rows, pa.int64())).append_column("failed_expectations", texts)
