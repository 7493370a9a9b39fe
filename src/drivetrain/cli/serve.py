"""`drivetrain deploy`, `serve` and `predict`: the champion and its endpoint on this machine."""

from __future__ import annotations

import json
import signal
import tempfile
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

import click

from drivetrain import champion, project, wiring
from drivetrain.backends.objects import Objects
from drivetrain.backends.serving import Endpoint
from drivetrain.cli import output
from drivetrain.errors import ServingError, UsageError
from drivetrain.project import Project
from drivetrain.records import DeployOutputs, decode


@click.command()
@click.option("--stop", is_flag=True, help="End the endpoint instead.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def deploy(where: str, stop: bool, as_json: bool) -> None:
    """Bring the champion up again, or stop it.

    A run deploys by itself; this is for after a restart of the machine.
    """
    opened = project.open_project(Path(where), checked=not stop)
    if stop:
        ended = wiring.serving(opened.state).stop(opened.definition.name)
        output.as_json({"stopped": ended}) if as_json else click.echo("stopped" if ended else "nothing was running")
        return
    endpoint = _bring_up(opened)
    if as_json:
        output.as_json({"revision": endpoint.revision, "url": endpoint.url, "pid": endpoint.pid})
    else:
        click.echo(f"{endpoint.revision} answers at {endpoint.url}/predictions")


@click.command()
@click.pass_obj
def serve(where: str) -> None:
    """Serve the champion until Ctrl-C."""
    opened = project.open_project(Path(where))
    serving = wiring.serving(opened.state)
    endpoint = _bring_up(opened)
    click.echo(f"{endpoint.revision} answers at {endpoint.url}/predictions; Ctrl-C ends it")

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        while serving.find(endpoint.name) is not None:
            time.sleep(1.0)
        raise ServingError(f"{endpoint.revision} has died", hint=f"its log is in {opened.state / 'serving'}")
    finally:
        serving.stop(endpoint.name)


def _bring_up(opened: Project) -> Endpoint:
    store = wiring.project_objects(opened)
    leading = champion.read(store, opened.definition.name)
    if leading is None:
        raise UsageError("no model has been promoted yet", hint="`drivetrain run` makes one")
    outputs = _deployed(opened, leading.run_id)
    settings, name = opened.definition.serving, opened.definition.name
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        bundle = store.get(outputs.bundle, Path(directory) / "bundle")
        runner = str(outputs.bundle.metadata["runner"])
        found: Endpoint = wiring.serving(opened.state).deploy(
            name, outputs.revision.id, bundle, runner, settings.host, settings.port
        )
    return found


def _deployed(opened: Project, run_id: str) -> DeployOutputs:
    attempt = opened.journal.latest(run_id).get("deploy")
    if attempt is None or attempt.outputs is None:
        raise UsageError(f"run {run_id} did not deploy here", hint="`drivetrain run --from deploy`")
    return decode(DeployOutputs, attempt.outputs)


@click.command()
@click.argument("inputs", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--file", "file", type=click.File("rb"), help="The inputs as a JSON object in a file; - for standard input."
)
@click.option("--example", is_flag=True, help="Ask with the example that was stored with the model.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")
@click.pass_obj
def predict(where: str, inputs: tuple[str, ...], file: Any, example: bool, timeout: float, as_json: bool) -> None:
    """Ask the endpoint for a prediction, and keep its id for `drivetrain lineage`."""
    opened = project.open_project(Path(where), checked=False)
    answer = ask(opened, _inputs(opened, inputs, file, example), timeout)
    if as_json:
        output.as_json(answer)
    else:
        click.echo(json.dumps(answer["output"], indent=2))
        click.echo(
            click.style(f"prediction {answer['id']}  revision {answer['revision']}", fg="bright_black"), err=True
        )


def ask(opened: Project, inputs: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The endpoint's answer with `id` and `revision`; the id is journaled. Raises `ServingError`."""
    serving = wiring.serving(opened.state)
    endpoint: Endpoint | None = serving.find(opened.definition.name)
    if endpoint is None:
        raise ServingError("no endpoint answers", hint="`drivetrain deploy` brings the champion up")
    prediction_id = uuid.uuid4().hex
    answer = dict(serving.predict(endpoint, inputs, prediction_id, timeout))
    opened.journal.keep_prediction(prediction_id, endpoint.revision, _run_of(opened, endpoint.revision), time.time())
    return {**answer, "id": prediction_id, "revision": endpoint.revision}


def _run_of(opened: Project, revision: str) -> str:
    """The run that made the revision which answers: the champion's, or while another is being deployed an earlier one's."""
    leading = champion.read(wiring.project_objects(opened), opened.definition.name)
    ids = [leading.run_id] if leading else []
    for run_id in [*ids, *(row.id for row in opened.journal.runs())]:
        attempt = opened.journal.latest(run_id).get("deploy")
        if attempt is not None and attempt.outputs is not None and attempt.outputs["revision"]["id"] == revision:
            return run_id
    return ""


def _inputs(opened: Project, pairs: tuple[str, ...], file: Any, example: bool) -> dict[str, Any]:
    found: dict[str, Any] = dict(example_of(opened, wiring.project_objects(opened))) if example else {}
    if file is not None:
        try:
            found.update(json.load(file))
        except ValueError as error:
            raise UsageError(f"{file.name} is no JSON object: {error}") from error
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise UsageError(f"{pair!r} is not of the form NAME=VALUE")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    if not found:
        raise UsageError("there are no inputs", hint="give NAME=VALUE, --file, or --example")
    return found


def example_of(opened: Project, store: Objects) -> dict[str, Any]:
    """The inputs with which the deployed revision was tried out."""
    leading = champion.read(store, opened.definition.name)
    if leading is None:
        raise UsageError("no model has been promoted yet", hint="`drivetrain run` makes one")
    bundle = _deployed(opened, leading.run_id).bundle
    if "example.json" not in store.files(bundle):
        raise UsageError("no example is stored with the model", hint="give NAME=VALUE or --file")
    found: dict[str, Any] = json.loads(store.read(bundle, "example.json"))
    return found
