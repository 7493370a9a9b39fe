"""`drivetrain run`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from drivetrain import champion, lifecycle, project, wiring
from drivetrain.backends.runner import RunResult
from drivetrain.cli import output, progress
from drivetrain.definition.values import parse_instant
from drivetrain.engines import graph
from drivetrain.errors import UsageError
from drivetrain.journal import Journal, RunRow
from drivetrain.records import Artifact, Reference, encode

STAGE = click.Choice(lifecycle.names())


def parameters(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--param a.b=c` options as a mapping."""
    found = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE, such as train.parameters.depth=4")
        found[name] = value
    return found


def instant(ctx: click.Context, option: click.Parameter, value: str | None) -> datetime | None:
    """A date or time, in UTC where it names no zone."""
    try:
        return None if value is None else parse_instant(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def run_name(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """An id that can be part of a path."""
    if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise click.BadParameter(f"{value!r} is no id: letters, digits, '.', '_' and '-' are")
    return value


@click.command()
@click.option("--until", type=STAGE, help="Stop after this stage.")
@click.option(
    "--from", "from_", type=STAGE, help="Carry this stage and what follows out anew; what comes before may be cached."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="last",
    metavar="[RUN]",
    help="Go on with the last run that did not end, or with RUN.",
)
@click.option("--no-cache", is_flag=True, help="Carry every stage out anew.")
@click.option(
    "--param",
    "params",
    multiple=True,
    callback=parameters,
    metavar="KEY=VALUE",
    help="Set a key for this run.",
)
@click.option(
    "--candidate",
    is_flag=True,
    help="Bring the new version up beside the champion, without traffic: for a rollout that is decided later.",
)
@click.option(
    "--as-of",
    metavar="INSTANT",
    callback=instant,
    help="Train on what was known then: the window ends there, and is as long as data.window.length says.",
)
@click.option(
    "--id", "run_id", metavar="ID", callback=run_name, help="Call the run so. Default: a new id, by the time."
)
@click.option("--target", help="Where: a target of the definition; default: local.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the summary.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on standard output.")
@click.pass_obj
def run(
    where: str, until: str | None, from_: str | None, resume: str | None, no_cache: bool, params: dict[str, str],
    candidate: bool, as_of: datetime | None, run_id: str | None, target: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Carry the lifecycle out, from data to an endpoint.

    Stages whose inputs, code, parameters and lock file have not changed come from the cache. Ends with 0 done, 1 failed,
    2 wrong definition, 3 gate refused the model, 4 data validation refused the data, 130 interrupted.
    """
    resumed: RunRow | None = None
    if resume is not None:
        if params or from_ or no_cache or target or candidate or as_of or run_id:
            raise UsageError(
                "a resumed run goes on with its own parameters, at its own target",
                hint="leave out --param, --as-of, --candidate, --id, --target, --from and --no-cache",
            )
        resumed = _to_resume(project.open_journal(Path(where)), resume)
        params = {name[6:]: str(text) for name, text in resumed.facts.items() if name.startswith("param.")}
        target = str(resumed.facts["target"])
        until = until or str(resumed.facts.get("until", "")) or None
        candidate = bool(resumed.facts.get("candidate"))
    if as_of is not None:
        params = params | _window(Path(where), as_of, params)
    opened = project.open_project(Path(where), target=target or "local", parameters=params, candidate=candidate)
    fresh = _fresh(from_, until, no_cache, resumed)
    store = wiring.project_objects(opened)
    if candidate and champion.read(store, opened.definition.name) is None:
        hint = "`drivetrain run` without --candidate makes the first one"
        raise UsageError("there is no champion yet that a candidate could stand beside", hint=hint)
    plan = wiring.plan(opened, store, fresh, until or "")
    result: RunResult = wiring.runner(opened, store, progress.choose(quiet), run_id).run(
        plan, resume=resumed.id if resumed else None, only=[until] if until else None, fresh=fresh
    )
    if as_json:
        output.as_json(document(result))
    else:
        summary(result)
    sys.exit(result.exit_code)


def _window(where: Path, end: datetime, params: Mapping[str, str]) -> dict[str, str]:
    """The training window that ends then, as parameters; it begins where the definition says, unless that gives its length."""
    if "data.window.end" in params:
        raise UsageError("--as-of and --param data.window.end say when the window ends", hint="leave out one of them")
    length = project.open_project(where, parameters=params, checked=False).definition.data.window.length
    found = {"data.window.end": end.isoformat()}
    return found if length is None else found | {"data.window.start": (end - length).isoformat()}


def _to_resume(journal: Journal, which: str) -> RunRow:
    if which != "last":
        found = journal.run(which)
        if found is None:
            raise UsageError(f"there is no run {which}", hint="`drivetrain runs` lists them")
        return found
    last = journal.runs(1)
    if last and last[0].state in ("running", "interrupted", "failed"):
        return last[0]
    why = "the last run has ended" if last else "there was no run yet"
    raise UsageError(f"there is nothing to resume: {why}", hint="`drivetrain run` starts one")


def _fresh(from_: str | None, until: str | None, no_cache: bool, resumed: RunRow | None) -> list[str]:
    if resumed is not None:
        return [name for name in str(resumed.facts.get("fresh", "")).split(",") if name]
    if no_cache:
        return lifecycle.names()
    if from_:
        edges = {row.name: row.inputs for row in lifecycle.STAGES}
        if until and from_ not in graph.upstream(edges, [until]):
            raise UsageError(f"a run until {until} does not come to {from_}", hint="--from names the earlier stage")
        later = graph.downstream(edges, [from_])
        return [name for name in lifecycle.names() if name in later]
    return []


def document(result: RunResult) -> dict[str, Any]:
    """The result as JSON-ready values."""
    return {
        "run": result.run_id,
        "state": result.state,
        "exit_code": result.exit_code,
        "seconds": round(result.seconds, 3),
        "stages": [
            {
                "stage": step.name, "state": step.state, "key": step.key, "seconds": round(step.seconds, 3),
                "peak_memory": step.peak_memory, "message": step.message, "hint": step.hint,
                "outputs": None if step.outputs is None else encode(step.outputs),
            }
            for step in result.steps
        ],
    }  # fmt: skip


def summary(result: RunResult) -> None:
    """What a user wants to know of a run that has ended."""
    rows = facts(result)
    colour = output.COLOURS.get(result.state)
    click.echo(
        click.style(f"\n{result.state}", fg=colour, bold=True)
        + f" in {output.seconds(result.seconds)}  run {result.run_id}"
    )
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"  {name:<{width}}  {value}")
    for step in result.steps:
        if step.state in ("failed", "refused"):
            click.echo(f"  {step.name}: {step.message}")
            click.echo(
                f"  see: drivetrain show {result.run_id}"
                + (
                    f"   drivetrain logs {step.name}"
                    if step.state == "failed"
                    else f"   drivetrain show --files {step.name} -o report"
                )
            )
    if result.state == "interrupted":
        click.echo("  drivetrain run --resume   goes on from here")


def facts(result: RunResult) -> list[tuple[str, str]]:
    """Rows, metric, gate, version and endpoint of a run, as far as it came."""
    outputs = {step.name: step.outputs for step in result.steps if step.outputs is not None}
    rows: list[tuple[str, str]] = []
    if "features" in outputs:
        rows.append(
            ("training frame", described(outputs["features"].frame, ("rows", "features", "dropped_unlabelled")))
        )
    if "validate" in outputs:
        rows.append(("data checks", outputs["validate"].verdict.reason))
    if "evaluate" in outputs:
        report: Artifact = outputs["evaluate"].report
        rows.append(("metric", metric(report)))
        rows.append(("gate", outputs["evaluate"].verdict.reason))
    if "register" in outputs:
        rows.append(("model version", outputs["register"].version.id))
    if "package" in outputs and outputs["package"].image is not None:
        rows.append(("image", outputs["package"].image.id))
    if "deploy" in outputs:
        revision: Reference = outputs["deploy"].revision
        if revision.detail.get("candidate"):
            rows.append(("candidate", f"{revision.id}, beside the champion and without traffic"))
        rows.append(("endpoint", f"{revision.detail.get('url', '')}/predictions"))
    return rows


def metric(report: Artifact) -> str:
    """`roc_auc 0.712 [0.703, 0.721]`."""
    about = report.metadata
    text = f"{about.get('metric')} {about.get('value'):.4f}"
    low, high = about.get("low"), about.get("high")
    return text + (f"  95 % interval {low:.4f} to {high:.4f}" if low is not None and high is not None else "")


def described(artifact: Artifact, names: Sequence[str]) -> str:
    """`80,789 rows, 20 features`."""
    about = artifact.metadata
    return ", ".join(f"{about[name]:,} {name.replace('_', ' ')}" for name in names if about.get(name) is not None)
