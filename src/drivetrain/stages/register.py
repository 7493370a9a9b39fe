"""Register: the model becomes a registered version that carries every digest it was made from: the challenger."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain.backends.tracking import Tracking
from drivetrain.errors import StageError
from drivetrain.records import Artifact, Reference, RegisterOutputs, Verdict
from drivetrain.stages import StageContext

CHALLENGER = "challenger"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model, the run that logged it, and all that led to it."""

    snapshot: Artifact
    definitions: Artifact
    frame: Artifact
    validation: Artifact
    model: Artifact
    tracked: Reference
    report: Artifact
    passed: Verdict


def run(context: StageContext, inputs: Inputs, *, tracking: Tracking) -> RegisterOutputs:
    """The version, with the alias `challenger`. A tracked run that is registered already keeps its version.

    Raises `StageError` if the gate did not pass the model.
    """
    if not inputs.passed.passed:
        raise StageError(
            f"a model that the gate refused is not registered: {inputs.passed.reason}",
            hint="run the stage evaluate first",
        )
    name = context.definition.name
    version = tracking.register(name, inputs.tracked.id, _tags(context, inputs), inputs.passed.reason)
    tracking.set_alias(name, CHALLENGER, version.version)
    context.say(f"{name} version {version.version}")
    detail = {"name": name, "version": version.version, "run_id": inputs.tracked.id}
    return RegisterOutputs(Reference("model_version", f"{name}/{version.version}", detail))


def _tags(context: StageContext, inputs: Inputs) -> dict[str, str]:
    made_from = {
        "snapshot": inputs.snapshot, "definitions": inputs.definitions, "frame": inputs.frame,
        "validation": inputs.validation, "model": inputs.model, "report": inputs.report,
    }  # fmt: skip
    tags = {"run": context.run_id, **context.fingerprints}
    tags |= {part: artifact.digest for part, artifact in made_from.items()}
    tags[f"metric.{context.definition.evaluate.metric}"] = str(inputs.report.metadata.get("value"))
    return {f"drivetrain.{key}": value for key, value in tags.items()}
