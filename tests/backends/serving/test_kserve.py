"""The InferenceService and its patches, against KServe's own schema, on a cluster that does with traffic what KServe and Knative do."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from drivetrain.backends.serving.kserve import (
    CHAMPION,
    REVISION,
    KServeTraffic,
    Predictor,
    candidate,
    inference_service,
    promotion,
)
from drivetrain.errors import ServingError, UsageError

SCHEMA = json.loads((Path(__file__).parent / "data" / "inferenceservice.schema.json").read_text())
FIRST = Predictor(
    "flights", "flights-1-aaaa", "registry.example/flights@sha256:1", max=4, min=0, events="http://watch.example/events",
    environment={"LOG_LEVEL": "info"}, resources={"cpu": "1", "memory": "2Gi"},
)  # fmt: skip
SECOND = replace(FIRST, revision="flights-2-bbbb", image="registry.example/flights@sha256:2")


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def valid(manifest: Mapping[str, Any]) -> None:
    document = strict(SCHEMA)
    document["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(document).validate(manifest)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    found = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


@dataclass
class FakeCluster:
    """One InferenceService. `traffic` is what Knative makes of it: percent by image."""

    manifest: dict[str, Any]
    ready: bool = True
    rolled_out: str = ""
    patches: list[Mapping[str, Any]] = field(default_factory=list)
    generation: int = 1
    history: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rolled_out = self._image

    @property
    def _image(self) -> str:
        return str(self.manifest["spec"]["predictor"]["containers"][0]["image"])

    @property
    def traffic(self) -> dict[str, int]:
        percent = self.manifest["spec"]["predictor"].get("canaryTrafficPercent")
        if percent is None or self._image == self.rolled_out:
            return {self._image: 100}
        return {name: share for name, share in ((self._image, percent), (self.rolled_out, 100 - percent)) if share}

    def read(self, namespace: str, name: str) -> Mapping[str, Any]:
        found = copy.deepcopy(self.manifest)
        found["metadata"]["generation"] = self.generation
        latest = f"{self._image}-ready" if self.ready else "before"
        found["status"] = {
            "observedGeneration": self.generation,
            "components": {
                "predictor": {
                    "latestRolledoutRevision": self.rolled_out,
                    "latestCreatedRevision": f"{self._image}-ready",
                    "latestReadyRevision": latest,
                }
            },
        }
        return found

    def patch(self, namespace: str, name: str, patch: Mapping[str, Any]) -> None:
        self.patches.append(patch)
        self.manifest = merged(self.manifest, patch)
        self.generation += 1
        valid(self.manifest)
        self.history.append(self.traffic)
        if "canaryTrafficPercent" not in self.manifest["spec"]["predictor"]:
            self.rolled_out = self._image


def test_the_manifest_and_every_patch_of_it_fit_kserves_schema() -> None:
    manifest = inference_service(FIRST)
    valid(manifest)
    beside = merged(manifest, candidate(SECOND))
    valid(beside)
    assert beside["spec"]["predictor"]["canaryTrafficPercent"] == 0
    assert beside["metadata"]["annotations"][CHAMPION] == FIRST.revision
    whole = merged(beside, promotion(SECOND.revision))
    valid(whole)
    assert whole == inference_service(SECOND)


def test_kubernetes_asks_whether_the_container_is_ready_and_whether_it_is_to_be_started_again() -> None:
    def probed(predictor: Predictor) -> list[str]:
        container = inference_service(predictor)["spec"]["predictor"]["containers"][0]
        probes = [container["readinessProbe"]["httpGet"], container["livenessProbe"]["httpGet"]]
        assert {probe["port"] for probe in probes} == {container["ports"][0]["containerPort"]}
        return [probe["path"] for probe in probes]

    assert probed(FIRST) == ["/v2/health/ready", "/v2/health/live"]
    assert probed(replace(FIRST, ready="/openapi.json", live="/health-check")) == ["/openapi.json", "/health-check"]


def test_the_loggers_events_name_the_revision_by_an_annotation() -> None:
    manifest = inference_service(FIRST)
    logger = manifest["spec"]["predictor"]["logger"]
    assert logger == {"mode": "all", "url": FIRST.events, "metadataAnnotations": [REVISION]}
    assert manifest["metadata"]["annotations"][REVISION] == FIRST.revision
    beside = merged(manifest, candidate(SECOND))
    assert beside["metadata"]["annotations"][REVISION] == SECOND.revision
    assert "logger" not in inference_service(replace(FIRST, events=None))["spec"]["predictor"]


def test_a_field_that_kserve_does_not_know_would_be_noticed() -> None:
    manifest = inference_service(FIRST)
    manifest["spec"]["predictor"]["canaryPercent"] = 5
    with pytest.raises(jsonschema.ValidationError):
        valid(manifest)


def test_a_rollout_moves_the_percent_and_the_champion_serves_until_it_is_promoted() -> None:
    cluster = FakeCluster(inference_service(FIRST))
    traffic = KServeTraffic(cluster, SECOND)
    for percent in (5, 50):
        for _ in range(2):
            traffic.share(percent)
        assert cluster.traffic == {SECOND.image: percent, FIRST.image: 100 - percent}
        assert traffic.champion() == FIRST.revision
    assert len(cluster.patches) == 3  # brought up, 5 %, 50 %: nothing is said twice
    traffic.promote()
    assert cluster.traffic == {SECOND.image: 100}
    assert traffic.champion() == SECOND.revision
    traffic.restore()
    assert cluster.traffic == {SECOND.image: 100}
    assert all(sum(shares.values()) == 100 for shares in cluster.history)


def test_a_candidate_that_is_taken_back_leaves_the_revision_that_was_rolled_out_last() -> None:
    cluster = FakeCluster(inference_service(FIRST))
    traffic = KServeTraffic(cluster, SECOND)
    traffic.share(25)
    traffic.restore()
    traffic.restore()
    assert (cluster.traffic, traffic.champion()) == ({FIRST.image: 100}, FIRST.revision)


def test_a_candidate_that_is_not_ready_gets_nothing() -> None:
    cluster = FakeCluster(inference_service(FIRST), ready=False)
    with pytest.raises(ServingError, match="not ready"):
        KServeTraffic(cluster, SECOND).share(5)
    assert cluster.traffic == {FIRST.image: 100}


def test_there_is_no_shadow_and_a_foreign_service_is_left_alone() -> None:
    manifest = inference_service(FIRST)
    traffic = KServeTraffic(FakeCluster(manifest), SECOND)
    with pytest.raises(UsageError, match="no copies"):
        traffic.shadow()
    del manifest["metadata"]["annotations"][CHAMPION]
    with pytest.raises(ServingError, match="annotation"):
        KServeTraffic(FakeCluster(manifest), SECOND).champion()
