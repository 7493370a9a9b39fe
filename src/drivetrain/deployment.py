"""Which revision serves, brought up again or taken back: what `deploy`, `serve` and `rollback` do on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain import champion, packaging, service, wiring
from drivetrain.backends.images import Origin, Recipe, Trust
from drivetrain.backends.serving import Endpoint, Status
from drivetrain.champion import Champion
from drivetrain.definition.packaging import Package
from drivetrain.errors import UsageError
from drivetrain.project import Project
from drivetrain.records import (
    Artifact,
    DeployOutputs,
    FeaturesOutputs,
    IngestOutputs,
    PackageOutputs,
    Record,
    RegisterOutputs,
    TrainOutputs,
    decode,
)


@dataclass(frozen=True, slots=True)
class Deployed:
    """What one run brought to serve."""

    run_id: str
    outputs: DeployOutputs

    @property
    def revision(self) -> str:
        return self.outputs.revision.id


def leading(opened: Project) -> Deployed:
    """What the champion's run deployed. Raises `UsageError` if nothing has been promoted yet."""
    found = champion.read(wiring.project_objects(opened), opened.definition.name)
    if found is None:
        raise UsageError("no model has been promoted yet", hint="`drivetrain run` makes one")
    return of_run(opened, found.run_id)


def of_run(opened: Project, run_id: str) -> Deployed:
    """What the run deployed. Raises `UsageError` if it did not."""
    outputs = _outputs(opened, run_id, "deploy", DeployOutputs)
    if outputs is None:
        raise UsageError(f"run {run_id} did not deploy here", hint="`drivetrain run --from deploy`")
    return Deployed(run_id, outputs)


def of_revision(opened: Project, revision: str) -> Deployed | None:
    """The latest run that deployed the revision, the champion's first; None if none of this project did."""
    found = champion.read(wiring.project_objects(opened), opened.definition.name)
    ids = [found.run_id] if found else []
    for run_id in [*ids, *(row.id for row in opened.journal.runs())]:
        outputs = _outputs(opened, run_id, "deploy", DeployOutputs)
        if outputs is not None and outputs.revision.id == revision:
            return Deployed(run_id, outputs)
    return None


def recipe(opened: Project, deployed: Deployed, bundle: Path) -> Recipe:
    """How the image of what was deployed is built; `bundle` is a directory to put it into, as the run laid it out."""
    wiring.project_objects(opened).get(deployed.outputs.bundle, bundle)
    trained = _outputs(opened, deployed.run_id, "train", TrainOutputs)
    row = opened.journal.run(deployed.run_id)
    return packaging.recipe(
        opened.definition.name, opened.definition.package or Package(), opened.definition.serving, opened.root,
        opened.definition.lock, bundle, trained.model.digest if trained else "",
        str(deployed.outputs.bundle.metadata["version"]), str(row.facts.get("commit") or "") if row else "",
    )  # fmt: skip


def origin(opened: Project, deployed: Deployed) -> Origin:
    """Where the image of what was deployed comes from, as its run has it."""
    row = opened.journal.run(deployed.run_id)
    facts = dict(row.facts) if row else {}
    made: dict[str, Artifact] = {}
    ingested = _outputs(opened, deployed.run_id, "ingest", IngestOutputs)
    featured = _outputs(opened, deployed.run_id, "features", FeaturesOutputs)
    trained = _outputs(opened, deployed.run_id, "train", TrainOutputs)
    made |= {"snapshot": ingested.snapshot} if ingested else {}
    made |= {"definitions": featured.definitions} if featured else {}
    made |= {"model": trained.model} if trained else {}
    part = opened.definition.package
    return Origin(
        run=deployed.run_id, source=(part.source if part else None) or "",
        materials={name: artifact.digest for name, artifact in made.items()},
        **{name: str(facts.get(name) or "") for name in ("definition", "code", "lock", "commit")},
    )  # fmt: skip


def origin_of_stages(opened: Project) -> Origin:
    """Where the image of a pipeline's steps comes from: the project as it is now. No run made it."""
    part = opened.definition.package
    facts = {name: str(value or "") for name, value in wiring.facts_of(opened).items()}
    return Origin(
        "", facts["definition"], facts["code"], facts["lock"], facts["commit"], (part.source if part else None) or ""
    )


