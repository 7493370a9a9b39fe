"""`drivetrain runs`, `show` and `logs`: what the journal tells."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from drivetrain import lifecycle, project, wiring
from drivetrain.backends.runner import cache
from drivetrain.cli import output
from drivetrain.errors import UsageError
from drivetrain.journal import AttemptRow, Journal, RunRow
from drivetrain.records import Artifact, ValidateOutputs, decode


def find_run(journal: Journal, run_id: str | None) -> RunRow:
    """The run of that id or beginning; the last one without. Raises `UsageError` if there is none."""
    found = journal.run(run_id) if run_id else next(iter(journal.runs(1)), None)
    if found is None:
        raise UsageError(
            f"there is no run {run_id}" if run_id else "nothing has run yet", hint="`drivetrain runs` lists them"
        )
    return found


@click.command()
@click.option("--limit", default=20, show_default=True, help="At most so many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def runs(where: str, limit: int, as_json: bool) -> None:
    """List past runs."""
    opened = project.open_project(Path(where), checked=False)
    rows = opened.journal.runs(limit)
    if as_json:
        output.as_json([_run_document(row) for row in rows])
        return
    if not rows:
        click.echo("nothing has run yet; `drivetrain run` starts")
    table = []
    for row in rows:
        latest = opened.journal.latest(row.id)
        spent = output.seconds(row.ended - row.started) if row.ended else ""
        table.append(
            [
                row.id,
                output.state(state_of(row)),
                output.moment(row.started),
                spent,
                _metric_of(latest),
                _version_of(latest),
            ]
        )
    output.table(["run", "state", "started", "took", "metric", "version"], table)


def state_of(row: RunRow) -> str:
    """The run's state; `killed` where the journal says running and its process is gone."""
    if row.state != "running":
        return row.state
    try:
        os.kill(row.pid, 0)
    except ProcessLookupError:
        return "killed"
    except PermissionError:  # alive, and somebody else's
        pass
    return row.state


def _run_document(row: RunRow) -> dict[str, Any]:
    return {
        "run": row.id, "state": state_of(row), "exit_code": row.exit_code, "started": row.started, "ended": row.ended,
        "facts": dict(row.facts),
    }  # fmt: skip


def _metric_of(latest: dict[str, AttemptRow]) -> str:
    attempt = latest.get("evaluate")
    if attempt is None or attempt.outputs is None:
        return ""
    about = attempt.outputs["report"]["metadata"]
    return f"{about['metric']} {about['value']:.4f}"


