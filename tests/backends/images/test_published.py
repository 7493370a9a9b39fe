"""Images between builder, registry and the stage: bases that come from a registry, what a push moves, an image of Cog's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivetrain import packaging
from drivetrain.backends.images import Built, Recipe
from drivetrain.backends.images.builder import Builder
from drivetrain.backends.images.oci import OciImages
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.errors import StageError
from tests.backends.images import made
from tests.backends.images.registries import RegistryServer

Build = Callable[..., Built]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path_factory.mktemp("registry") / "data")
    yield found
    found.kill()


@pytest.fixture
def registry() -> OciRegistry:
    return open_registry()


def test_a_code_change_and_new_weights_move_only_themselves(
    tmp_path: Path, build: Build, server: RegistryServer, registry: OciRegistry
) -> None:
    bundle = made.bundle(tmp_path / "bundle", weights=b"w" * 3_000_000)
    first = build(bundle)
    assert registry.push(first.image, f"{server.host}/moves:1").bytes_sent > 3_000_000
    (bundle / "run.py").write_text("class Runner: ...\n")
    assert registry.push(build(bundle).image, f"{server.host}/moves:2").bytes_sent < 100_000
    (bundle / "model" / "model.bin").write_bytes(b"v" * 2_000_000)
    assert registry.push(build(bundle).image, f"{server.host}/moves:3").bytes_sent < 2_100_000


def test_the_weights_are_an_image_of_their_own_beside_it_and_cost_nothing_more(
    tmp_path: Path, build: Build, server: RegistryServer, registry: OciRegistry
) -> None:
    built = build(made.bundle(tmp_path / "bundle", weights=b"w" * 3_000_000))
    assert built.weights is not None
    images = OciImages(tmp_path / "store", lambda: registry)
    pushed = images.push(built, f"{server.host}/volume:7")
    assert pushed.bytes_sent < sum(blob.size for blob in built.image.blobs) + 10_000
    assert server.tags("volume") == ["7", "7-weights"]
    assert registry.resolve(f"{server.host}/volume:7-weights") == built.weights.digest
    told = json.loads(registry.manifest(f"{server.host}/volume:7-weights"))
    assert [layer["digest"] for layer in told["layers"]] == [built.layers[-1].blob.digest]


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_a_base_comes_from_a_registry_once(
    tmp_path: Path, build: Build, server: RegistryServer, registry: OciRegistry, by: str
) -> None:
    base = build(made.bundle(tmp_path / "base"))
    pushed = registry.push(base.image, f"{server.host}/bases/small:1")
    reference = pushed.ref if by == "digest" else f"{server.host}/bases/small:1"
    asked: list[str] = []

    class Counting(OciRegistry):
        def blob(self, ref: str, digest: str, target: Path) -> Path:
            asked.append(digest)
            return super().blob(ref, digest, target)

    builder = Builder(tmp_path / "new", Counting, lambda text: None)
    recipe = Recipe(bundle=made.bundle(tmp_path / "bundle"), name="small", folder=tmp_path, base=reference)
    built = builder.build(recipe)
    assert built.base == base.image.digest
    assert built.image.annotations["org.opencontainers.image.base.name"] == reference
    assert [layer.blob.digest for layer in built.layers[:5]] == [layer.blob.digest for layer in base.layers]
    once = len(asked)
    assert builder.build(recipe).image == built.image
    assert len(asked) == once == 6


def test_a_base_that_no_registry_has_is_refused(
    tmp_path: Path, build: Build, server: RegistryServer, registry: OciRegistry
) -> None:
    builder = Builder(tmp_path / "store", lambda: registry, lambda text: None)
    recipe = Recipe(made.bundle(tmp_path / "bundle"), "small", tmp_path, base=f"{server.host}/never:1")
    with pytest.raises(StageError, match=f"there is no image {server.host}/never:1"):
        builder.build(recipe)


@pytest.mark.parametrize(
    ("reference", "there"),
    [("localhost:5000/a", "localhost:5000/a:7"), ("r.io/a/b:x", "r.io/a/b:x"), ("a", "a:7")],
)
def test_a_reference_without_a_tag_is_given_the_version(reference: str, there: str) -> None:
    assert packaging.tagged(reference, "7") == there
    digest = f"sha256:{'0' * 64}"
    bare = reference.removesuffix(":x")
    assert (
        packaging.pinned(reference, digest) == packaging.pinned(f"{reference}@{digest}", digest) == f"{bare}@{digest}"
    )
