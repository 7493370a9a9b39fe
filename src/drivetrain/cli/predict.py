"""`drivetrain predict` and `feedback`: what the service says, and what turned out to be true."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import click

from drivetrain import deployment, project, wiring
from drivetrain.backends.serving import Endpoint, Status
from drivetrain.cli import examples, output
from drivetrain.errors import ServingError, UsageError
from drivetrain.project import Project


@click.command()
@click.argument("inputs", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--file", "file", type=click.File("rb"), help="The inputs as a JSON object in a file; - for standard input."
)
@click.option("--example", is_flag=True, help="Ask with the example that was stored with the model.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Longest to wait for the answer, in seconds.",
)
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


@click.command()
@click.argument("prediction_id")
@click.argument("label")
@click.option("--json", "as_json", is_flag=True, help="What was kept, as JSON.")
@click.pass_obj
def feedback(where: str, prediction_id: str, label: str, as_json: bool) -> None:
    """Tell the service what turned out to be true of an earlier prediction: LABEL is JSON, or a text.

    It is kept beside the captured requests. Whether there was such a prediction is not checked: labels may come long after it.
    """
    opened = project.open_project(Path(where), checked=False)
    value = _value(label)
    wiring.serving(opened.state).feedback(_endpoint(opened), prediction_id, value)
    if as_json:
        output.as_json({"id": prediction_id, "label": value})
    else:
        click.echo(f"kept: {prediction_id} was {json.dumps(value)}")


def ask(opened: Project, inputs: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The endpoint's answer with `id` and `revision`; the id is journaled. Raises `ServingError`."""
    prediction_id = uuid.uuid4().hex
    answer = dict(wiring.serving(opened.state).predict(_endpoint(opened), inputs, prediction_id, timeout))
    made = deployment.of_revision(opened, answer["revision"])
    opened.journal.keep_prediction(prediction_id, answer["revision"], made.run_id if made else "", time.time())
    return answer


def _endpoint(opened: Project) -> Endpoint:
    """The service, also while none of its replicas is ready: the gateway has the request wait for one."""
    try:
        found: Status = wiring.serving(opened.state).status(opened.definition.name)
    except ServingError as error:
        raise ServingError("no endpoint answers", hint="`drivetrain deploy` brings the champion up") from error
    return found.endpoint


def _inputs(opened: Project, pairs: tuple[str, ...], file: Any, example: bool) -> dict[str, Any]:
    found: dict[str, Any] = dict(examples.of_champion(opened)) if example else {}
    if file is not None:
        try:
            document = json.load(file, parse_constant=_refuse)
        except ValueError as error:
            raise UsageError(f"{file.name} is no JSON object: {error}") from error
        if not isinstance(document, dict):
            raise UsageError(f"{file.name} is no JSON object", hint='it has to be of the form {"NAME": VALUE, ...}')
        found.update(document)
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"{pair!r} is not of the form NAME=VALUE")
        found[name] = _value(text)
    if not found:
        raise UsageError("there are no inputs", hint="give NAME=VALUE, --file, or --example")
    return found


def _value(text: str) -> Any:
    """JSON where the text is some, otherwise the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON; an unknown value is null")
