"""Serving: bundles (runner, cog.yaml, model) brought up behind one address that speaks Cog's HTTP API, KServe's V1 and V2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from drivetrain.backends.serving.gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service that answers. `url` is its root: predictions go to `url + "/predictions"`; `revision` gets most of the traffic."""

    name: str
    revision: str
    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class RevisionStatus:
    """One revision of a service: its percent of the traffic, replicas `wanted` and `ready`. `state` is `ready`, `starting`, `asleep`
    (the next request wakes it) or `failed` (its replicas do not come up)."""

    revision: str
    weight: int
    wanted: int
    ready: int
    state: str


@dataclass(frozen=True, slots=True)
class Status:
    """A service as it is. `shadow` gets a copy of the traffic; `sticky` is the header by which callers keep their revision;
    `former` served before `revision` did; `scale` is the least and the most replicas that a revision in traffic may have."""

    endpoint: Endpoint
    former: str | None
    shadow: str | None
    sticky: str | None
    revisions: Sequence[RevisionStatus]
    scale: tuple[int, int] = (1, 1)


class Serving(Protocol):
    """Where revisions run."""

    def schema(self, bundle: Path, runner: str) -> Mapping[str, Any]:
        """The OpenAPI document of the bundle's runner, as Cog would bake it into an image.

        Raises `StageError` if the runner cannot be loaded, with the runner's own message.
        """
        ...

    def deploy(
        self,
        settings: Settings,
        revision: str,
        bundle: Path,
        runner: str,
        example: Mapping[str, Any] | None = None,
        promote: bool = True,
    ) -> Endpoint:
        """Brings the revision up beside those that serve, waits until it is ready and has answered `example` (inputs of a first
        prediction), then gives it the whole traffic without losing a request; with `promote` false it gets none yet.

        If the new revision does not come up or does not answer, the old one goes on serving and `ServingError` tells
        why, with the end of the runner's own log.
        """
        ...

    def find(self, name: str) -> Endpoint | None:
        """The endpoint of that name, if it is alive and answers its health check. Needs no heavy library."""
        ...

    def status(self, name: str) -> Status:
        """The service with its revisions. Raises `ServingError` if none of that name runs."""
        ...

    def route(
        self, name: str, weights: Mapping[str, int], shadow: str | None = None, sticky: str | None = None
    ) -> Status:
        """Splits the traffic between revisions that are up, by percent; those left out are drained and ended.

        Raises `ServingError` if one is not known, or the percents do not add up to 100.
        """
        ...

    def scale(self, name: str, least: int, most: int) -> Status:
        """Bounds the replicas of each revision in traffic, until the gateway ends or is deployed with other settings.

        Raises `ServingError` if these are no bounds.
        """
        ...

    def restore(self, name: str) -> Endpoint | None:
        """Starts a gateway again that has died, with the settings and the traffic that it had and, if that is free, at its address.

        None if there is nothing to restore: it lives, or it was ended on purpose. Raises `ServingError` if it does not come up.
        """
        ...

    def withdraw(self, name: str, revision: str) -> None:
        """Ends a revision that gets no traffic, and forgets it; nothing if there is none of that name. Raises `ServingError` if
        it is in traffic."""
        ...

    def predict(
        self, endpoint: Endpoint, inputs: Mapping[str, Any], prediction_id: str, timeout: float
    ) -> Mapping[str, Any]:
        """One prediction; returns Cog's answer (`id`, `status`, `output`, ...) with the `revision` that gave it. Raises `ServingError`
        if it failed."""
        ...

    def feedback(self, endpoint: Endpoint, prediction_id: str, label: Any) -> None:
        """Tells what turned out to be true of an earlier prediction. Raises `ServingError` if it was not taken."""
        ...

    def running(self) -> Sequence[str]:
        """The names of the services that run."""
        ...

    def stop(self, name: str) -> bool:
        """Ends the service after the predictions that run; False if none ran."""
        ...
