"""The champion served from its image, in a container of this machine."""

from __future__ import annotations

import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import click

from drivetrain import deployment, wiring
from drivetrain.backends.images.containers import Container, Containers
from drivetrain.backends.serving import Endpoint
from drivetrain.cli import examples
from drivetrain.errors import ServingError
from drivetrain.project import Project

_WITHIN = 300.0
"""Seconds that the model has to set up, as in Cog's server."""
_PAUSE = 0.1


def serve(opened: Project, reference: str) -> None:
    """Runs one container until Ctrl-C, of the image `reference` (empty: the champion's own, built here).

    Raises `ServingError` if it does not become ready or ends by itself, with the end of its log.
    """
    containers, deployed = Containers(), deployment.leading(opened)
    image = reference or _built(opened, containers)
    part = opened.definition.serving
    container = containers.start(image, part.host, part.port)
    try:
        # 0.0.0.0 is where it listens, and nowhere to ask.
        host = "127.0.0.1" if part.host == "0.0.0.0" else part.host
        endpoint = Endpoint(opened.definition.name, deployed.revision, f"http://{host}:{container.port}", 0)
        _wait_until_ready(containers, container, endpoint.url)
        click.echo(f"{deployed.revision} answers at {endpoint.url}, in container {container.id[:12]}; Ctrl-C ends it")
        click.echo("\n".join(examples.curl(opened, endpoint, behind_gateway=False)))
        while containers.is_running(container):
            time.sleep(1.0)
        raise ServingError(f"the container has ended: {containers.logs(container.id)}")
    finally:
        containers.stop(container)


def _built(opened: Project, containers: Containers) -> str:
    """The champion's image in the engine's own store."""
    images, deployed = wiring.images(opened.state), deployment.leading(opened)
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        recipe = deployment.recipe(opened, deployed, Path(directory) / "bundle")
        built = images.build(recipe, lambda text: click.echo(f"package … {text}", err=True))
        return containers.load(images.write(built.image, Path(directory) / opened.definition.name, "latest"))


def _wait_until_ready(containers: Containers, container: Container, url: str) -> None:
    deadline = time.monotonic() + _WITHIN
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            if not containers.is_running(container):
                break
        time.sleep(_PAUSE)
    raise ServingError(f"the container did not become ready: {containers.logs(container.id)}")
