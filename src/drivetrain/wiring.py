"""Which answer serves which need on which platform, and a stage put together with what it needs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from drivetrain import champion, lifecycle
from drivetrain.backends.features import LOOKUP_PLAN, SQLITE_FILE
from drivetrain.backends.images import Audit, Images, Keys, Registry, Trust, Wheel
from drivetrain.backends.objects import Objects
from drivetrain.backends.runner import Plan, Progress, Step, WorkerContext
from drivetrain.backends.serving import Serving
from drivetrain.definition.definition import Definition
from drivetrain.definition.packaging import Package, Sign
from drivetrain.definition.parts import Target
from drivetrain.engines import graph
from drivetrain.errors import MissingLibrary, UsageError
from drivetrain.project import Project
from drivetrain.records import FeaturesOutputs, Scalar, digest
from drivetrain.redact import Redactor
from drivetrain.tables import s3_endpoint
from drivetrain.usercode import code_digest

ANSWERS: Mapping[str, Mapping[str, str]] = {
    "objects": {
        "directory": "drivetrain.backends.objects.directory:open_directory",
        "s3": "drivetrain.backends.objects.s3:open_s3",
    },
    "features": {"feast": "drivetrain.backends.features.feast:open_store"},
    "checks": {"great_expectations": "drivetrain.backends.checks.great_expectations:open_checks"},
    "tracking": {"mlflow": "drivetrain.backends.tracking.mlflow:open_tracking"},
    "serving": {"local": "drivetrain.backends.serving.local:open_serving"},
    "images": {"oci": "drivetrain.backends.images.oci:open_images"},
    "registry": {"oras": "drivetrain.backends.images.registry:open_registry"},
    "trust": {"oci": "drivetrain.backends.images.trust:open_trust"},
    "audit": {"pip_audit": "drivetrain.backends.images.audit:audit"},
    "signing": {
        "key": "drivetrain.backends.images.signing:open_keys",
        "keyless": "drivetrain.backends.images.keyless:open_keyless",
    },
    "runner": {"local": "drivetrain.backends.runner.local:LocalRunner"},
}
"""Need -> answer -> "module:function"; a module is imported when its answer is chosen, never before."""


_MICROK8S = "localhost:32000"
"""MicroK8s's own registry, once its add-on `registry` is on."""


def answer(need: str, name: str) -> Callable[..., Any]:
    """What opens the answer of that name."""
    module, _, attribute = ANSWERS[need][name].partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def objects(url: str, endpoint: str | None) -> Objects:
    """The store at a directory or an `s3://` URI."""
    opened: Objects = (
        answer("objects", "s3")(url, endpoint) if url.startswith("s3://") else answer("objects", "directory")(Path(url))
    )
    return opened


def project_objects(project: Project) -> Objects:
    """The objects of the project's target."""
    return objects(project.objects_url, project.target.s3_endpoint)


def serving(state: Path) -> Serving:
    """Where revisions run, on this machine."""
    found: Serving = answer("serving", "local")(state)
    return found


def images(state: Path) -> Images:
    """What makes images, with the user's store of what was made before; the project's own where the user has no place for it."""
    found: Images = answer("images", "oci")(_image_store(state), _registry)
    return found


def trust(state: Path, project: Path, sign: Sign | None) -> Trust:
    """What signs models and images, and checks them, as the definition says.

    Raises `UsageError` if the environment variable that should hold the key's password is not set.
    """
    keys = _keys(project, sign) if sign is not None else None
    kind = "keyless" if sign is not None and sign.identity else "key"
    found: Trust = answer("trust", "oci")(
        _image_store(state), _registry, None if keys is None else lambda: answer("signing", kind)(keys)
    )
    return found


def _keys(project: Path, sign: Sign) -> Keys:
    variable = sign.password_variable
    if variable is not None and not os.environ.get(variable):
        raise UsageError(f"the environment variable {variable} is not set", hint="it holds the signing key's password")
    return Keys(
        key=project / sign.key if sign.key else None,
        public_key=project / sign.public_key if sign.public_key else None,
        password=os.environ[variable] if variable else None,
        identity=sign.identity or "",
        issuer=sign.issuer or "",
    )


def _image_store(state: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    store = Path(home) / "drivetrain" / "images"
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError:
        store = state / "images"
    return store


def _registry() -> Registry:
    """Registries, with the credentials that `docker login` and `podman login` keep."""
    docker = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid() if hasattr(os, 'getuid') else 0}"
    named = os.environ.get("REGISTRY_AUTH_FILE")
    files = [Path(named)] if named else [Path(docker) / "config.json", Path(runtime) / "containers" / "auth.json"]
    found: Registry = answer("registry", "oras")(files)
    return found


