"""`drivetrain stage`: one stage in this process, as a pipeline's container calls it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from drivetrain import champion, lifecycle, project, wiring
from drivetrain.backends.objects import Objects
from drivetrain.backends.runner import WorkerContext, cache
from drivetrain.cli import output
from drivetrain.engines import graph
from drivetrain.errors import UsageError
from drivetrain.machine import limit_threads
from drivetrain.records import decode_value, encode


@click.command()
@click.argument("name", type=click.Choice(lifecycle.names()))
@click.option(
    "--run", "run_id", help="The run it belongs to; inputs that are not given are taken from it. Default: the last one."
)
@click.option(
    "--input", "given", nargs=2, multiple=True, metavar="NAME JSON", help="An input, as another stage wrote it."
)
@click.option(
    "--output", "wanted", nargs=2, multiple=True, metavar="NAME FILE", help="Write this output to the file, as JSON."
)
@click.option("--parameters", default="{}", metavar="JSON", help='Keys of the definition to set, {"KEY": "VALUE"}.')
@click.option("--target", default="local", show_default=True, help="Where: a target of the definition.")
@click.option("--no-cache", is_flag=True, help="Carry it out even if its result is known.")
@click.option("--json", "as_json", is_flag=True, help="Key, state and outputs as JSON on standard output.")
@click.pass_obj
def stage(
    where: str, name: str, run_id: str | None, given: tuple[tuple[str, str], ...], wanted: tuple[tuple[str, str], ...],
    parameters: str, target: str, no_cache: bool, as_json: bool,
) -> None:  # fmt: skip
    """Carry out one stage; the command of a pipeline's container.

    Ends with 3 or 4 after writing its outputs if its verdict is a refusal, so that the pipeline stops there.
    """
    opened = project.open_project(Path(where), target=target, parameters=_parameters(parameters))
    row = lifecycle.stage(name)
    store = wiring.project_objects(opened)
    inputs = _inputs(opened, store, row, dict(given), run_id)
    key = graph.cache_key(wiring.fingerprint(opened, row), inputs)
    outputs = None if no_cache else cache.find(store, key, row.outputs)
    if outputs is not None and row.still_holds and not cache.load(row.still_holds)(wiring.payload(opened), outputs):
        outputs = None
    state = "cached"
    if outputs is None:
        state, outputs = "done", _carry_out(opened, row, inputs, run_id or wiring.new_run_id())
        cache.keep(store, key, name, run_id or "", encode(outputs))
    encoded = encode(outputs)
    for field, path in wanted:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(encoded[field], sort_keys=True))
    verdict = cache.verdict(outputs)
    if verdict is not None and not verdict.passed:
        state = "refused"
    if as_json:
        output.as_json({"stage": name, "state": state, "key": key, "outputs": encoded})
    else:
        click.echo(
            f"{name} {output.state(state)}  key {output.short(key)}" + (f"  {verdict.reason}" if verdict else ""),
            err=True,
        )
    sys.exit(verdict.exit_code if state == "refused" and verdict else 0)


def _parameters(text: str) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise UsageError(f"--parameters is no JSON object: {error}") from error


def _inputs(
    opened: project.Project, store: Objects, row: lifecycle.Stage, given: Mapping[str, str], run_id: str | None
) -> dict[str, Any]:
    """The inputs given as JSON; the others from the run's journal; the champion from the store."""
    found: dict[str, Any] = {}
    for name, source in row.inputs.items():
        maker, _, field = source.partition(".")
        if not field:
            continue
        kind = cache.load(lifecycle.stage(maker).outputs)
        try:
            value = json.loads(given[name]) if name in given else _journaled(opened, run_id, maker)[field]
            found[name] = decode_value(kind, field, value)
        except ValueError as error:
            raise UsageError(
                f"input {name}: {error}", hint=f"it is what `drivetrain stage {maker}` wrote as {field}"
            ) from error
    if "champion" in row.inputs.values():
        found["champion"] = champion.rival(store, opened.definition.name, found["model"].digest)
    return found


def _journaled(opened: project.Project, run_id: str | None, maker: str) -> Mapping[str, Any]:
    rows = [found] if run_id and (found := opened.journal.run(run_id)) else [] if run_id else opened.journal.runs(1)
    for row in rows:
        attempt = opened.journal.latest(row.id).get(maker)
        if attempt is not None and attempt.outputs is not None:
            return attempt.outputs
    raise UsageError(f"there are no outputs of {maker} to take inputs from", hint="give --run or --input")


def _carry_out(opened: project.Project, row: lifecycle.Stage, inputs: Mapping[str, Any], run_id: str) -> Any:
    payload = wiring.payload(opened)
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as work:

        def say(text: str) -> None:
            click.echo(f"{row.name} … {text}", err=True)

        threads = wiring.threads(opened, row)
        # Of the container's share and not of the node's cores; as in a local run's worker, since the number may show in what is made.
        limit_threads(os.environ, threads)
        context = WorkerContext(run_id, row.name, Path(work), threads, say)
        with _output_left_alone():
            return wiring.execute(context, payload, inputs)


@contextmanager
def _output_left_alone() -> Iterator[None]:
    """Has what the user's code and its children print go to standard error: standard output is for the result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
