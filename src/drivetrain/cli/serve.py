"""`drivetrain deploy`, `serve`, `traffic` and `rollback`: the service on this machine."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from drivetrain import deployment, project, wiring
from drivetrain.backends.serving import Endpoint, Serving, Status
from drivetrain.cli import examples, output
from drivetrain.errors import DefinitionError, ServingError, UsageError


@click.command()
@click.option("--stop", is_flag=True, help="End the service instead.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def deploy(where: str, stop: bool, as_json: bool) -> None:
    """Bring the champion up again, or stop it.

    A run deploys by itself; this is for after a restart of the machine.
    """
    if stop:
        ended = _stop(Path(where))
        output.as_json({"stopped": ended}) if as_json else click.echo("stopped" if ended else "nothing was running")
        return
    opened = project.open_project(Path(where))
    _tell(deployment.bring_up(opened, deployment.leading(opened)), as_json)


def _stop(where: Path) -> bool:
    """Ends the project's service. A definition that cannot be read hides its name, not what runs."""
    try:
        opened = project.open_project(where, checked=False)
    except DefinitionError as error:
        state = project.state_of(where)
        running = wiring.serving(state).running()
        if len(running) > 1:
            raise UsageError(
                f"several services run: {', '.join(running)}",
                hint="mend the definition, so that it says which is to end",
            ) from error
        return any(wiring.serving(state).stop(name) for name in running)
    stopped: bool = wiring.serving(opened.state).stop(opened.definition.name)
    return stopped


@click.command()
@click.argument("project_path", metavar="[PROJECT]", required=False, type=click.Path(exists=True))
@click.option(
    "--from-image",
    metavar="[REF]",
    is_flag=False,
    flag_value="",
    help="In a container of podman's or Docker's: of its image, or of REF.",
)
@click.pass_obj
def serve(where: str, project_path: str | None, from_image: str | None) -> None:
    """Serve the champion until Ctrl-C: of this project, or of the one at PROJECT.

    Prints a curl command for each protocol. If the service was up before, it is taken over, and ends with Ctrl-C too.

    With --from-image there is one container and no gateway: the model alone, as it will run elsewhere.
    """
    opened = project.open_project(Path(project_path or where))
    if from_image is not None:
        from drivetrain.cli import container

        signal.signal(signal.SIGTERM, _interrupt)
        container.serve(opened, from_image)
        return
    serving, name = wiring.serving(opened.state), opened.definition.name
    endpoint = deployment.bring_up(opened, deployment.leading(opened))
    try:
        # SIGTERM ends it as Ctrl-C does; said before anything is printed, since whoever reads that may send one.
        signal.signal(signal.SIGTERM, _interrupt)
        click.echo(f"{endpoint.revision} answers at {endpoint.url}; Ctrl-C ends it")
        click.echo("\n".join(examples.curl(opened, endpoint)))
        while serving.find(name) is not None or _comes_back(serving, name):
            time.sleep(1.0)
        raise ServingError(f"the service {name} has died", hint=f"its log: {opened.state / 'serving' / name}.log")
    finally:
        serving.stop(name)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _comes_back(serving: Serving, name: str, within: float = 60.0) -> bool:
    """Whether a service that does not answer right now does so again: its gateway restarts a replica that died."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            serving.status(name)
        except ServingError:
            return False
        if serving.find(name) is not None:
            return True
        time.sleep(0.5)
    return False


@click.command()
@click.argument("weights", nargs=-1, metavar="[REVISION=PERCENT]...")
@click.option("--shadow", metavar="REVISION", help="Also send it a copy of every request; its answers are dropped.")
@click.option("--sticky", metavar="HEADER", help="Requests with the same value of this header get the same revision.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def traffic(where: str, weights: tuple[str, ...], shadow: str | None, sticky: str | None, as_json: bool) -> None:
    """Show which revisions share the traffic, or split it: `drivetrain traffic flights-2-0d1f=90 flights-3-77aa=10`.

    A split is whole: revisions that are not named get nothing, and without --shadow and --sticky there is neither. The champion
    stays what it is; `drivetrain rollback` moves both.
    """
    opened = project.open_project(Path(where), checked=False)
    serving, name = wiring.serving(opened.state), opened.definition.name
    if not weights and (shadow or sticky):
        raise UsageError("the weights are missing", hint="give REVISION=PERCENT for each that serves")
    if sticky is not None and not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", sticky):
        raise UsageError(f"{sticky!r} is no name of a header", hint="such as --sticky X-User")
    found: Status = serving.route(name, _weights(weights), shadow, sticky) if weights else serving.status(name)
    if as_json:
        output.as_json(asdict(found))
        return
    rows = [
        [entry.revision, _share(entry.weight, entry.revision, found), f"{entry.ready}/{entry.wanted}", entry.state]
        for entry in found.revisions
    ]
    output.table(["revision", "traffic", "replicas", "state"], rows)
    if found.sticky:
        click.echo(f"sticky by {found.sticky}")
    if found.former:
        click.echo(click.style(f"`drivetrain rollback` goes back to {found.former}", fg="bright_black"), err=True)


def _share(weight: int, revision: str, found: Status) -> str:
    return f"{weight} %" + (" + shadow" if revision == found.shadow else "")


def _weights(pairs: tuple[str, ...]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for pair in pairs:
        match = re.fullmatch(r"(.+)=(\d{1,3})%?", pair)
        if match is None:
            raise UsageError(f"{pair!r} is not of the form REVISION=PERCENT")
        if match[1] in found:
            raise UsageError(f"{match[1]} is named twice")
        found[match[1]] = int(match[2])
    if sum(found.values()) != 100:
        raise UsageError(f"the percents add up to {sum(found.values())}, not to 100")
    return found


@click.command()
@click.option("--to", metavar="REVISION|VERSION", help="What is to serve; default: what did so before.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def rollback(where: str, to: str | None, as_json: bool) -> None:
    """Have the former revision serve again; no request is lost, and its version is the champion again."""
    _tell(deployment.rollback(project.open_project(Path(where), checked=False), to), as_json)


def _tell(endpoint: Endpoint, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"revision": endpoint.revision, "url": endpoint.url, "pid": endpoint.pid}, indent=2))
    else:
        click.echo(f"{endpoint.revision} answers at {endpoint.url}/predictions")
