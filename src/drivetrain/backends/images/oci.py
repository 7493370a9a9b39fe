"""Images as OCI has them, built here without a daemon."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drivetrain.backends.images import Built, Image, Pushed, Recipe, Registry, layout
from drivetrain.backends.images.builder import Builder
from drivetrain.errors import StageError

_BASE_NAME = "org.opencontainers.image.base.name"


class OciImages:
    """See `Images`. The registry is opened when something is asked of it, since its library takes a while to load."""

    def __init__(self, store: Path, registry: Callable[[], Registry]) -> None:
        self._store = store
        self._registry = registry

    def build(self, recipe: Recipe, say: Callable[[str], None]) -> Built:
        """See `Images`."""
        return Builder(self._store, self._registry, say).build(recipe)

    def write(self, image: Image, folder: Path, tag: str) -> Path:
        """See `Images`."""
        return layout.write(image, folder, tag)

    def push(self, built: Built, ref: str) -> Pushed:
        """See `Images`."""
        base = built.image.annotations.get(_BASE_NAME)
        # The base's layers may be in the same registry already, where it was fetched from.
        return self._registry().push(built.image, ref, mount_from=[base] if base else ())

    def config(self, ref: str) -> tuple[str, Mapping[str, Any]]:
        """See `Images`."""
        registry = self._registry()
        digest = registry.resolve(ref)
        if digest is None:
            raise StageError(f"there is no image {ref}")
        told = json.loads(registry.manifest(ref))
        if "config" not in told:
            raise StageError(
                f"{ref} is no image for one platform", hint="name it by the digest of one platform's image"
            )
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
            path = registry.blob(ref, told["config"]["digest"], Path(directory) / "config")
            return digest, json.loads(path.read_bytes())


def open_images(store: Path, registry: Callable[[], Registry]) -> OciImages:
    """The builder with its store, and a registry client."""
    return OciImages(store, registry)
