"""Evaluate: the gate. The hold-out's metric against the minimum and the champion, with what stands behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.backends.tracking import Predictor, Tracking
from drivetrain.definition.parts import Evaluate
from drivetrain.engines import bootstrap, metrics
from drivetrain.engines.bootstrap import Interval
from drivetrain.engines.metrics import Metric
from drivetrain.engines.watched import watched
from drivetrain.errors import DataError, StageError
from drivetrain.records import Artifact, EvaluateOutputs, Reference, Scalar, Verdict
from drivetrain.stages import StageContext, frame

_REFUSED = 3
_FEW_ROWS = 30
_MOST_VALUES = 50
"""So many values of a slicing column are given, those with the most rows."""
_DIGITS = 12
"""Significant digits kept: the last ones depend on how many threads summed."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The candidate, the run that trained it, and the serving model if there is one."""

    frame: Artifact
    model: Artifact
    tracked: Reference
    champion: Artifact | None


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidate's value with its interval, and the rival's."""

    value: float
    interval: Interval
    champion: float | None = None
    gain: float | None = None
    """By how much the candidate is better, in the metric's unit."""
    gain_interval: Interval = field(default_factory=lambda: Interval(math.nan, math.nan))
    incomparable: str = ""
    """Why a champion could not be compared with."""


