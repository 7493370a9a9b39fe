"""Package: the version becomes an image that any container runtime starts, where the definition asks for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drivetrain import packaging
from drivetrain.backends.images import Built, Images, Origin, Trust
from drivetrain.backends.serving import Serving
from drivetrain.definition.packaging import Package
from drivetrain.errors import StageError
from drivetrain.records import Artifact, PackageOutputs, Reference, Scalar
from drivetrain.stages import StageContext
from drivetrain.stages import bundle as bundles

_COG = "run.cog.version"
"""The label that `cog build` leaves on every image."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the image holds: the model with what its features mean, the version that it was registered as, and the snapshot of rows that
    all of it began with."""

    model: Artifact
    definitions: Artifact
    version: Reference
    snapshot: Artifact


def run(context: StageContext, inputs: Inputs, *, serving: Serving, images: Images, trust: Trust) -> PackageOutputs:
    """The image, by its digest: built and, where the definition says so, pushed with its papers; or the one that it names, looked up. And
    the model's signature, where there is a key.

    Raises `StageError` if no image can be made of the bundle, or if the one that is named is none of Cog's.
    """
    part = context.definition.package
    if part is None:
        context.say("the definition asks for no image")
        return PackageOutputs(None, None)
    signature = _sign(context, inputs.model, trust) if part.sign else None
    origin = _origin(context, inputs, part)
    if part.image is not None:
        given = _given(context, images, part.image)
        if signature is not None:
            context.say(f"attached to it: {', '.join(trust.attest(given.id, None, origin, signature))}")
        return PackageOutputs(given, _kept(context, signature))
    version = inputs.version.id.rpartition("/")[2]
    place = bundles.lay_out(context, inputs.model, inputs.definitions, serving)
    recipe = packaging.recipe(
        context.definition.name, part, context.definition.serving, context.project, context.definition.lock, place,
        inputs.model.digest, version, context.fingerprints["commit"],
    )  # fmt: skip
    built = images.build(recipe, context.say)
    name = f"{context.definition.name}@{built.image.digest}"
    detail = _detail(built, version)
    if part.push is not None:
        ref = packaging.tagged(part.push, version)
        pushed = packaging.publish(images, trust, built, ref, origin, signature, context.say)
        context.say(f"pushed {pushed.ref}: {pushed.bytes_sent:,} bytes sent in {pushed.seconds:.1f} s")
        name = pushed.ref
        detail["pushed"] = True
    return PackageOutputs(Reference("image", name, detail), _kept(context, signature))


def _sign(context: StageContext, model: Artifact, trust: Trust) -> Path | None:
    """The model's signature as a file; None where there is no key to sign with."""
    folder = context.objects.get(model, context.work / "signed")
    signature = trust.sign_model(folder, context.work / packaging.SIGNATURE)
    context.say("the model is signed" if signature else "there is no key here to sign with")
    return signature


def _kept(context: StageContext, signature: Path | None) -> Artifact | None:
    return context.objects.put("signature", signature) if signature is not None else None


def _origin(context: StageContext, inputs: Inputs, part: Package) -> Origin:
    made_of = {"snapshot": inputs.snapshot, "definitions": inputs.definitions, "model": inputs.model}
    known = context.fingerprints
    return Origin(
        run=context.run_id, definition=known["definition"], code=known["code"], lock=known["lock"], commit=known["commit"],
        source=part.source or "", materials={name: artifact.digest for name, artifact in made_of.items()},
    )  # fmt: skip


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
    detail: dict[str, Scalar] = {"digest": digest, "cog": labels[_COG], "pushed": True}
    return Reference("image", packaging.pinned(ref, digest), detail)
