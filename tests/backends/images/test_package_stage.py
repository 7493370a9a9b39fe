"""The stage package: an image where the definition asks for one, or the one that `cog build` made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import CONFIG, Built
from drivetrain.backends.images import config as configs
from drivetrain.backends.images.oci import OciImages
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.backends.images.store import Store
from drivetrain.backends.objects.directory import open_directory
from drivetrain.definition.definition import Definition
from drivetrain.errors import StageError
from drivetrain.records import Artifact, Reference
from drivetrain.stages import StageContext, package
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


def context(tmp_path: Path, part: dict[str, Any] | None) -> StageContext:
    told: dict[str, Any] = {
        "name": "small", "data": {"source": "rows.csv", "label": "y"}, "train": {"function": "train.py:train"},
        "evaluate": {"metric": "accuracy"},
    }  # fmt: skip
    definition = Definition.model_validate(told | ({"package": part} if part is not None else {}))
    objects, prints = (
        open_directory(tmp_path / "objects"),
        dict.fromkeys(("definition", "code", "lock", "commit"), "abc"),
    )
    return StageContext("run", tmp_path, tmp_path, tmp_path, objects, definition, prints, lambda text: None)


INPUTS = package.Inputs(
    Artifact("model", "0" * 64, 1),
    Artifact("definitions", "1" * 64, 1),
    Reference("model_version", "small/7"),
    Artifact("snapshot", "2" * 64, 1),
)


def run(context: StageContext, images: Any) -> Reference | None:
    return package.run(context, INPUTS, serving=None, images=images, trust=None).image  # type: ignore[arg-type]


def test_a_definition_that_asks_for_no_image_gets_none_and_nothing_is_opened(tmp_path: Path) -> None:
    assert run(context(tmp_path, None), None) is None


def test_an_image_of_cogs_own_is_taken_by_its_digest(
    tmp_path: Path, build: Build, server: RegistryServer, registry: OciRegistry
) -> None:
    pushed = registry.push(build(made.bundle(tmp_path / "bundle")).image, f"{server.host}/by-cog:latest")
    found = run(
        context(tmp_path, {"image": f"{server.host}/by-cog"}),
        OciImages(tmp_path / "store", lambda: registry),
    )
    assert found is not None
    assert found.id == f"{server.host}/by-cog@{pushed.digest}"
    assert found.detail["cog"]


def test_an_image_that_is_none_of_cogs_is_refused(
    tmp_path: Path, build: Build, server: RegistryServer, registry: OciRegistry
) -> None:
    built, store = build(made.bundle(tmp_path / "bundle")), Store(tmp_path / "store")
    assert built.image.config.path is not None
    told = json.loads(built.image.config.path.read_bytes())
    del told["config"]["Labels"]
    other = configs.assembled(store.put(CONFIG, json.dumps(told).encode()), built.image.layers, {}, store)
    registry.push(other, f"{server.host}/strange:1")
    images = OciImages(tmp_path / "store", lambda: registry)
    with pytest.raises(StageError, match="no image of Cog's"):
        run(context(tmp_path, {"image": f"{server.host}/strange:1"}), images)
    with pytest.raises(StageError, match="there is no image"):
        run(context(tmp_path, {"image": f"{server.host}/strange:2"}), images)
