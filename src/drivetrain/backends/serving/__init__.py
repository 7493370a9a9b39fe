"""Serving: a bundle (runner, cog.yaml, model) brought up as an endpoint that speaks Cog's HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A revision that answers. `url` is the root: predictions go to `url + "/predictions"`."""

    name: str
    revision: str
    url: str
    pid: int


class Serving(Protocol):
    """Where revisions run."""

    def schema(self, bundle: Path, runner: str) -> Mapping[str, Any]:
        """The OpenAPI document of the bundle's runner, as Cog would bake it into an image.

        Raises `StageError` if the runner cannot be loaded, with the runner's own message.
        """
        ...

    def deploy(
        self,
        name: str,
        revision: str,
        bundle: Path,
        runner: str,
        host: str,
        port: int,
        example: Mapping[str, Any] | None = None,
    ) -> Endpoint:
        """Brings the revision up beside the one that serves, waits until it is ready and has answered `example` (inputs of
        a first prediction), then replaces that one.

        Port 0 takes a free one. If the new revision does not come up or does not answer, the old one goes on serving and
        `ServingError` tells why, with the end of the runner's own log.
        """
        ...

    def find(self, name: str) -> Endpoint | None:
        """The endpoint of that name, if it is alive and answers its health check. Needs no heavy library."""
        ...

    def predict(
        self, endpoint: Endpoint, inputs: Mapping[str, Any], prediction_id: str, timeout: float
    ) -> Mapping[str, Any]:
        """One prediction; returns Cog's answer (`id`, `status`, `output`, ...). Raises `ServingError` if it failed."""
        ...

    def stop(self, name: str) -> bool:
        """Ends the endpoint; False if none ran."""
        ...
