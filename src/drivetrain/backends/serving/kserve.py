"""Serving on KServe, in Knative mode: the InferenceService as a manifest, and a rollout as patches of it.

Knative keeps the revision that was rolled out last, tagged `prev`, and gives the newest `canaryTrafficPercent` of the traffic; without that
field the newest is rolled out. Pure but for `Cluster`, which is asked and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from drivetrain.errors import ServingError, UsageError

GROUP = "serving.kserve.io"
CHAMPION, REVISION = "drivetrain.dev/champion", "drivetrain.dev/revision"
"""Annotations: the revision that is on record as the champion; the one that the present specification is of."""
_PORT = 5000


@dataclass(frozen=True, slots=True)
class Predictor:
    """What a revision is on a cluster. `timeout` in seconds; `metric` is `concurrency` or `rps`; `concurrency` the requests that a replica
    takes at a time, 0 for no limit; `events` the address that KServe's logger posts requests and answers to, None for none."""

    name: str
    revision: str
    image: str
    namespace: str = "default"
    min: int = 1
    max: int = 1
    metric: str = "concurrency"
    target: int = 10
    concurrency: int = 0
    timeout: int = 60
    events: str | None = None
    ready: str = "/v2/health/ready"
    """Path that answers 200 once predictions are taken; `/openapi.json` for an image of `cog build`."""
    live: str = "/v2/health/live"
    """Path that answers 200 unless only a new container helps; `/health-check` for an image of `cog build`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    """Requests and limits alike, such as `{"cpu": "2", "memory": "4Gi"}`."""


class Cluster(Protocol):
    """Reads and changes InferenceServices. Both raise `ServingError` if the API server does not answer, or refuses."""

    def read(self, namespace: str, name: str) -> Mapping[str, Any]:
        """The InferenceService with its `metadata`, `spec` and `status`."""
        ...

    def patch(self, namespace: str, name: str, patch: Mapping[str, Any]) -> None:
        """Merges a patch into it (RFC 7386: null removes a field)."""
        ...


def inference_service(predictor: Predictor) -> dict[str, Any]:
    """The manifest of a service whose first revision this is: it is the champion, and gets the whole traffic."""
    return {
        "apiVersion": f"{GROUP}/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": predictor.name,
            "namespace": predictor.namespace,
            "annotations": {
                f"{GROUP}/deploymentMode": "Knative",
                f"{GROUP}/enable-tag-routing": "true",
                CHAMPION: predictor.revision,
                REVISION: predictor.revision,
            },
        },
        "spec": {"predictor": _predictor(predictor)},
    }


def candidate(predictor: Predictor) -> dict[str, Any]:
    """The patch that brings a candidate up beside the champion, without traffic."""
    return {
        "metadata": {"annotations": {REVISION: predictor.revision}},
        "spec": {"predictor": {**_predictor(predictor), "canaryTrafficPercent": 0}},
    }


def share(percent: int) -> dict[str, Any]:
    """The patch that gives the candidate so many percent."""
    return {"spec": {"predictor": {"canaryTrafficPercent": percent}}}


def promotion(revision: str) -> dict[str, Any]:
    """The patch that gives the candidate the whole traffic and records it as the champion, in one change."""
    return {"metadata": {"annotations": {CHAMPION: revision}}, "spec": {"predictor": {"canaryTrafficPercent": None}}}


def _predictor(predictor: Predictor) -> dict[str, Any]:
    found: dict[str, Any] = {
        "minReplicas": predictor.min,
        "maxReplicas": predictor.max,
        "scaleMetric": predictor.metric,
        "scaleTarget": predictor.target,
        "timeout": predictor.timeout,
        "containerConcurrency": predictor.concurrency,
        "containers": [_container(predictor)],
    }
    if predictor.events is not None:
        found["logger"] = {"mode": "all", "url": predictor.events, "metadataAnnotations": [REVISION]}
    return found


def _container(predictor: Predictor) -> dict[str, Any]:
    resources = dict(predictor.resources)
    container: dict[str, Any] = {
        "name": "kserve-container",
        "image": predictor.image,
        "ports": [{"containerPort": _PORT, "name": "http1", "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": predictor.ready, "port": _PORT}, "periodSeconds": 2},
        # The container's front listens within a second or so, and answers whatever the model does: half a minute is a failure.
        "livenessProbe": {
            "httpGet": {"path": predictor.live, "port": _PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
    }
    if predictor.environment:
        container["env"] = [{"name": name, "value": value} for name, value in sorted(predictor.environment.items())]
    if resources:
        container["resources"] = {"requests": resources, "limits": resources}
    return container


class KServeTraffic:
    """The traffic of an InferenceService, as a rollout moves it. Each verb may be called again.

    A shadow needs a mirror in the mesh, which KServe does not set up: `shadow` raises `UsageError`.
    """

    def __init__(self, cluster: Cluster, predictor: Predictor) -> None:
        self._cluster = cluster
        self._candidate = predictor

    def champion(self) -> str:
        """The revision on record. Raises `ServingError` if Drivetrain has not written one there."""
        found = self._read()["metadata"].get("annotations", {}).get(CHAMPION)
        if found is None:
            raise ServingError(
                f"InferenceService {self._candidate.name} has no annotation {CHAMPION}",
                hint="deploy a champion there first",
            )
        return str(found)

    def revive(self) -> None:
        """Nothing: Kubernetes does."""

    def shadow(self) -> None:
        """Raises `UsageError`."""
        raise UsageError("KServe sends no copies to a candidate", hint="leave out serving.canary.shadow on this target")

    def share(self, percent: int) -> None:
        """The candidate answers so many percent. Raises `ServingError` while it is not ready: Knative keeps the traffic as it is then."""
        now = self._read()
        if now["metadata"].get("annotations", {}).get(REVISION) != self._candidate.revision:
            self._patch(candidate(self._candidate))
            now = self._read()
        self._check(now)
        if now["spec"]["predictor"].get("canaryTrafficPercent") != percent:
            self._patch(share(percent))

    def promote(self) -> None:
        """The candidate answers everything, and is the champion."""
        self._patch(promotion(self._candidate.revision))

    def restore(self) -> None:
        """The champion answers everything: the revision that was rolled out last. The candidate stays as a revision without traffic, which
        Knative scales to zero."""
        if self.champion() != self._candidate.revision:
            self._patch(share(0))

    def _check(self, now: Mapping[str, Any]) -> None:
        status = now.get("status", {})
        parts = status.get("components", {}).get("predictor", {})
        if not parts.get("latestRolledoutRevision"):
            raise ServingError("no revision is rolled out yet that the traffic could be shared with")
        seen = status.get("observedGeneration") == now["metadata"].get("generation")
        if not seen or parts.get("latestReadyRevision") != parts.get("latestCreatedRevision"):
            raise ServingError(
                f"the candidate {self._candidate.revision} is not ready", hint="`kubectl get ksvc` says why"
            )

    def _read(self) -> Mapping[str, Any]:
        return self._cluster.read(self._candidate.namespace, self._candidate.name)

    def _patch(self, patch: Mapping[str, Any]) -> None:
        self._cluster.patch(self._candidate.namespace, self._candidate.name, patch)