def run(context: StageContext, inputs: Inputs, *, tracking: Tracking) -> EvaluateOutputs:
    """The verdict (exit code 3 if the candidate is refused) and the report behind it.

    A champion that cannot be applied to the hold-out is left out of the decision, and the verdict says so. Raises
    `DataError` if the hold-out does not define the metric, `StageError` if the model does not suit the metric, or fails.
    """
    rules = context.definition.evaluate
    rule = metrics.metric(rules.metric)
    read = frame.read(context.objects.get(inputs.frame, context.work / "frame"))
    parts = frame.divide(read, rules.holdout, context.definition.data.label_delay)
    rows = read.rows[parts.holdout]
    context.say(f"judging by {rule.name} on {len(rows):,} rows")
    model = tracking.load(context.objects.get(inputs.model, context.work / "candidate"))
    truth, prediction = _apply(model, rule, rows, read.label)
    metrics.require_defined(rule, truth)
    # Only now: loading the champion may bring other versions of the same user modules.
    rival, why_not = _rival(context, inputs.champion, rules, tracking, rule, rows, read.label, model)
    judged = _judge(rule, rules.resamples, truth, prediction, rival, why_not)
    verdict = _verdict(rule, rules, judged)
    context.say(verdict.reason)
    directory = context.work / "evaluation"
    directory.mkdir()
    everything = {row.name: _number(row.value(truth, prediction)) for row in metrics.of_task(rule.task)}
    slices = _slices(rule, rules.slices, rows, truth, prediction)
    document = {
        "task": rule.task,
        "classes": None if model.classes is None else list(model.classes),
        "metric": {"name": rule.name, "greater_is_better": rule.greater_is_better, "minimum": rules.minimum}
        | _with_interval(judged.value, judged.interval),
        "metrics": everything,
        "champion": _champion_part(inputs.champion, rules, judged),
        "holdout": _holdout_part(read, rows, int(parts.train.sum()), parts.embargoed),
        "slices": slices,
        "resamples": rules.resamples,
        "passed": verdict.passed,
        "reason": verdict.reason,
    }
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (directory / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    _write_reference(directory / "reference.json", read, parts.train, model.classes, rules, truth, prediction)
    _draw(directory, model, truth, prediction, rival, read.label)
    tracking.log_evaluation(inputs.tracked.id, _logged(rule, everything, judged), directory)
    _write_predictions(directory / "predictions.parquet", read, rows, prediction, model.classes)
    metadata: dict[str, Scalar] = {
        "metric": rule.name,
        "value": _number(judged.value),
        "low": _number(judged.interval.low),
        "high": _number(judged.interval.high),
        "champion": _number(judged.champion),
        "rows": len(rows),
        "passed": verdict.passed,
    }
    return EvaluateOutputs(verdict, context.objects.put("evaluation", directory, metadata))


def _apply(model: Predictor, rule: Metric, rows: pd.DataFrame, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The truth and the model's predictions, in the form that the metrics take."""
    task = "regression" if model.classes is None else "classification"
    if task != rule.task:
        suited = ", ".join(row.name for row in metrics.of_task(task))
        raise StageError(
            f"{rule.name} judges a {rule.task}, and the model is a {task}", hint=f"evaluate.metric: one of {suited}"
        )
    prediction = model.predict(rows)
    bad = int(np.sum(~np.isfinite(prediction).reshape(len(rows), -1).all(axis=1)))
    if bad:
        raise StageError(f"the model gives no number for {bad:,} of {len(rows):,} rows of the hold-out")
    labels = rows[label].to_numpy()
    if model.classes is not None:
        return metrics.positions(labels, model.classes), prediction
    return labels.astype(np.float64), prediction


def _rival(
    context: StageContext, champion: Artifact | None, rules: Evaluate, tracking: Tracking, rule: Metric, rows: pd.DataFrame,
    label: str, candidate: Predictor,
) -> tuple[np.ndarray | None, str]:  # fmt: skip
    """The champion's predictions on the same rows, its classes in the candidate's order; or why there are none."""
    if champion is None or not rules.champion.compare:
        return None, ""
    try:
        model = tracking.load(context.objects.get(champion, context.work / "champion"))
        _, prediction = _apply(model, rule, rows, label)
    except (StageError, DataError) as error:
        return None, str(error)
    if model.classes is None or candidate.classes is None:
        return prediction, ""
    if set(model.classes) != set(candidate.classes):
        return None, f"it tells other classes apart: {', '.join(map(str, model.classes))}"
    return prediction[:, [list(model.classes).index(name) for name in candidate.classes]], ""


def _judge(
    rule: Metric, resamples: int, truth: np.ndarray, prediction: np.ndarray, rival: np.ndarray | None, why_not: str
) -> Judged:
    value = rule.value(truth, prediction)
    predictions = [prediction] if rival is None else [prediction, rival]
    drawn = bootstrap.resampled(rule, truth, predictions, resamples=resamples)
    if rival is None:
        return Judged(value, bootstrap.interval(drawn[0]), incomparable=why_not)
    champion = rule.value(truth, rival)
    gains = drawn[0] - drawn[1] if rule.greater_is_better else drawn[1] - drawn[0]
    return Judged(
        value, bootstrap.interval(drawn[0]), champion, rule.difference(value, champion), bootstrap.interval(gains)
    )


def _verdict(rule: Metric, rules: Evaluate, judged: Judged) -> Verdict:
    """One sentence with the numbers, and whether the point estimates pass: intervals inform, they do not decide."""
    reached = rules.minimum is None or rule.difference(judged.value, rules.minimum) >= 0
    kept = judged.gain is None or judged.gain >= -rules.champion.tolerance
    text = f"{rule.name} {_show(judged.value)}{_show_interval(judged.interval)}"
    clauses = []
    if rules.minimum is not None:
        bound = "minimum" if rule.greater_is_better else "most allowed,"
        verb = "meets" if reached else ("is below" if rule.greater_is_better else "is above")
        clauses.append(f"{verb} the {bound} {_show(rules.minimum)}")
    if judged.gain is not None and judged.champion is not None:
        side = "better" if judged.gain > 0 else "worse"
        by = f"is {_show(abs(judged.gain))} {side} than" if judged.gain else "equals"
        difference = _show_interval(judged.gain_interval, "of the gain ")
        allowed = f", more than the {_show(rules.champion.tolerance)} allowed" if not kept else ""
        clauses.append(f"{by} the champion's {_show(judged.champion)}{difference}{allowed}")
    elif judged.incomparable:
        clauses.append(f"cannot be compared with the champion's ({judged.incomparable})")
    link = " and " if reached == kept else " but "
    reason = f"{text} {link.join(clauses)}" if clauses else f"{text}; no minimum is set and no champion serves"
    passed = reached and kept
    return Verdict(passed, reason, exit_code=0 if passed else _REFUSED)


def _show(value: float) -> str:
    return f"{value:.4g}"


def _show_interval(interval: Interval, what: str = "") -> str:
    if math.isnan(interval.low):
        return ""
    return f" (95 % interval {what}{_show(interval.low)} to {_show(interval.high)})"


def _number(value: float | None) -> float | None:
    """The value with the digits that are sure, None where it is not defined."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")


def _with_interval(value: float | None, interval: Interval) -> dict[str, Scalar]:
    return {"value": _number(value), "low": _number(interval.low), "high": _number(interval.high)}


def _champion_part(champion: Artifact | None, rules: Evaluate, judged: Judged) -> dict[str, Any] | None:
    if champion is None or not rules.champion.compare:
        return None
    if judged.champion is None:
        return {"model": champion.digest, "compared": False, "why": judged.incomparable}
    return {
        "model": champion.digest,
        "compared": True,
        "value": _number(judged.champion),
        "tolerance": rules.champion.tolerance,
        "gain": _with_interval(judged.gain, judged.gain_interval),
    }


def _holdout_part(read: frame.Frame, rows: pd.DataFrame, trained: int, embargoed: int) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {"rows": len(rows), "training_rows": trained, "embargoed_rows": embargoed}
    if read.times is not None:
        times = read.times[rows.index.to_numpy()]
        ends = (datetime.fromtimestamp(int(time) / 1e6, tz=UTC).isoformat() for time in (times.min(), times.max()))
        found["first"], found["last"] = ends
    return found


def _slices(
    rule: Metric, columns: Sequence[str], rows: pd.DataFrame, truth: np.ndarray, prediction: np.ndarray
) -> list[dict[str, Any]]:
    """The metric for each value of each column, those with the most rows first. Raises `DataError` for an unknown column."""
    found = []
    for column in columns:
        if column not in rows.columns:
            raise DataError(
                f"the frame has no column {column} (evaluate.slices)",
                hint=f"it has {', '.join(map(str, rows.columns))}",
            )
        codes, values = pd.factorize(rows[column], sort=True, use_na_sentinel=False)
        counts = np.bincount(codes, minlength=len(values))
        for place in np.argsort(-counts, kind="stable")[:_MOST_VALUES]:
            mask = codes == place
            found.append(
                {
                    "column": column,
                    "value": _slice_name(values[place]),
                    "rows": int(counts[place]),
                    "metric": _number(rule.value(truth[mask], prediction[mask])),
                    "few_rows": bool(counts[place] < _FEW_ROWS),
                }
            )
    return found


def _slice_name(value: Any) -> Scalar:
    if pd.isna(value):
        return None
    plain = value.item() if isinstance(value, np.generic) else value
    return plain if isinstance(plain, str | int | float | bool) else str(plain)


def _logged(rule: Metric, everything: Mapping[str, float | None], judged: Judged) -> dict[str, float]:
    named = {f"holdout/{name}": value for name, value in everything.items()}
    named |= {
        f"holdout/{rule.name}_low": _number(judged.interval.low),
        f"holdout/{rule.name}_high": _number(judged.interval.high),
        f"holdout/{rule.name}_champion": _number(judged.champion),
    }
    return {name: value for name, value in named.items() if value is not None}


def _write_reference(
    file: Path, read: frame.Frame, trained: np.ndarray, classes: Sequence[Scalar] | None, rules: Evaluate, truth: np.ndarray,
    prediction: np.ndarray,
) -> None:  # fmt: skip
    """What live traffic will be compared with."""
    rows = read.rows[trained]
    columns = {name: _column(rows[name]) for name in read.features}
    until = None if read.times is None else int(read.times.max()) / 1e6
    made = watched(columns, classes, rules.metric, truth, prediction, slices=rules.slices, until=until)
    text = json.dumps(made.to_json(), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    file.write_text(text + "\n", encoding="utf-8")


def _column(values: pd.Series) -> np.ndarray:
    """The values as NumPy has them: nullable numbers as floats, categories and texts as objects."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    elif pd.api.types.is_numeric_dtype(values.dtype) and values.isna().any():
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    return values.to_numpy()


def _draw(
    directory: Path, model: Predictor, truth: np.ndarray, prediction: np.ndarray, rival: np.ndarray | None, label: str
) -> None:
    # Here and nowhere else: half a second that a refused metric or a missing column should not cost.
    from drivetrain.stages import plots

    if model.classes is not None:
        plots.classification(directory, truth, prediction, model.classes, rival)
    else:
        plots.regression(directory, truth, prediction, label)


def _write_predictions(
    file: Path, read: frame.Frame, rows: pd.DataFrame, prediction: np.ndarray, classes: Sequence[Scalar] | None
) -> None:
    """`row` (position in the frame), the timestamp, `label`, then `prediction`, with the probabilities of a classifier:
    `probability` of the second of two classes, or `probability_CLASS` of each."""
    columns: dict[str, Any] = {"row": rows.index.to_numpy(dtype=np.int64)}
    if read.timestamp is not None:
        columns["timestamp"] = pa.Array.from_pandas(rows[read.timestamp])
    columns["label"] = pa.Array.from_pandas(rows[read.label])
    if classes is None:
        columns["prediction"] = prediction
    else:
        columns["prediction"] = np.asarray(classes)[metrics.likeliest(prediction)]
        names = ["probability"] if len(classes) == 2 else [f"probability_{name}" for name in classes]
        kept = prediction[:, 1:] if len(classes) == 2 else prediction
        columns |= {name: kept[:, index] for index, name in enumerate(names)}
    pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False)
