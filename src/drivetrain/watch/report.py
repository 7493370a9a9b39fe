"""What is known of one run or revision on one page: data checks, metrics, drift, quality, its rollout, decisions. The page is one file
that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from drivetrain import champion, deployment, wiring
from drivetrain.backends.checks import words
from drivetrain.engines import metrics
from drivetrain.errors import CorruptArtifact, UsageError
from drivetrain.journal import AttemptRow, Decision, RunRow
from drivetrain.project import Project
from drivetrain.records import (
    Artifact,
    DeployOutputs,
    EvaluateOutputs,
    FeaturesOutputs,
    Record,
    RegisterOutputs,
    ValidateOutputs,
    decode,
)
from drivetrain.watch import report_plots, rollout
from drivetrain.watch.monitor import Monitor, open_monitor
from drivetrain.watch.window_state import WindowReport

_MOST_WINDOWS = 120
_MOST_DECISIONS = 200
_SHOWN_SHARES = 6


@dataclass(frozen=True, slots=True)
class _Subject:
    run: RunRow
    attempts: Mapping[str, AttemptRow]
    revision: str | None

    def output(self, stage: str, kind: type[Record]) -> Record | None:
        attempt = self.attempts.get(stage)
        return None if attempt is None or attempt.outputs is None else decode(kind, attempt.outputs)


def page(project: Project, subject: str | None) -> str:
    """The page about a run, a revision or a model version; without one about the champion's revision.

    Raises `UsageError` if there is no such thing in this project.
    """
    found = _find(project, subject)
    parts = [_head(project, found), _data(project, found), _model(project, found)]
    if found.revision is not None:
        parts += [_live(project, found.revision), _rollout(project, found.revision)]
    parts += [_decisions(project, found), _stages(found)]
    title = f"{project.definition.name}: {found.revision or found.run.id}"
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, parts)))


def _find(project: Project, subject: str | None) -> _Subject:
    journal, name = project.journal, project.definition.name
    run_id: str | None = None
    if subject is None:
        leading = champion.read(wiring.project_objects(project), name)
        if leading is None:
            raise UsageError("no model has been promoted yet", hint="name a run: `drivetrain runs` lists them")
        run_id = leading.run_id
    elif (deployed := deployment.of_revision(project, subject)) is not None:
        run_id = deployed.run_id
    else:
        run_id = _of_version(project, subject if "/" in subject else f"{name}/{subject}")
    run = journal.run(run_id or str(subject))
    if run is None:
        raise UsageError(
            f"{subject} is no run, revision or model version of this project", hint="`drivetrain runs` lists them"
        )
    attempts = journal.latest(run.id)
    made = attempts.get("deploy")
    revision = None if made is None or made.outputs is None else decode(DeployOutputs, made.outputs).revision.id
    return _Subject(run, attempts, revision)


def _of_version(project: Project, version: str) -> str | None:
    for row in project.journal.runs():
        attempt = project.journal.latest(row.id).get("register")
        made = None if attempt is None or attempt.outputs is None else decode(RegisterOutputs, attempt.outputs)
        if made is not None and made.version.id == version:
            return row.id
    return None


# sections


def _head(project: Project, found: _Subject) -> str:
    run, registered = found.run, found.output("register", RegisterOutputs)
    leading = champion.read(wiring.project_objects(project), project.definition.name)
    role = "the champion" if leading is not None and leading.run_id == run.id else ""
    facts = [
        ("run", run.id), ("state", run.state), ("began", _moment(run.started)),
        ("model version", registered.version.id if registered else ""), ("revision", found.revision or ""), ("now", role),
        *((name, str(run.facts.get(name, ""))[:40]) for name in ("definition", "code", "lock", "commit")),
        *((name[6:], str(value)) for name, value in sorted(run.facts.items()) if name.startswith("param.")),
    ]  # fmt: skip
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts if value)
    return f"<h1>{escape(project.definition.name)}</h1><table class=facts>{rows}</table>"


def _data(project: Project, found: _Subject) -> str:
    features, validated = found.output("features", FeaturesOutputs), found.output("validate", ValidateOutputs)
    parts = []
    if features is not None:
        about = features.frame.metadata
        told = ", ".join(
            f"{_count(about[key])} {key.replace('_', ' ')}" for key in ("rows", "features") if about.get(key)
        )
        parts.append(f"<p>{told}; frame <code>{features.frame.digest[:12]}</code></p>")
    if validated is not None:
        document = _json(project, validated.result, "result.json")
        parts.append(f"<p>{escape(validated.verdict.reason)}</p>")
        parts.append(_table(("", "Column", "Expectation", "Found"), _checks(document.get("results", ()))))
    return _section("Data", parts)


def _checks(results: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    for result in results:
        config = result.get("expectation_config", {})
        kind, arguments = str(config.get("type", "")), config.get("kwargs", {})
        passed = bool(result.get("success"))
        yield (
            _badge("ok" if passed else "failed", passed), f"<code>{escape(str(arguments.get('column', '(table)')))}</code>",
            escape(words.wanted(kind, arguments)),
            escape(words.found(kind, arguments, result.get("result", {}), passed)),
        )  # fmt: skip


def _model(project: Project, found: _Subject) -> str:
    evaluated = found.output("evaluate", EvaluateOutputs)
    if evaluated is None:
        return ""
    document = _json(project, evaluated.report, "evaluation.json")
    if not document:
        return _section("Model", ["<p>The evaluation is not kept any more.</p>"])
    rows = [(escape(name), _number(value)) for name, value in document["metrics"].items() if value is not None]
    slices = [
        (f"{escape(one['column'])} = {escape(str(one['value']))}", _number(one["metric"]), _count(one["rows"]))
        for one in document["slices"]
    ]
    parts = [
        f"<p>{_badge('passed' if evaluated.verdict.passed else 'refused', evaluated.verdict.passed)} "
        f"{escape(evaluated.verdict.reason)}</p>",
        *_model_plots(project, evaluated.report, document),
        "<div class=columns>" + _table(("Metric", "On the hold-out"), rows),
        (_table(("Slice", str(document["metric"]["name"]), "Rows"), slices) if slices else "") + "</div>",
    ]
    return _section("Model", parts)


def _model_plots(project: Project, report: Artifact, document: Mapping[str, Any]) -> list[str]:
    store = wiring.project_objects(project)
    try:
        rows = pq.read_table(_buffer(store.read(report, "predictions.parquet")))
    except (CorruptArtifact, KeyError):
        return []
    classes = document["classes"]
    labels = rows["label"].to_numpy(zero_copy_only=False)
    if classes is None:
        drawn = report_plots.of_model(
            labels.astype(np.float64), rows["prediction"].to_numpy(), None, project.definition.data.label
        )
    else:
        names = ["probability"] if len(classes) == 2 else [f"probability_{name}" for name in classes]
        said = np.stack([rows[name].to_numpy() for name in names], axis=1)
        said = np.hstack([1.0 - said, said]) if len(classes) == 2 else said
        drawn = report_plots.of_model(metrics.positions(labels, classes), said, classes, project.definition.data.label)
    return ["<div class=pictures>" + "".join(f"<figure>{svg}</figure>" for svg in drawn.values()) + "</div>"]


def _live(project: Project, revision: str) -> str:
    with open_monitor(project) as monitor:
        windows = monitor.history(revision=revision)[-_MOST_WINDOWS:]
        if not windows:
            return _section("Live traffic", ["<p>No window of this revision is closed yet.</p>"])
        distance = project.definition.monitoring.drift
        metric = next((window.metric for window in windows if window.metric), "")
        drawn = [
            report_plots.quality(windows, metric), report_plots.drift(windows, distance), _moved(monitor, windows, distance),
            report_plots.passing(windows),
        ]  # fmt: skip
    rows = sum(window.rows for window in windows)
    span = f"{_moment(windows[0].start)} to {_moment(windows[-1].end)}"
    told = f"<p>{_count(rows)} rows in {len(windows)} windows, {span} (UTC)</p>"
    broken: dict[str, int] = {}
    for window in windows:
        for check, count in window.broken.items():
            broken[check] = broken.get(check, 0) + count
    checks = [(escape(name), _count(count)) for name, count in sorted(broken.items(), key=lambda one: -one[1]) if count]
    table = _table(("Check", "Rows that break it"), checks) if checks else ""
    return _section("Live traffic", [told, *drawn, table])


def _moved(monitor: Monitor, windows: Sequence[WindowReport], distance: str) -> str:
    """The bins of the features that have moved most in the last window that tells of drift."""
    for window in reversed(windows):
        moved = sorted((one for one in window.drift if one.distance == distance), key=lambda one: -one.value)
        found = {one.feature: monitor.shares(window, one.feature) for one in moved[:_SHOWN_SHARES]}
        known = {name: bins for name, bins in found.items() if bins is not None}
        if known:
            words_ = f"Those that moved most in the window of {_moment(window.start)} to {_moment(window.end)}"
            return f"<h3>{words_}</h3>{report_plots.shares(known)}"
    return ""


def _rollout(project: Project, revision: str) -> str:
    text = project.journal.rollout(revision)
    if text is None:
        return ""
    points = rollout.points(text)
    kept = json.loads(text)["kept"]
    told = f"<p>{escape(str(kept['phase']).replace('_', ' '))}: {escape(str(kept['reason']))}</p>"
    last = points[-1].numbers if points else {}
    rows = [(escape(name.replace("_", " ")), _number(value)) for name, value in last.items()]
    table = (
        f"<details><summary>the numbers as they stood last</summary>{_table(('', ''), rows)}</details>" if rows else ""
    )
    return _section("Rollout", [told, report_plots.canary(points, revision), table])


def _decisions(project: Project, found: _Subject) -> str:
    journal = project.journal
    every = journal.decisions(_MOST_DECISIONS)
    if not every:
        return ""
    mine = [one for one in every if one.run_id == found.run.id or (one.revision and one.revision == found.revision)]
    parts = []
    for one in mine:
        steps = [
            (_moment(at), escape(state.replace("_", " ")), escape(reason))
            for at, state, reason in journal.decision_steps(one.id)
        ]
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in one.numbers.items())
        parts.append(
            f"<h3>{escape(one.trigger)}: {escape(one.action)} <code>{escape(one.id)}</code></h3><p>{escape(numbers)}</p>"
            + _table(("When (UTC)", "State", "Why"), steps)
        )
    rows = [_decision_row(one) for one in every]
    log = _table(("When (UTC)", "Trigger", "Action", "State", "Why", "Revision"), rows)
    parts.append(
        f"<details{'' if mine else ' open'}><summary>every decision of the loop, newest first</summary>{log}</details>"
    )
    return _section("Decisions", parts)


def _decision_row(one: Decision) -> Sequence[str]:
    good = one.state not in ("failed", "refused", "rolled_back")
    return (
        _moment(one.at), escape(one.trigger), escape(one.action), _badge(one.state.replace("_", " "), good),
        escape(one.reason), escape(one.revision or ""),
    )  # fmt: skip


def _stages(found: _Subject) -> str:
    rows = [
        (
            escape(row.stage), escape(row.state), "" if row.ended is None else f"{row.ended - row.started:.1f} s",
            f"<code>{escape(row.key[:12])}</code>", escape(row.message),
        )
        for row in found.attempts.values()
    ]  # fmt: skip
    return _section("Stages", [_table(("Stage", "State", "Took", "Key", ""), rows)])


# HTML


def _section(title: str, parts: Sequence[str]) -> str:
    inside = "\n".join(filter(None, parts))
    return f"<section><h2>{title}</h2>\n{inside}\n</section>" if inside else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are HTML already."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    top = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    return f"<div class=wide><table>{top}<tbody>{body}</tbody></table></div>"


def _badge(text: str, good: bool) -> str:
    return f'<span class="state{"" if good else " bad"}">{escape(text)}</span>'


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _json(project: Project, artifact: Artifact, name: str) -> dict[str, Any]:
    """A file of an artifact; empty where it is not kept any more."""
    try:
        found: dict[str, Any] = json.loads(wiring.project_objects(project).read(artifact, name))
    except (CorruptArtifact, KeyError):
        return {}
    return found


def _buffer(data: bytes) -> Any:
    import pyarrow as pa

    return pa.BufferReader(data)


_STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --back: #f5f7f9; --card: #fff; --good: #1a7f4b; --bad: #c0352b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0 0 12px; } h2 { font-size: 18px; margin: 0 0 10px; } h3 { font-size: 14px; margin: 18px 0 6px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 18px 20px; margin: 18px 0; }
table { border-collapse: collapse; font-size: 13px; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td { font-variant-numeric: tabular-nums; }
.state { display: inline-block; padding: 0 8px; border-radius: 9px; font-size: 12px; font-weight: 600; color: #fff;
  background: var(--good); white-space: nowrap; } .state.bad { background: var(--bad); }
code { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
figure { margin: 0; } .pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 24px; margin-top: 14px; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); }
svg text { font-family: "DejaVu Sans", system-ui, sans-serif; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
