"""The part of a report that a run has by itself, served or not: what it is, its data checks, its model on the hold-out, its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.backends.checks import CheckLine, result
from drivetrain.engines import metrics
from drivetrain.records import (
    Artifact,
    EvaluateOutputs,
    FeaturesOutputs,
    RegisterOutputs,
    TrainOutputs,
    ValidateOutputs,
)
from drivetrain.watch import report_plots
from drivetrain.watch.report_found import Found, interval, moment, number
from drivetrain.watch.report_page import Badge, Block, Cell, Facts, Picture, Pictures, Said, Section, Table, Tile
from drivetrain.watch.window_state import WindowReport

_GONE = "Its files are not kept any more."
_BAD = ("failed", "refused", "lost", "killed")
_DIGESTS = ("definition", "code", "lock", "commit")


def what(found: Found) -> Section:
    """Run, version, revision, and the digests of all that it is made of."""
    run, registered, trained = found.run, found.output("register", RegisterOutputs), found.output("train", TrainOutputs)
    took = "" if run.ended is None else f", took {run.ended - run.started:.0f} s"
    facts = [
        ("project", found.project.definition.name),
        ("run", f"{run.id}: {run.state}, begun {moment(run.started)} UTC{took}"),
        ("model version", registered.version.id if registered else "none was registered"),
        ("revision", found.revision or "none was deployed"),
        ("champion", "yes, it answers" if found.leads else "no"),
        *((name, str(run.facts.get(name) or "")) for name in _DIGESTS),
        *_artifacts(found),
        ("MLflow run", trained.tracked.id if trained else ""),
        *((name[6:], str(value)) for name, value in sorted(run.facts.items()) if name.startswith("param.")),
    ]
    return Section("What it is", [Facts(facts)])


def _artifacts(found: Found) -> Iterator[tuple[str, str]]:
    for attempt in found.attempts.values():
        for name, value in sorted((attempt.outputs or {}).items()):
            if isinstance(value, dict) and "digest" in value:
                yield name, str(value["digest"])


def checks(found: Found) -> tuple[Section, Tile | None]:
    """The result of the stage validate, expectation by expectation."""
    validated, features = found.output("validate", ValidateOutputs), found.output("features", FeaturesOutputs)
    if validated is None:
        return Section("Data checks", [Said("The training rows were not checked in this run.")]), None
    verdict = validated.verdict
    blocks: list[Block] = [Said(verdict.reason, _passed(verdict.passed))]
    if features is not None:
        about = features.frame.metadata
        told = [f"{number(about[key])} {key}" for key in ("rows", "features") if about.get(key)]
        blocks.append(Said(f"The training frame has {' and '.join(told)}.")) if told else None
    data = found.file(validated.result, "result.json")
    lines = None if data is None else _lines(data)
    if lines is None:
        blocks.append(Said(_GONE))
        return Section("Data checks", blocks), None
    rows: list[list[Cell]] = [
        [_passed(line.passed), line.column or "(table)", line.expectation, line.detail] for line in lines
    ]
    blocks.append(Table(["", "Column", "Expectation", "Found"], rows))
    held = sum(line.passed for line in lines)
    tile = Tile("Data checks", f"{held} of {len(lines)}", "hold on the training rows", "" if verdict.passed else "bad")
    return Section("Data checks", blocks), tile


def _lines(data: bytes) -> list[CheckLine] | None:
    try:
        return result.table_rows(data)
    except ValueError:  # of a version that wrote none
        return None


def _passed(passed: bool) -> Badge:
    return Badge("passed", "good") if passed else Badge("failed", "bad")


# the model


def holdout(found: Found) -> Mapping[str, Any] | None:
    """`evaluation.json`, if the run came so far and it is still kept."""
    evaluated = found.output("evaluate", EvaluateOutputs)
    document = None if evaluated is None else found.json(evaluated.report, "evaluation.json")
    return document if document and "metric" in document else None


def model(found: Found, newest: WindowReport | None) -> tuple[Section, Tile | None]:
    """The metric with its interval, plots and slices on the hold-out; beside these what they are in the newest live window."""
    title = "Model on the hold-out"
    evaluated = found.output("evaluate", EvaluateOutputs)
    if evaluated is None:
        return Section(title, [Said("No model was judged in this run.")]), None
    verdict = evaluated.verdict
    blocks: list[Block] = [
        Said(verdict.reason, Badge("accepted", "good") if verdict.passed else Badge("refused", "bad"))
    ]
    document = holdout(found)
    if document is None:
        return Section(title, [*blocks, Said(_GONE)]), None
    metric = document["metric"]
    blocks += [Facts(_facts(document)), *_pictures(found, evaluated.report, document)]
    known = {name: number(value) for name, value in document["metrics"].items() if value is not None}
    blocks.append(Table(list(known), [list(known.values())], title="Every metric of the task"))
    slices = _slices(document["slices"], metric["name"], newest)
    blocks.append(slices if slices is not None else Said("The definition names no slices (evaluate.slices)."))
    note = interval(metric["low"], metric["high"]) or "on the hold-out"
    tile = Tile(f"{metric['name']} on the hold-out", number(metric["value"]), note, "" if verdict.passed else "bad")
    return Section(title, blocks), tile


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    metric, rival, rows = document["metric"], document["champion"], document["holdout"]
    better = "higher is better" if metric["greater_is_better"] else "lower is better"
    ends = [str(rows[end])[:16].replace("T", " ") for end in ("first", "last") if end in rows]
    span = f", {' to '.join(ends)} UTC" if ends else ""
    embargo = f", {number(rows['embargoed_rows'])} between them left out" if rows["embargoed_rows"] else ""
    facts = [
        (metric["name"], f"{number(metric['value'])}, {interval(metric['low'], metric['high'])} ({better})"),
        ("least allowed" if metric["greater_is_better"] else "most allowed", number(metric["minimum"])),
        ("hold-out", f"{number(rows['rows'])} rows{span}"),
        ("trained on", f"{number(rows['training_rows'])} rows{embargo}"),
    ]
    if rival is None:
        facts.append(("compared with", "no champion"))
    elif rival["compared"]:
        gain = rival["gain"]
        text = f"{number(rival['value'])}; gain {number(gain['value'])}, {interval(gain['low'], gain['high'])}"
        facts.append(("the champion then", text))
    else:
        facts.append(("the champion then", f"not compared: {rival['why']}"))
    return facts


def _pictures(found: Found, report: Artifact, document: Mapping[str, Any]) -> list[Block]:
    data = found.file(report, "predictions.parquet")
    if data is None:
        return [Said("The predictions behind the plots are not kept any more.")]
    rows, classes = pq.read_table(pa.BufferReader(data)), document["classes"]
    labels, label = rows["label"].to_numpy(zero_copy_only=False), found.project.definition.data.label
    drawn: Sequence[Picture]
    if classes is None:
        drawn = report_plots.of_model(labels.astype(np.float64), rows["prediction"].to_numpy(), None, label)
    else:
        names = ["probability"] if len(classes) == 2 else [f"probability_{name}" for name in classes]
        said = np.stack([rows[name].to_numpy() for name in names], axis=1)
        said = np.hstack([1.0 - said, said]) if len(classes) == 2 else said
        drawn = report_plots.of_model(metrics.positions(labels, classes), said, classes, label)
    return [Pictures(drawn, size="third")]


def _slices(slices: Sequence[Mapping[str, Any]], metric: str, newest: WindowReport | None) -> Table | None:
    if not slices:
        return None
    names = [f"{one['column']}={one['value']}" for one in slices]
    live = {} if newest is None else {name: newest.slices[name] for name in names if name in newest.slices}
    rows = []
    for one, name in zip(slices, names, strict=True):
        few = " (few)" if one["few_rows"] else ""
        row = [str(one["column"]), number(one["value"]), number(one["rows"]) + few, number(one["metric"])]
        if live:
            known = live.get(name)
            row += ["-", ""] if known is None else [number(known.value), f"{number(known.low)} to {number(known.high)}"]
        rows.append(row)
    head = ["Column", "Value", "Rows", metric, *(["Live", "95 % interval"] if live else [])]
    return Table(head, rows, frozenset({2, 3, 4} if live else {2, 3}), title="Slices")


def stages(found: Found) -> Section:
    """How the run went."""
    rows: list[list[Cell]] = [
        [
            row.stage, Badge(row.state, "bad" if row.state in _BAD else "soft"),
            "" if row.ended is None else f"{row.ended - row.started:.1f} s", row.key[:12],
            f"{row.message} ({row.hint})" if row.hint else row.message,
        ]
        for row in found.attempts.values()
    ]  # fmt: skip
    if not rows:
        return Section("Stages", [Said("No stage has begun.")])
    return Section("Stages", [Table(["Stage", "State", "Took", "Key", "Said"], rows, frozenset({2}))])