def audit(state: Path, packages: Sequence[Wheel], advisories: Path | None) -> Audit:
    """Known vulnerabilities of the packages; see `drivetrain.backends.images.audit`. Raises `MissingLibrary` without the extra `audit`."""
    try:
        look_up = answer("audit", "pip_audit")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("pip_audit"):
            raise
        raise MissingLibrary("pip-audit", "audit") from error
    found: Audit = look_up(packages, advisories, _image_store(state) / "advisories")
    return found


def image_goes_to(definition: Definition, target: Target) -> str | None:
    """Where images are pushed: as the definition says, or else into the registry that the target has itself (MicroK8s's add-on)."""
    part = definition.package or Package()
    if part.image is not None:
        return None
    return part.push or (f"{_MICROK8S}/{definition.name}" if target.platform == "microk8s" else None)


def tracking(state: Path, target: Target) -> Any:
    """The target's experiment tracker; SQLite and a directory beside the journal where it names none."""
    if target.tracking:
        return answer("tracking", "mlflow")(target.tracking, None)
    database = _tracking_database(state)
    database.parent.mkdir(parents=True, exist_ok=True)
    return answer("tracking", "mlflow")(f"sqlite:///{database}", str(database.parent / "artifacts"))


def _tracking_database(state: Path) -> Path:
    return state / "mlflow" / "mlflow.db"


def tracking_there(told: Mapping[str, Any], outputs: Any) -> bool:
    """Whether the runs and versions that a cached result refers to can still be there: MLflow's own database exists."""
    target = Definition.model_validate(told["definition"]).target(told["target"])
    return target.tracking is not None or _tracking_database(Path(told["state"])).exists()


def online_store_there(told: Mapping[str, Any], outputs: FeaturesOutputs) -> bool:
    """Whether the online store that the features were written to still exists, and the plan by which the gateway reads it; of a
    store on a server nothing is asked."""
    state = Path(told["state"])
    if Definition.model_validate(told["definition"]).features is not None and not (state / LOOKUP_PLAN).exists():
        return False
    return outputs.online.id != "sqlite" or (state / SQLITE_FILE).exists()


def _needs(wanted: Sequence[str], state: Path, project: Path, definition: Definition, target: Target) -> dict[str, Any]:
    opened: dict[str, Callable[[], Any]] = {
        # Opened only when there are features: importing Feast costs seconds.
        "features": lambda: lambda settings: answer("features", "feast")(settings),
        "checks": lambda: answer("checks", "great_expectations")(),
        "tracking": lambda: tracking(state, target),
        "serving": lambda: serving(state),
        "images": lambda: images(state),
        "trust": lambda: trust(state, project, definition.package.sign if definition.package else None),
    }
    return {need: opened[need]() for need in wanted}


# plans


def fingerprint(project: Project, row: lifecycle.Stage) -> str:
    """The digest of all that a stage depends on beside its inputs."""
    parameters: dict[str, Any] = {key: _at(project.dumped, key) for key in row.reads}
    if row.name == "ingest":
        parameters["files"] = project.source_digests() | _remote_versions(project)
    if row.name == "package":
        parameters["push"] = image_goes_to(project.definition, project.target)
    if row.name == "deploy":
        parameters["key"] = _key_digest(project)
        if project.candidate:
            parameters["candidate"] = True
    code = code_digest(project.root, [file for part in row.loads for file in project.definition.user_files(part)])
    return graph.fingerprint(row.name, row.version, parameters, code, project.lock_digest)


def _key_digest(project: Project) -> str:
    """Of the file of the key whose signatures count, so that another key in its place is another deployment."""
    sign = project.definition.package.sign if project.definition.package else None
    name = (sign.public_key or sign.key) if sign else None
    path = project.root / name if name else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def _remote_versions(project: Project) -> dict[str, str]:
    """ETag and size of the objects that the definition names on S3, so that new contents are a new ingest."""
    sources = [source for source in project.sources() if source.startswith("s3://")]
    if not sources:
        return {}
    versions = import_module("drivetrain.backends.objects.s3").versions
    return {
        f"{source}: {key}": version for source in sources for key, version in versions(source, s3_endpoint()).items()
    }


def _at(dumped: Any, key: str) -> Any:
    for step in key.split("."):
        dumped = None if dumped is None else dumped[step]  # of a part that the definition leaves out nothing is known
    return dumped


def plan(project: Project, store: Objects, fresh: Sequence[str] = (), until: str = "") -> Plan:
    """The lifecycle's stages as steps, with all that counts towards their keys."""
    shared = payload(project)
    steps = [_step(project, row, shared) for row in lifecycle.STAGES]
    name = project.definition.name
    return Plan(
        lifecycle=name,
        steps=steps,
        externals={"champion": lambda inputs: champion.rival(store, name, inputs["model"].digest)},
        facts={**shared["facts"], "fresh": ",".join(fresh), "until": until},
    )