def _version_of(latest: dict[str, AttemptRow]) -> str:
    attempt = latest.get("register")
    return attempt.outputs["version"]["id"] if attempt is not None and attempt.outputs is not None else ""


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("--timings", is_flag=True, help="Where the time went.")
@click.option(
    "--files",
    "stage",
    type=click.Choice(lifecycle.names()),
    help="Write this stage's artifacts (reports, plots, rows) to -o.",
)
@click.option(
    "--output", "-o", "directory", type=click.Path(file_okay=False, path_type=Path), help="Directory for --files."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def show(
    where: str, run_id: str | None, timings: bool, stage: str | None, directory: Path | None, as_json: bool
) -> None:
    """Show one run (default: the last): stages, digests, metrics, timings."""
    opened = project.open_project(Path(where), checked=False)
    row = find_run(opened.journal, run_id)
    if stage is not None:
        _export(opened, row, stage, directory or Path(f"{stage}-{row.id}"))
        return
    attempts = opened.journal.attempts(row.id)
    events = opened.journal.events(row.id)
    if as_json:
        output.as_json(_run_document(row) | {
            "attempts": [_attempt_document(attempt) for attempt in attempts],
            "events": [{"stage": stage, "time": time, "text": text} for stage, time, text in events],
        })  # fmt: skip
        return
    spent = f" in {output.seconds(row.ended - row.started)}" if row.ended else ""
    click.echo(f"run {row.id}  {output.state(state_of(row))}{spent}, started {output.moment(row.started)}")
    width = max([10, *map(len, row.facts)])
    for name, value in row.facts.items():
        if value:
            click.echo(f"  {name:<{width}}  {output.short(str(value)) if len(str(value)) > 40 else value}")
    click.echo()
    if timings:
        _timings(row, attempts, events)
        return
    output.table(["stage", "try", "state", "took", "memory", "key", "outputs"], [_attempt_cells(a) for a in attempts])
    for attempt in {attempt.stage: attempt for attempt in attempts}.values():  # a resumed run has several for a stage
        if attempt.message:
            click.echo(f"\n{attempt.stage}: {attempt.message}" + (f"\n  hint: {attempt.hint}" if attempt.hint else ""))
    _checks(opened, attempts)


def _export(opened: project.Project, row: RunRow, stage: str, directory: Path) -> None:
    """Writes the files of a stage's artifacts, a directory an output."""
    attempt = opened.journal.latest(row.id).get(stage)
    if attempt is None or attempt.outputs is None:
        raise UsageError(f"run {row.id} has no outputs of {stage}", hint="`drivetrain show` tells how far it came")
    store = wiring.project_objects(opened)
    outputs = decode(cache.load(lifecycle.stage(stage).outputs), attempt.outputs)
    for name in (entry.name for entry in fields(outputs)):
        made = getattr(outputs, name)
        if isinstance(made, Artifact):
            store.get(made, directory / name)
            for file in store.files(made):
                click.echo(directory / name / file)


def _attempt_document(attempt: AttemptRow) -> dict[str, Any]:
    return {
        "stage": attempt.stage, "attempt": attempt.attempt, "state": attempt.state, "key": attempt.key,
        "started": attempt.started, "ended": attempt.ended, "peak_memory": attempt.peak_memory,
        "message": attempt.message, "hint": attempt.hint, "outputs": attempt.outputs,
    }  # fmt: skip


def _attempt_cells(attempt: AttemptRow) -> list[str]:
    made = [
        f"{name} {output.short(value['digest'])} ({output.size(value['size'])})"
        if "digest" in value
        else f"{name} {value['id']}"
        for name, value in sorted((attempt.outputs or {}).items())
        if isinstance(value, dict) and ("digest" in value or "id" in value)
    ]
    spent = output.seconds(attempt.ended - attempt.started) if attempt.ended and attempt.state != "cached" else ""
    memory = output.size(attempt.peak_memory) if attempt.peak_memory else ""
    return [
        attempt.stage, str(attempt.attempt), output.state(attempt.state), spent, memory, output.short(attempt.key),
        ", ".join(made),
    ]  # fmt: skip


def _timings(row: RunRow, attempts: list[AttemptRow], events: list[tuple[str, float, str]]) -> None:
    """Each attempt as a bar over the run's time, with what it said and when."""
    end = row.ended or max([row.started, *(a.ended or a.started for a in attempts)])
    scale = 40 / max(end - row.started, 1e-9)
    for attempt in attempts:
        finish = attempt.ended or end
        first, length = int((attempt.started - row.started) * scale), max(1, round((finish - attempt.started) * scale))
        bar = " " * first + click.style(
            "█" * min(length, 40 - min(first, 39)), fg=output.COLOURS.get(attempt.state, "blue")
        )
        memory = f"  peak {output.size(attempt.peak_memory)}" if attempt.peak_memory else ""
        pad = " " * max(0, 40 - len(click.unstyle(bar)))
        click.echo(f"{attempt.stage:<10}{bar}{pad} {output.seconds(finish - attempt.started):>8}{memory}")
        for stage, time, text in events:
            if stage == attempt.stage and attempt.started <= time <= finish:
                click.echo(f"{'':<10}+{time - attempt.started:5.1f} s  {text}")


def _checks(opened: project.Project, attempts: list[AttemptRow]) -> None:
    """The data checks' table, where the run was refused for them."""
    refused = [a for a in attempts if a.stage == "validate" and a.state == "refused" and a.outputs]
    if not refused:
        return
    from drivetrain.backends.checks import result

    outputs = decode(ValidateOutputs, refused[-1].outputs or {})
    lines = result.table_rows(wiring.project_objects(opened).read(outputs.result, "result.json"))
    click.echo()
    output.table(
        ["", "expectation", "column", "detail"],
        [["✓" if line.passed else "✗", line.expectation, line.column, line.detail] for line in lines],
    )


@click.command()
@click.argument("stage", required=False, type=click.Choice(lifecycle.names()))
@click.option("--run", "run_id", help="Of this run; default: the last.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: stage -> text.")
@click.pass_obj
def logs(where: str, stage: str | None, run_id: str | None, as_json: bool) -> None:
    """Print what the stages of a run printed, tracebacks included."""
    opened = project.open_project(Path(where), checked=False)
    row = find_run(opened.journal, run_id)
    found = {}
    for name in [stage] if stage else lifecycle.names():
        path = opened.state / "logs" / row.id / f"{name}.log"
        if path.is_file():
            found[name] = path.read_text(encoding="utf-8")
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, text in found.items():
        click.echo(click.style(f"--- {name} ", bold=True) + str(opened.state / "logs" / row.id / f"{name}.log"))
        click.echo(text, nl=False)
    if not found:
        click.echo(
            f"run {row.id} printed nothing" + (f" in {stage}" if stage else "") + " (cached stages print nothing)"
        )
