"""Deploy: the model, its runner and what both need become a bundle; the bundle answers; the version is the champion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drivetrain import champion, packaging, service
from drivetrain.backends.images import Trust
from drivetrain.backends.serving import Serving
from drivetrain.backends.tracking import Tracking
from drivetrain.errors import ServingError
from drivetrain.records import Artifact, DeployOutputs, Reference, Scalar
from drivetrain.stages import StageContext
from drivetrain.stages import bundle as bundles


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is served: the model with what its features mean, the version that it was registered as, and the image of it if there is
    one."""

    model: Artifact
    definitions: Artifact
    version: Reference
    image: Reference | None = None
    signature: Artifact | None = None


def run(context: StageContext, inputs: Inputs, *, serving: Serving, tracking: Tracking, trust: Trust) -> DeployOutputs:
    """The revision that answers now, and its bundle.

    The endpoint comes first, the alias second, the champion's record last: a deployment that was cut off is completed by
    doing it again. A candidate comes up beside the champion, gets no traffic, and moves neither alias nor record. Raises
    `StageError` if the runner cannot be loaded, `ServingError` if it does not come up or does not answer its first request,
    `Untrusted` if model or image are not signed as the definition wants it; the former champion serves on then.
    """
    name, runner = context.definition.name, bundles.runner(context)
    number = inputs.version.id.rpartition("/")[2]
    place = bundles.lay_out(context, inputs.model, inputs.definitions, serving)
    _refuse_untrusted(context, inputs, place / "model", trust)
    example = bundles.example(place)
    bundle = context.objects.put("bundle", place, {"runner": runner, "version": number})
    # Named for the bundle, which holds the model: a changed runner is a new revision of the same version.
    revision = f"{name}-{number}-{bundle.digest[:8]}"
    context.say(f"bringing up {revision}")
    settings = service.settings(context.definition, context.project, context.state)
    endpoint = serving.deploy(settings, revision, place, runner, example, promote=not context.candidate)
    detail: dict[str, Scalar] = {"url": endpoint.url, "version": number, "pid": endpoint.pid}
    if context.candidate:
        _stand_beside(serving, name)
        detail["candidate"] = True
    else:
        _promote(context, inputs, tracking, number)
    proof = "and answered its first request" if example else "(no first request: its inputs are not the features)"
    where = "beside the champion" if context.candidate else f"at {endpoint.url}"
    context.say(f"{revision} is ready {where} {proof}")
    return DeployOutputs(Reference("revision", revision, detail), bundle)


def _stand_beside(serving: Serving, name: str) -> None:
    """Raises `ServingError` if nothing serves that the candidate could stand beside."""
    if not any(found.weight for found in serving.status(name).revisions):
        hint = "`drivetrain deploy` brings the champion up"
        raise ServingError("no champion serves that a candidate could be compared with", hint=hint)


def _refuse_untrusted(context: StageContext, inputs: Inputs, model: Path, trust: Trust) -> None:
    part = context.definition.package
    sign = part.sign if part is not None else None
    signature = None
    if sign is not None and inputs.signature is not None:
        signature = context.objects.get(inputs.signature, context.work / "signature") / packaging.SIGNATURE
    packaging.refuse(trust, sign, model, inputs.model.digest, signature, inputs.image)
    if sign is not None and sign.check != "nothing":
        context.say(f"model{' and image are' if inputs.image else ' is'} what was signed")


def _promote(context: StageContext, inputs: Inputs, tracking: Tracking, number: str) -> None:
    name = context.definition.name
    tracking.set_alias(name, "champion", number)
    challenger = tracking.version(name, "challenger")
    if challenger is not None and challenger.version == number:
        tracking.drop_alias(name, "challenger")
    former = champion.read(context.objects, name)
    champion.write(context.objects, champion.succeed(former, inputs.model, inputs.version, context.run_id))
