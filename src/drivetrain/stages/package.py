"""Package: the version becomes an image that any container runtime starts, where the definition asks for one."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain import packaging
from drivetrain.backends.images import Built, Images
from drivetrain.backends.serving import Serving
from drivetrain.errors import StageError
from drivetrain.records import Artifact, PackageOutputs, Reference, Scalar
from drivetrain.stages import StageContext
from drivetrain.stages import bundle as bundles

_COG = "run.cog.version"
"""The label that `cog build` leaves on every image."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the image holds: the model with what its features mean, and the version that it was registered as."""

    model: Artifact
    definitions: Artifact
    version: Reference


def run(context: StageContext, inputs: Inputs, *, serving: Serving, images: Images) -> PackageOutputs:
    """The image, by its digest: built and, where the definition says so, pushed; or the one that it names, looked up.

    Raises `StageError` if no image can be made of the bundle, or if the one that is named is none of Cog's.
    """
    part = context.definition.package
    if part is None:
        context.say("the definition asks for no image")
        return PackageOutputs(None)
    if part.image is not None:
        return PackageOutputs(_given(context, images, part.image))
    version = inputs.version.id.rpartition("/")[2]
    place = bundles.lay_out(context, inputs.model, inputs.definitions, serving)
    recipe = packaging.recipe(
        context.definition.name, part, context.definition.serving, context.project, context.definition.lock, place,
        inputs.model.digest, version, context.fingerprints["commit"],
    )  # fmt: skip
    built = images.build(recipe, context.say)
    name = f"{context.definition.name}@{built.image.digest}"
    if part.push is not None:
        pushed = images.push(built, packaging.tagged(part.push, version))
        context.say(f"pushed {pushed.ref}: {pushed.bytes_sent:,} bytes sent in {pushed.seconds:.1f} s")
        name = pushed.ref
    return PackageOutputs(Reference("image", name, _detail(built, version)))


def _detail(built: Built, version: str) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {
        "digest": built.image.digest, "base": built.base, "version": version, "size": built.image.size,
        "packages": len(built.packages),
    }  # fmt: skip
    return found | ({"weights": built.weights.layers[0].digest} if built.weights else {})


def _given(context: StageContext, images: Images, ref: str) -> Reference:
    digest, config = images.config(ref)
    labels = (config.get("config") or {}).get("Labels") or {}
    if _COG not in labels:
        raise StageError(
            f"{ref} is no image of Cog's: it has no label {_COG}",
            hint="package.image is for what `cog build` made; without it the image is made here",
        )
    context.say(f"{ref} of Cog {labels[_COG]} is taken")
    detail: dict[str, Scalar] = {"digest": digest, "cog": labels[_COG]}
    return Reference("image", packaging.pinned(ref, digest), detail)
