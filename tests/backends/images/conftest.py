"""The builder with a store of its own, and an index that is a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import Built, Recipe, Registry
from drivetrain.backends.images.builder import Builder
from tests.backends.images import made


def no_registry() -> Registry:
    raise AssertionError("nothing of this needs a registry")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels, and beside it a store that has met them: pip is asked once for all tests."""
    root = tmp_path_factory.mktemp("images")
    folder = made.index(root / "index")
    made.wheel(folder, "wanted", requires=("helper>=1",))
    made.wheel(folder, "helper")
    made.base(root / "base.tar")
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, folder)
        recipe = Recipe(bundle=made.bundle(root / "bundle"), name="small", folder=root, base="base.tar")
        Builder(root / "store", no_registry, lambda text: None).build(recipe)
    return root


def offline(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Has pip find the folder's packages and no others."""
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def packages(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels of the test's own: all that pip finds."""
    folder = shutil.copytree(shelf / "index", tmp_path / "index")
    offline(monkeypatch, folder)
    return folder


@pytest.fixture
def build(shelf: Path, tmp_path: Path, packages: Path) -> Callable[..., Built]:
    """Builds a bundle with a store that knows the packages; with a new one where another name is given."""
    shutil.copytree(shelf / "store", tmp_path / "store")
    made.base(tmp_path / "base.tar")

    def call(bundle: Path, store: str = "store", **changed: Any) -> Built:
        recipe = Recipe(**({"bundle": bundle, "name": "small", "folder": tmp_path, "base": "base.tar"} | changed))
        return Builder(tmp_path / store, no_registry, lambda text: None).build(recipe)

    return call
