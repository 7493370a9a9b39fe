"""`drivetrain doctor`: is the definition right, and has the machine what it asks for?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from drivetrain import machine, project, wiring
from drivetrain.backends.serving import process
from drivetrain.cli import output
from drivetrain.definition.serving import Serving as ServingPart
from drivetrain.errors import DefinitionError, DrivetrainError, SystemFault

LIBRARIES = (
    "mlflow",
    "feast",
    "great-expectations",
    "kfp",
    "cog",
    "obstore",
    "duckdb",
    "pandas",
    "scikit-learn",
    "torch",
    "tensorflow",
)
OPTIONAL = ("torch", "tensorflow")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `state` is ok, note or bad."""

    what: str
    state: str
    text: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def doctor(where: str, as_json: bool) -> None:
    """Check the definition and the machine; ends with 1 if something is bad."""
    findings = [*_machine(), *_gpus_and_project(Path(where))]
    if as_json:
        output.as_json([asdict(finding) for finding in findings])
    else:
        marks = {
            "ok": click.style("✓", fg="green"),
            "note": click.style("·", fg="yellow"),
            "bad": click.style("✗", fg="red"),
        }
        output.table(["", "what", "found"], [[marks[f.state], f.what, f.text] for f in findings])
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)


def _machine() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("Python", "ok" if supported else "bad", f"{platform.python_version()} at {sys.executable}")
    for name in LIBRARIES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            optional = name in OPTIONAL
            yield Finding(
                name,
                "note" if optional else "bad",
                f"not installed: pip install 'drivetrain{f'[{name}]' if optional else ''}'",
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", "ok", str(cores))


def _gpus(driver: machine.Driver | None) -> Iterator[Finding]:
    if driver is None:
        yield Finding("GPU", "note", "no NVIDIA driver (no nvidia-smi); training and serving use the CPU")
        return
    yield Finding("NVIDIA driver", "ok", f"{driver.version}, for CUDA up to {driver.cuda or 'unknown'}")
    for number, gpu in enumerate(driver.gpus):
        memory = "memory unknown" if gpu.memory is None else output.size(gpu.memory)
        free = "" if gpu.free is None else f", {output.size(gpu.free)} free"
        yield Finding(f"GPU {number}", "ok", f"{gpu.name}, {memory}{free}, compute capability {gpu.capability}")


def _torch(driver: machine.Driver | None, torch: machine.Torch) -> Finding:
    if torch.gpus:
        return Finding("torch sees", "ok", f"{', '.join(torch.gpus)} (built for CUDA {torch.cuda})")
    if not torch.cuda:
        return Finding("torch sees", "note", f"no GPU: {torch.version} is built for the CPU alone")
    text = f"no GPU: {torch.version}, built for CUDA {torch.cuda}"
    if driver is None:
        return Finding("torch sees", "note", text)
    if not machine.suffices(driver, torch.cuda):
        return Finding("torch sees", "bad", f"{text}, {_too_old(driver, torch.cuda)}")
    return Finding("torch sees", "bad", f"{text}, says {torch.problem!r}")


def _too_old(driver: machine.Driver, cuda: str) -> str:
    return f"needs {_driver_for(cuda)}, and this is {driver.version}"


def _driver_for(cuda: str) -> str:
    least = machine.least_driver(cuda)
    return f"NVIDIA's driver {least} or newer" if least else f"a driver for CUDA {cuda}"


def _gpus_and_project(where: Path) -> Iterator[Finding]:
    driver = None
    try:
        driver = machine.nvidia()
        yield from _gpus(driver)
    except SystemFault as error:
        yield Finding("GPU", "bad", f"{error}{f'; {error.hint}' if error.hint else ''}")
    try:
        torch = machine.torch()
        if torch is not None:
            yield _torch(driver, torch)
    except SystemFault as error:
        yield Finding("torch sees", "bad", str(error))
    yield from _project(where, driver)


def _project(where: Path, driver: machine.Driver | None) -> Iterator[Finding]:
    try:
        opened = project.open_project(where)
    except DefinitionError as error:
        yield from (Finding("definition", "bad", str(problem)) for problem in error.problems)
        return
    except DrivetrainError as error:
        yield Finding("definition", "note", f"{error}; {error.hint}")
        return
    yield Finding("definition", "ok", str(opened.root / "drivetrain.yaml"))
    free = shutil.disk_usage(opened.root).free
    yield Finding("disk", "ok" if free > 2**30 else "bad", f"{output.size(free)} free")
    yield _tried("journal", lambda: f"{len(opened.journal.runs())} runs in {opened.journal.path}")
    yield _tried("objects", lambda: _objects(opened))
    features = opened.definition.features
    if features is not None and features.online.store == "redis":
        yield _tried("redis", lambda: _reachable(features.online.connection))
    endpoint = wiring.serving(opened.state).find(opened.definition.name)
    yield Finding(
        "endpoint", "ok" if endpoint else "note", f"{endpoint.revision} at {endpoint.url}" if endpoint else "none is up"
    )
    if endpoint is None:
        yield from _ports(opened.definition.serving)
    yield from _asked_of_gpus(opened, driver)


def _ports(part: ServingPart) -> Iterator[Finding]:
    """Whether the ports that the service is to have are free."""
    for key, port in (("port", part.port), ("grpc_port", part.grpc_port)):
        if port:
            yield _tried(f"port {port}", partial(_free, part.host, port, key))


def _asked_of_gpus(opened: project.Project, driver: machine.Driver | None) -> Iterator[Finding]:
    """What the definition wants of GPUs, and what comes of it here."""
    wanted, there = opened.definition.train.resources.gpu, len(driver.gpus) if driver else 0
    if wanted:
        text = f"{wanted} asked for, {there} here"
        less = "; a run on this machine gets what there is, a cluster is asked for all of them"
        yield Finding(
            "train.resources.gpu", "ok" if there >= wanted else "note", text + (less if there < wanted else "")
        )
    if opened.definition.serving.cog is not None:
        yield _asked_by_cog(opened.root / opened.definition.serving.cog, driver)


def _asked_by_cog(file: Path, driver: machine.Driver | None) -> Finding:
    try:
        tree = YAML(typ="safe").load(file)
    except (YAMLError, OSError) as error:
        return Finding(file.name, "bad", f"cannot be read: {error}")
    build = tree.get("build") if isinstance(tree, dict) else None
    if not isinstance(build, dict) or build.get("gpu") is not True:
        return Finding(file.name, "ok", "asks for no GPU")
    named = [f"{label} {build[key]}" for key, label in (("cuda", "CUDA"), ("cudnn", "cuDNN")) if build.get(key)]
    text = f"asks for a GPU{' with ' if named else ''}{' and '.join(named)}"
    cuda = str(build.get("cuda") or "")
    if driver is None:
        where = f", on a host with {_driver_for(cuda)}" if cuda else ""
        there = "there is none here: served here, the runner has to do without; its image wants one"
        return Finding(file.name, "note", f"{text}; {there}{where}")
    if cuda and not machine.suffices(driver, cuda):
        return Finding(file.name, "bad", f"{text}: its image {_too_old(driver, cuda)}")
    return Finding(file.name, "ok", text)


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except (DrivetrainError, OSError) as error:
        return Finding(what, "bad", str(error))


def _objects(opened: project.Project) -> str:
    store = wiring.project_objects(opened)
    store.set_ref("doctor", b"written")
    if store.ref("doctor") != b"written":
        raise OSError("a reference that was written cannot be read back")
    return opened.objects_url


def _free(host: str, port: int, key: str) -> str:
    if not process.is_free(host, port):
        raise process.port_taken(host, port, key)
    return f"free on {host}"


def _reachable(connection: str) -> str:
    host, _, port = connection.partition(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=2):
        return f"{host}:{port} answers"