def payload(project: Project) -> dict[str, Any]:
    """What a worker process is told of the project, in values that travel."""
    return {
        "project": str(project.root), "state": str(project.state), "name": project.definition.name,
        "definition": project.definition.model_dump(mode="json", by_alias=True), "target": project.target_name,
        "objects": project.objects_url, "candidate": project.candidate, "facts": facts_of(project),
    }  # fmt: skip


def facts_of(project: Project) -> dict[str, Scalar]:
    """What a run is about: digests of definition, code and lock file, the commit, parameters and target."""
    definition = project.definition
    parts = ("data", "features", "validation", "train", "serving")
    return {
        "definition": digest(project.dumped),
        "code": code_digest(project.root, [file for part in parts for file in definition.user_files(part)]),
        "lock": project.lock_digest,
        "commit": project.commit,
        "target": project.target_name,
        **({"candidate": True} if project.candidate else {}),
        **{f"param.{name}": text for name, text in project.parameters.items()},
    }


def _step(project: Project, row: lifecycle.Stage, told: Mapping[str, Any]) -> Step:
    train = project.definition.train if row.name == "train" else None
    return Step(
        name=row.name,
        entry="drivetrain.wiring:execute",
        outputs=row.outputs,
        fingerprint=fingerprint(project, row),
        inputs=row.inputs,
        payload=told,
        timeout=train.timeout.total_seconds() if train else None,
        memory=train.resources.memory if train else None,
        cpu=train.resources.cpu if train else None,
        warm=[row.entry.partition(":")[0], *_modules(project, row)],
        still_holds=row.still_holds,
    )


def _modules(project: Project, row: lifecycle.Stage) -> list[str]:
    """The answers' modules that the stage will import."""
    if row.name in ("features", "package") and getattr(project.definition, row.name) is None:
        return []
    only_answers = {need: next(iter(ANSWERS[need].values())) for need in row.needs}
    return [name.partition(":")[0] for name in only_answers.values()]


def execute(context: WorkerContext, told: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """Calls a stage with its inputs and needs. The one entry of every worker, here and on a cluster."""
    from drivetrain.stages import StageContext

    row = lifecycle.stage(context.step)
    definition = Definition.model_validate(told["definition"])
    target = definition.target(told["target"])
    state = Path(told["state"])
    module = import_module(row.entry.partition(":")[0])
    stage_context = StageContext(
        run_id=context.run_id,
        project=Path(told["project"]),
        state=state,
        work=context.work,
        objects=objects(told["objects"], target.s3_endpoint),
        definition=only(_sent(definition, target), row.parts),
        fingerprints={name: str(told["facts"][name]) for name in ("definition", "code", "lock", "commit")},
        say=context.say,
        candidate=bool(told.get("candidate")),
    )
    # The user's code may name files as the definition does: from the project, wherever the command was typed.
    with contextlib.chdir(stage_context.project):
        return module.run(
            stage_context,
            module.Inputs(**inputs),
            **_needs(row.needs, state, stage_context.project, definition, target),
        )


def _sent(definition: Definition, target: Target) -> Definition:
    """The definition with the place that images go to on this target."""
    if definition.package is None:
        return definition
    part = definition.package.model_copy(update={"push": image_goes_to(definition, target)})
    return definition.model_copy(update={"package": part})


def only(definition: Definition, parts: set[str]) -> Definition:
    """The definition with nothing but some of its parts; reading another raises `AttributeError`."""
    restricted = Definition.__new__(Definition)
    kept = {part: getattr(definition, part) for part in parts}
    for name, value in (("__dict__", kept), ("__pydantic_fields_set__", parts), ("__pydantic_extra__", None),
                        ("__pydantic_private__", None)):  # fmt: skip
        object.__setattr__(restricted, name, value)
    return restricted


# runs


def threads(project: Project, row: lifecycle.Stage) -> int:
    """How many threads a stage has that nothing else runs beside: what it is limited to, or else one for each core."""
    cpu = project.definition.train.resources.cpu if row.name == "train" else None
    return _cores() if cpu is None else max(1, round(cpu))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_run_id() -> str:
    """A run's id: sortable by the time when it began, unique."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def runner(project: Project, store: Objects, progress: Progress, run_id: str | None = None) -> Any:
    """What carries plans out on this machine; a new run is called `run_id`, if that is given."""
    return answer("runner", "local")(
        journal=project.journal, objects=store, state=project.state, progress=progress,
        clean=Redactor(os.environ), new_id=(lambda: run_id) if run_id else new_run_id, cores=_cores(),
    )  # fmt: skip
