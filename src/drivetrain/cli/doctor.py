"""`drivetrain doctor`: is the definition right, and has the machine what it asks for?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from drivetrain import project, wiring
from drivetrain.cli import output
from drivetrain.errors import DefinitionError, DrivetrainError

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
    findings = [*_machine(), *_project(Path(where))]
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
    yield Finding("GPU", *_gpu())


def _gpu() -> tuple[str, str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "note", "none found (no nvidia-smi); training and serving use the CPU"
    found = subprocess.run(
        [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (
        ("ok", found.stdout.strip().replace("\n", "; "))
        if found.returncode == 0
        else ("bad", found.stderr.strip() or "nvidia-smi failed")
    )


def _project(where: Path) -> Iterator[Finding]:
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
    if opened.definition.train.resources.gpu and shutil.which("nvidia-smi") is None:
        yield Finding("train.resources.gpu", "bad", "the definition asks for a GPU and there is none here")


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


def _reachable(connection: str) -> str:
    host, _, port = connection.partition(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=2):
        return f"{host}:{port} answers"
