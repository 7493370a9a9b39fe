"""What an image is built from, and what it is called, from the definition: the model's, and that of a pipeline's steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from drivetrain.backends.images import Built, Images, Origin, Pushed, Recipe, StagesRecipe, Trust
from drivetrain.definition.definition import Definition
from drivetrain.definition.packaging import Package, Sign
from drivetrain.definition.serving import Serving
from drivetrain.records import Reference

SIGNATURE = "model.sig"
"""The file of the artifact that holds a model's signature."""

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


def stages_recipe(definition: Definition, project: Path, commit: str) -> StagesRecipe:
    """How the project becomes the image that a pipeline's steps run in; `commit` is the project's."""
    part = definition.package or Package()
    return StagesRecipe(
        folder=project,
        name=definition.name,
        lock=definition.lock,
        cog=definition.serving.cog,
        leave_out=_not_for_images(definition, project),
        platform=part.platform,
        base=part.base,
        uid=part.user,
        annotations=_annotations(part, "", commit),
    )


def _not_for_images(definition: Definition, project: Path) -> list[str]:
    """What the definition names in the project and no image of it may have: private keys, and what images are only made with. Each by the
    name that it has there, and by that of the file which links lead to."""
    part, tls = definition.package, definition.serving.tls
    named = [part.base, part.advisories, part.sign.key if part.sign else None] if part else []
    named.append(tls.key if tls else None)
    found = [os.path.relpath(project / name, project) for name in named if name]
    found += [os.path.relpath((project / name).resolve(), project.resolve()) for name in named if name]
    return [Path(name).as_posix() for name in dict.fromkeys(found)]


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


def publish(
    images: Images, trust: Trust, built: Built, ref: str, origin: Origin, signature: Path | None, say: Callable[[str], None]
) -> Pushed:  # fmt: skip
    """Pushes the image with its papers and signatures, and the weights alone with theirs; the tags move when all of them are there.
    `signature` is the model's."""
    began = time.monotonic()
    pushed = images.push(built, pinned(ref, built.image.digest))
    say(f"attached to it: {', '.join(trust.attest(pushed.ref, built, origin, signature))}")
    if built.weights is not None:
        trust.attest(pinned(ref, built.weights.digest), None, origin, signature)
    tagged = images.push(built, ref)
    sent = pushed.bytes_sent + tagged.bytes_sent
    return replace(pushed, bytes_sent=sent, seconds=time.monotonic() - began)


def refuse(
    trust: Trust, sign: Sign | None, model: Path, digest: str, signature: Path | None, image: Reference | None
) -> None:
    """Raises `Untrusted`, or `CorruptArtifact` for bytes that are not what their digest says, unless the model and the image in its
    registry are what was signed, by whom the definition wants it; looks at nothing where the definition does not ask for it.

    `model` is the model's directory and `digest` its artifact's.
    """
    if sign is None or sign.check == "nothing":
        return
    trust.check_model(model, signature, digest)
    if image is not None and image.detail.get("pushed"):
        trust.check_image(image.id, layers=sign.check == "layers")


def tagged(reference: str, version: str) -> str:
    """The reference with a tag: its own, or else the model's version."""
    return reference if ":" in reference.rpartition("/")[2] else f"{reference}:{version}"


def pinned(reference: str, digest: str) -> str:
    """The reference by digest, without a tag."""
    head, slash, last = reference.partition("@")[0].rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"