def signature(opened: Project, deployed: Deployed, model: Path, target: Path) -> Path | None:
    """The signature of the model in the directory `model` as a file below `target`: as the run made it, or else made now; None where there
    is no key."""
    packaged = _outputs(opened, deployed.run_id, "package", PackageOutputs)
    if packaged is not None and packaged.signature is not None:
        return wiring.project_objects(opened).get(packaged.signature, target) / packaging.SIGNATURE
    target.mkdir()
    return trust(opened).sign_model(model, target / packaging.SIGNATURE)


def trust(opened: Project) -> Trust:
    """What signs and checks, as the project's definition says."""
    part = opened.definition.package
    return wiring.trust(opened.state, opened.root, part.sign if part else None)


def refuse_untrusted(opened: Project, deployed: Deployed, model: Path, scratch: Path) -> None:
    """Raises `Untrusted` unless what was deployed is signed as the definition wants it now."""
    sign = opened.definition.package.sign if opened.definition.package else None
    if sign is None or sign.check == "nothing":
        return
    packaged = _outputs(opened, deployed.run_id, "package", PackageOutputs)
    trained = _outputs(opened, deployed.run_id, "train", TrainOutputs)
    kept = packaged.signature if packaged else None
    file = wiring.project_objects(opened).get(kept, scratch) / packaging.SIGNATURE if kept else None
    digest = trained.model.digest if trained else deployed.outputs.bundle.digest
    packaging.refuse(trust(opened), sign, model, digest, file, packaged.image if packaged else None)


def trusted_image(opened: Project, ref: str) -> str:
    """The image in its registry by digest, so that what is started is what was looked at. Raises `Untrusted` if it is not signed as the
    definition wants it, `StageError` if it is not there; where the definition wants nothing it is the reference as it is."""
    sign = opened.definition.package.sign if opened.definition.package else None
    if sign is None or sign.check == "nothing":
        return ref
    digest, _ = wiring.images(opened.state).config(ref)
    found = packaging.pinned(ref, digest)
    trust(opened).check_image(found, layers=sign.check == "layers")
    return found


def bring_up(opened: Project, deployed: Deployed) -> Endpoint:
    """Has the revision serve, alone. Raises `ServingError` if it does not come up, `Untrusted` if it is not signed as the definition wants
    it; what served before goes on then."""
    return _deploy(opened, deployed, promote=True)


def stand_by(opened: Project, deployed: Deployed) -> Endpoint:
    """Has the revision be up beside those that serve; the traffic stays as it is. Raises `ServingError` if it does not come up."""
    return _deploy(opened, deployed, promote=False)


def revive(opened: Project) -> Endpoint:
    """The service, which is started again with the traffic that it had if its gateway has died. Raises `ServingError` if it does not
    come up, `UsageError` if nothing has been promoted yet."""
    serving, name = wiring.serving(opened.state), opened.definition.name
    found: Endpoint | None = serving.find(name) or serving.restore(name)
    if found is not None:
        return found
    found = stand_by(opened, leading(opened))
    if any(revision.weight for revision in serving.status(name).revisions):
        return found
    return bring_up(opened, leading(opened))


def dismiss(opened: Project, deployed: Deployed) -> None:
    """The version is the challenger no more, if it was."""
    registered = _outputs(opened, deployed.run_id, "register", RegisterOutputs)
    if registered is not None:
        _unchallenge(opened, registered.version.id.rpartition("/")[2])


def _unchallenge(opened: Project, number: str) -> None:
    tracking, name = wiring.tracking(opened.state, opened.target), opened.definition.name
    challenger = tracking.version(name, "challenger")
    if challenger is not None and challenger.version == number:
        tracking.drop_alias(name, "challenger")


def _deploy(opened: Project, deployed: Deployed, *, promote: bool) -> Endpoint:
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        bundle = wiring.project_objects(opened).get(deployed.outputs.bundle, Path(directory) / "bundle")
        refuse_untrusted(opened, deployed, bundle / "model", Path(directory) / "signature")
        found: Endpoint = wiring.serving(opened.state).deploy(
            service.settings(opened.definition, opened.root, opened.state),
            deployed.revision,
            bundle,
            str(deployed.outputs.bundle.metadata["runner"]),
            promote=promote,
        )
    return found


