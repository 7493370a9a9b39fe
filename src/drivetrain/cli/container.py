"""The champion served from its image, in a container of this machine."""

from __future__ import annotations

import ipaddress
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import click

from drivetrain import deployment, service, wiring
from drivetrain.backends.images.containers import Container, Containers
from drivetrain.backends.serving import Endpoint, alive
from drivetrain.cli import examples
from drivetrain.definition.serving import Serving
from drivetrain.deployment import Deployed
from drivetrain.errors import ServingError, UsageError
from drivetrain.project import Project

_WITHIN = 300.0
"""Seconds that the model has to set up, as in Cog's server."""
_PAUSE = 0.1


def serve(opened: Project, reference: str) -> None:
    """Runs one container until Ctrl-C, of the image `reference` (empty: the champion's own, built here).

    Raises `ServingError` if it does not become ready or ends by itself, with the end of its log; `Untrusted` if model or image are not
    signed as the definition wants it; `UsageError` if other machines could ask it what the definition wants asked with a token or by TLS.
    """
    part = opened.definition.serving
    _refuse_open(part)
    containers, deployed = Containers(), deployment.leading(opened)
    image = deployment.trusted_image(opened, reference) if reference else _built(opened, deployed, containers)
    token = Path(service.settings(opened.definition, opened.root, opened.state).token_file).read_text()
    container = containers.start(image, part.host, part.port, token)
    try:
        url = alive.Server(opened.definition.name, part.host, container.port).url
        endpoint = Endpoint(opened.definition.name, deployed.revision, url, 0)
        _wait_until_ready(containers, container, endpoint.url)
        click.echo(f"{deployed.revision} answers at {endpoint.url}, in container {container.name}; Ctrl-C ends it")
        click.echo("\n".join(examples.curl(opened, endpoint, behind_gateway=False)))
        while containers.is_running(container):
            time.sleep(1.0)
        raise ServingError(f"the container has ended: {containers.logs(container.name)}")
    finally:
        containers.stop(container)


def _refuse_open(part: Serving) -> None:
    wanted = [name for name, is_wanted in (("auth.predictions", part.auth.predictions), ("tls", part.tls)) if is_wanted]
    if wanted and not _is_loopback(part.host):
        raise UsageError(
            f"the definition wants {' and '.join(wanted)}, which is the gateway's, and a container has none",
            hint="serving.host: 127.0.0.1 for a try on this machine; without --from-image the gateway serves",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _built(opened: Project, deployed: Deployed, containers: Containers) -> str:
    """The champion's image in the engine's own store."""
    images = wiring.images(opened.state)
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        recipe = deployment.recipe(opened, deployed, Path(directory) / "bundle")
        deployment.refuse_untrusted(opened, deployed, recipe.bundle / "model", Path(directory) / "signature")
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
    raise ServingError(f"the container did not become ready: {containers.logs(container.name)}")
