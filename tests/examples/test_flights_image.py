"""examples/flights as an image on a real Debian: built without a container, run by podman, and answering as the endpoint does."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import Recipe
from drivetrain.backends.images.builder import Builder
from drivetrain.backends.images.containers import Containers
from drivetrain.errors import StageError, SystemFault
from tests.backends.images import containers, made
from tests.backends.images.registries import RegistryServer

Command = Callable[..., subprocess.CompletedProcess[str]]
Flights = tuple[Path, dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a base, where the builder's store is too."""
    with containers.place(
        tmp_path_factory.mktemp("image"), "podman", "skopeo", "debootstrap", "docker-registry"
    ) as root:
        yield root


@pytest.fixture(scope="module")
def packaged(place: Path, flights: Flights, drivetrain: Command) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The image as an OCI layout, and what the command said; the definition has a `package:` from here on."""
    project, _ = flights
    before = (project / "drivetrain.yaml").read_text()
    (project / "drivetrain.yaml").write_text(f"{before}\npackage: {{base: {place / 'base.tar'}}}\n")
    found = drivetrain("package", "--output", str(place / "layout"), "--json", directory=project)
    assert found.returncode == 0, found.stderr
    yield place / "layout", json.loads(found.stdout)
    (project / "drivetrain.yaml").write_text(before)


def no_registry() -> Any:
    raise AssertionError("nothing of this needs a registry")


def some_flights(count: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(7)
    for _ in range(count):
        yield {
            "from_airport": chance.choice(["EWR", "JFK", "LGA"]), "to_airport": chance.choice(["LAX", "ORD", "ATL", "SFO"]),
            "airline": chance.choice(["DL", "UA", "AA", "B6"]), "hour": chance.uniform(5, 23), "weekday": chance.randrange(7),
            "distance": chance.uniform(100, 3000), "temp": chance.choice([None, chance.uniform(0, 100)]),
            "wind_speed": chance.uniform(0, 40), "carrier_mean_3h": chance.uniform(-20, 90),
            "origin_late_1d": chance.uniform(0, 1),
        }  # fmt: skip


@pytest.fixture(scope="module")
def registry(place: Path) -> Iterator[RegistryServer]:
    server = RegistryServer(place / "registry" / "data")
    yield server
    server.kill()


def test_podman_pulls_what_was_pushed_and_it_answers_as_the_endpoint_does(
    packaged: tuple[Path, dict[str, Any]], registry: RegistryServer, flights: Flights, drivetrain: Command
) -> None:
    ref = f"{registry.host}/flights:1"
    pushed = drivetrain("package", str(flights[0]), "--push", ref, "--json", directory=flights[0].parent)
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["digest"] == packaged[1]["digest"]
    told = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{ref}"], capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout)["Digest"] == packaged[1]["digest"]
    local = next(entry for entry in flights[1]["stages"] if entry["stage"] == "deploy")["outputs"]["revision"][
        "detail"
    ]["url"]
    image = containers.podman("pull", "--quiet", "--tls-verify=false", ref)
    try:
        with containers.running(image) as url:
            for inputs in some_flights(100):
                given = {name: value for name, value in inputs.items() if value is not None}
                assert containers.ask(url, given) == containers.ask(local, given)
    finally:
        containers.podman("rmi", "--force", image)


def test_two_folders_give_one_digest_and_a_rebuild_takes_a_second(
    packaged: tuple[Path, dict[str, Any]], place: Path, flights: Flights, drivetrain: Command, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(flights[0], other, symlinks=True)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    cold = drivetrain("package", "--output", str(tmp_path / "layout"), "--json", directory=other, env=env)
    assert cold.returncode == 0, cold.stderr
    assert json.loads(cold.stdout)["digest"] == packaged[1]["digest"]
    warm = json.loads(
        drivetrain("package", "--output", str(tmp_path / "layout"), "--json", directory=other, env=env).stdout
    )
    assert warm["digest"] == packaged[1]["digest"]
    assert warm["seconds"] < json.loads(cold.stdout)["seconds"] / 5


def test_the_stage_makes_the_same_image_and_the_lineage_knows_it(
    packaged: tuple[Path, dict[str, Any]], flights: Flights, drivetrain: Command
) -> None:
    found = drivetrain("run", "--json", directory=flights[0])
    assert found.returncode == 0, found.stderr
    stages = {entry["stage"]: entry for entry in json.loads(found.stdout)["stages"]}
    image = stages["package"]["outputs"]["image"]
    assert image["id"] == f"flights@{packaged[1]['digest']}"
    lineage = drivetrain("lineage", packaged[1]["digest"], "--json", directory=flights[0])
    assert lineage.returncode == 0, lineage.stderr
    nodes = json.loads(lineage.stdout)["nodes"]
    assert (nodes[0]["kind"], nodes[0]["label"]) == ("image", image["id"])
    assert {"model_version", "model", "snapshot"} <= {node["kind"] for node in nodes}


def test_serving_from_the_image_is_one_command_and_leaves_no_container(
    packaged: tuple[Path, dict[str, Any]], flights: Flights
) -> None:
    code = "from drivetrain.cli.main import main; main()"
    words = [sys.executable, "-c", code, "-C", str(flights[0]), "serve", "--from-image"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            first = serving.stdout.readline()
            url = first.split(" answers at ")[1].split(",")[0]
            assert its_containers()
            assert 0 <= containers.ask(url, next(some_flights(1)) | {"temp": 50.0})["probability"] <= 1
            serving.send_signal(signal.SIGINT)
            assert serving.wait(60) == 130
        finally:
            serving.kill()
    assert not its_containers()


def its_containers() -> str:
    """The containers of the image, by either name that it is loaded under; other tests have theirs meanwhile."""
    names = [word for name in ("flights", "layout") for word in ("--filter", f"ancestor=localhost/{name}")]
    return containers.podman("ps", "--all", "--quiet", *names)


def test_nothing_is_left_of_a_container_that_does_not_start(packaged: tuple[Path, dict[str, Any]]) -> None:
    engine = Containers()
    image = engine.load(packaged[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemFault, match="podman run ended with"):
            engine.start(image, "127.0.0.1", taken.getsockname()[1], "token")
    assert not its_containers()
    container = engine.start(image, "localhost", 0, "token")
    url = f"http://127.0.0.1:{container.port}"
    try:
        until_ready(url)
        assert its_containers()
        for said, status in ((None, 401), ("Bearer token", 200)):
            request = urllib.request.Request(f"{url}/shutdown", b"", {"Authorization": said} if said else {})
            assert answered(request) == status
    finally:
        engine.stop(container)
    assert not its_containers()


def until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while not containers.ready(url):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answered(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_system_packages_and_commands_run_in_buildah(place: Path, tmp_path: Path) -> None:
    containers.needed("buildah")

    cog = "  system_packages: [libgomp1]\n  run:\n    - python -c 'import cloudpickle' && echo yes > /etc/ran\n"
    bundle = made.bundle(tmp_path / "bundle", "cloudpickle\n", cog=cog)

    builder = Builder(place / "cache" / "drivetrain" / "images", no_registry, lambda text: None)
    built = builder.build(Recipe(bundle=bundle, name="small", folder=place, base="base.tar"))
    ran = [layer for layer in built.layers if layer.made.startswith("commands")]
    assert len(ran) == 2
    assert ran[0].blob.path is not None
    assert ran[1].blob.path is not None
    assert any("libgomp.so.1" in name for name in made.names(ran[0].blob.path))
    assert made.member(ran[1].blob.path, "etc/ran") == b"yes\n"
    assert builder.build(Recipe(bundle=bundle, name="small", folder=place, base="base.tar")).image == built.image


def test_a_command_that_fails_says_what_it_printed(place: Path, tmp_path: Path) -> None:
    containers.needed("buildah")

    bundle = made.bundle(tmp_path / "bundle", "", cog="  pre_install: ['echo no such luck >&2; exit 3']\n")

    builder = Builder(place / "cache" / "drivetrain" / "images", no_registry, lambda text: None)
    with pytest.raises(StageError, match="no such luck"):
        builder.build(Recipe(bundle=bundle, name="small", folder=place, base="base.tar"))
