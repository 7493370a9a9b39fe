"""examples/flights as the image of a pipeline's steps, on a real Debian: each step of the compiled pipeline, carried out in a container of
its own with nothing to begin with, makes what the local run made, byte for byte."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from drivetrain import wiring
from drivetrain.backends.images.registry import open_registry
from drivetrain.definition.packaging import Sign
from tests.backends.images import containers
from tests.backends.images.keys import new_key
from tests.backends.images.registries import RegistryServer
from tests.examples import compiled

Command = Callable[..., subprocess.CompletedProcess[str]]
Ran = tuple[Path, dict[str, dict[str, Any]]]

ROOT = Path(__file__).parents[2]
OUTPUTS = PurePosixPath("/outputs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a base, where the builder's store is too."""
    with containers.place(tmp_path_factory.mktemp("stages"), "podman", "debootstrap", "docker-registry") as root:
        yield root


@pytest.fixture(scope="module")
def ran(place: Path, drivetrain: Command) -> Iterator[Ran]:
    """The project with the lock file of this repository, and what each stage of its run on this machine made."""
    project = place / "flights"
    leave = shutil.ignore_patterns(".drivetrain", "__pycache__")
    shutil.copytree(ROOT / "examples" / "flights", project, ignore=leave)
    shutil.copy(ROOT / "requirements.lock", project)
    (place / "base.tar").rename(project / "base.tar")
    compiled.add_target(project)
    with (project / "drivetrain.yaml").open("a") as file:
        file.write("\npackage: {base: base.tar}\n")
    found = drivetrain("run", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    yield project, {entry["stage"]: entry for entry in json.loads(found.stdout)["stages"]}
    drivetrain("deploy", "--stop", directory=project)


@pytest.fixture(scope="module")
def packaged(place: Path, ran: Ran, drivetrain: Command) -> dict[str, Any]:
    """What the command said of the image, which is the layout `layout`."""
    return package(drivetrain, ran[0], place / "layout")


def package(drivetrain: Command, project: Path, folder: Path) -> dict[str, Any]:
    words = ("--stages", "--target", "here", "--output", str(folder), "--json")
    found = drivetrain("package", *words, directory=project)
    assert found.returncode == 0, found.stderr
    document: dict[str, Any] = json.loads(found.stdout)
    return document


@pytest.fixture(scope="module")
def image(place: Path, packaged: dict[str, Any]) -> Iterator[str]:
    """The image as podman knows it."""
    found = containers.podman("pull", "--quiet", f"oci:{place / 'layout'}")
    yield found
    containers.podman("rmi", "--force", found)


def digests(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on where a stage ran: artifacts by their digests, and verdicts. References (runs, versions, addresses) do."""
    return {
        name: value.get("digest", value) for name, value in outputs.items() if value is not None and "id" not in value
    }


def test_every_step_in_a_container_makes_what_the_local_run_made(
    place: Path, ran: Ran, image: str, drivetrain: Command, tmp_path: Path
) -> None:
    project, local = ran
    pipeline = compiled.render(drivetrain, project, tmp_path / "out")
    volumes = {tmp_path / "state": "/src/.drivetrain", tmp_path / "outputs": str(OUTPUTS)}
    for folder in volumes:
        folder.mkdir()
        folder.chmod(0o777)  # the image's user is nobody on this machine
    mounted = [word for folder, seen in volumes.items() for word in ("--volume", f"{folder}:{seen}")]
    alone = ("--rm", "--network", "host", "--read-only", "--tmpfs", "/tmp")
    made = {}
    for container in compiled.containers(pipeline, list(local), tmp_path / "outputs", OUTPUTS):
        variables = [word for name, value in container.environment.items() for word in ("--env", f"{name}={value}")]
        more = builder(place, project) if container.stage == "package" else []
        said = containers.podman("run", *alone, *mounted, *variables, *more, image, *container.command, "--json")
        made[container.stage] = json.loads(said)
    assert {document["state"] for document in made.values()} == {"done"}
    for stage, document in made.items():
        assert digests(document["outputs"]) == digests(local[stage]["outputs"]), stage
        assert document["key"] == local[stage]["key"], stage


def builder(place: Path, project: Path) -> list[str]:
    """What the stage package needs to make the model's image in a container: the base, which is a file here and in no registry, and the
    wheels that were found before, so that no package index has to be reached. The store's files are their owner's alone: root's."""
    store = ("--volume", f"{place / 'cache'}:/cache", "--env", "XDG_CACHE_HOME=/cache", "--user", "0")
    return ["--volume", f"{project / 'base.tar'}:/src/base.tar:ro", *store]


def test_the_image_says_what_it_is_and_starts_nothing_by_itself(image: str) -> None:
    told = json.loads(containers.podman("inspect", image))[0]["Config"]
    assert (told["User"], told["WorkingDir"], told.get("Entrypoint"), told.get("ExposedPorts")) == (
        "10001",
        "/src",
        None,
        None,
    )
    code = "from importlib.metadata import version; print(version('drivetrain'))"
    assert containers.podman("run", "--rm", "--network", "host", image, "python", "-c", code)
    assert "Carry out one stage" in containers.podman(
        "run", "--rm", "--network", "host", image, "drivetrain", "stage", "--help"
    )


def test_it_is_pushed_with_sbom_provenance_and_signature(
    packaged: dict[str, Any], ran: Ran, place: Path, drivetrain: Command
) -> None:
    project, _ = ran
    key = new_key(place / "secrets" / "signing.key")
    definition = project / "drivetrain.yaml"
    before = definition.read_text()
    definition.write_text(
        before.replace("package: {base: base.tar}", f"package: {{base: base.tar, sign: {{key: {key}}}}}")
    )
    server = RegistryServer(place / "registry" / "data")
    try:
        ref = f"{server.host}/steps:1"
        pushed = drivetrain("package", "--stages", "--target", "here", "--push", ref, "--json", directory=project)
        assert pushed.returncode == 0, pushed.stderr
        found = json.loads(pushed.stdout)
        registry = open_registry()
        assert registry.resolve(ref) == found["digest"]
        kinds = sorted(
            entry.annotations.get("dev.sigstore.bundle.predicateType", entry.artifact_type)
            for entry in registry.referrers(ref, found["digest"])
        )
        assert kinds == [
            "application/vnd.cyclonedx+json", "https://sigstore.dev/cosign/sign/v1", "https://slsa.dev/provenance/v1",
        ]  # fmt: skip
        trust = wiring.trust(project / ".drivetrain", project, Sign(key=str(key)))
        trust.check_image(f"{server.host}/steps@{found['digest']}", layers=False)
    finally:
        server.kill()
        definition.write_text(before)


def test_two_folders_give_one_digest(packaged: dict[str, Any], ran: Ran, drivetrain: Command, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(ran[0], other, ignore=shutil.ignore_patterns(".drivetrain"))
    assert package(drivetrain, other, tmp_path / "layout")["digest"] == packaged["digest"]