def former(opened: Project) -> Deployed:
    """What `rollback` goes back to if it is told nothing else. Raises `UsageError` if there is nothing."""
    return _target(opened, None)


def rollback(opened: Project, to: str | None = None) -> Endpoint:
    """Has the revision serve that did so before, or the revision or model version `to`; its version is the champion again.

    Raises `UsageError` if there is nothing to go back to, and otherwise as `promote` does.
    """
    return promote(opened, _target(opened, to))


def promote(opened: Project, deployed: Deployed) -> Endpoint:
    """Has the revision serve, alone, and makes its version the champion.

    The endpoint comes first, the alias and the champion's record after it, so that doing it again completes what was cut off.
    Raises `UsageError` if its run registered no model, `ServingError` if it does not come up; what served before goes on then.
    """
    trained = _outputs(opened, deployed.run_id, "train", TrainOutputs)
    registered = _outputs(opened, deployed.run_id, "register", RegisterOutputs)
    if trained is None or registered is None:
        raise UsageError(f"run {deployed.run_id} has no registered model", hint="give another revision with --to")
    endpoint = bring_up(opened, deployed)
    store, name = wiring.project_objects(opened), opened.definition.name
    number = registered.version.id.rpartition("/")[2]
    wiring.tracking(opened.state, opened.target).set_alias(name, "champion", number)
    _unchallenge(opened, number)
    former = champion.read(store, name)
    champion.write(store, champion.succeed(former, trained.model, registered.version, deployed.run_id))
    return endpoint


def remember_prediction(opened: Project, prediction_id: str) -> None:
    """Journals which run made the revision that gave a prediction, if the service's log of requests knows the id."""
    if opened.journal.prediction(prediction_id) is not None or opened.journal.run(prediction_id) is not None:
        return
    directory = service.capture_directory(opened.state, opened.definition.name)
    if not directory.is_dir():
        return
    from drivetrain.backends.serving.gateway import captured  # its JSON library is not needed for anything else here

    for event in captured.find(directory, prediction_id):
        made = of_revision(opened, event.revision)
        if made is not None:
            opened.journal.keep_prediction(prediction_id, made.revision, made.run_id, event.at)
            return


def _target(opened: Project, to: str | None) -> Deployed:
    if to is None:
        found = _former(opened)
    elif "-" in to and (deployed := of_revision(opened, to)) is not None:
        found = deployed
    else:
        found = _of_version(opened, to)
    if found is None:
        what = f"{to} is no revision or version that was deployed here" if to else "no other revision has served yet"
        raise UsageError(what, hint="`drivetrain runs` lists runs and versions")
    return found


def _former(opened: Project) -> Deployed | None:
    """What served before the champion: as the gateway remembers it, or else by the model that the champion replaced."""
    serving, name = wiring.serving(opened.state), opened.definition.name
    endpoint = serving.find(name)
    if endpoint is not None:
        status: Status = serving.status(name)
        if status.former is not None:
            return of_revision(opened, status.former)
    now: Champion | None = champion.read(wiring.project_objects(opened), name)
    if now is None or now.replaces is None:
        return None
    for row in opened.journal.runs():
        trained = _outputs(opened, row.id, "train", TrainOutputs)
        if trained is not None and trained.model.digest == now.replaces.digest:
            outputs = _outputs(opened, row.id, "deploy", DeployOutputs)
            if outputs is not None:
                return Deployed(row.id, outputs)
    return None


def _of_version(opened: Project, version: str) -> Deployed | None:
    wanted = version if "/" in version else f"{opened.definition.name}/{version}"
    for row in opened.journal.runs():
        registered = _outputs(opened, row.id, "register", RegisterOutputs)
        outputs = _outputs(opened, row.id, "deploy", DeployOutputs)
        if registered is not None and outputs is not None and registered.version.id == wanted:
            return Deployed(row.id, outputs)
    return None


def _outputs(opened: Project, run_id: str, stage: str, kind: type[Record]) -> Record | None:
    attempt: Any = opened.journal.latest(run_id).get(stage)
    return None if attempt is None or attempt.outputs is None else decode(kind, attempt.outputs)
