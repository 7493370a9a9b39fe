"""What an image is built from, and what it is called, from the definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drivetrain.backends.images import Recipe
from drivetrain.definition.packaging import Package
from drivetrain.definition.serving import Serving

_GRPC_PORT = 8033
"""Where KServe's own servers speak gRPC."""
_SPEC = "org.opencontainers.image"


def recipe(
    name: str, part: Package, serving: Serving, project: Path, lock: str, bundle: Path, weights: str, version: str, commit: str
) -> Recipe:  # fmt: skip
    """How the bundle becomes an image: `lock` is the lock file's name in the project, `weights` the model's digest, `version` that of the
    registered model, `commit` the project's."""
    pins = project / lock
    return Recipe(
        bundle=bundle,
        name=name,
        folder=project,
        platform=part.platform,
        base=part.base,
        pins=pins.read_text(encoding="utf-8") if pins.is_file() else "",
        weights=weights,
        uid=part.user,
        grpc=serving.grpc_port is not None,
        arguments=_arguments(serving),
        annotations=_annotations(part, version, commit),
    )


def _arguments(serving: Serving) -> list[str]:
    """The replica's settings, as those of a local service."""
    options: dict[str, object] = {
        "queue": serving.limits.queue,
        "batch-max": serving.batch.max,
        "batch-wait-ms": f"{serving.batch.wait.total_seconds() * 1000:g}",
        "timeout": f"{serving.limits.timeout.total_seconds():g}",
        "body-limit": serving.limits.body,
    }
    if serving.grpc_port is not None:
        options["grpc-port"] = _GRPC_PORT
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def _annotations(part: Package, version: str, commit: str) -> Mapping[str, str]:
    told = {"version": version, "revision": commit, "source": part.source or ""}
    return {f"{_SPEC}.{key}": value for key, value in told.items() if value}


def tagged(reference: str, version: str) -> str:
    """The reference with a tag: its own, or else the model's version."""
    return reference if ":" in reference.rpartition("/")[2] else f"{reference}:{version}"


def pinned(reference: str, digest: str) -> str:
    """The reference by digest, without a tag."""
    head, slash, last = reference.partition("@")[0].rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"
