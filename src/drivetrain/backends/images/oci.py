"""Images as OCI has them, built here without a daemon."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivetrain.backends.images import Built, Image, Pushed, Recipe, Registry, StagesRecipe, layout, references
from drivetrain.backends.images.builder import Builder
from drivetrain.backends.images.references import Ref
from drivetrain.errors import StageError, SystemFault

_BASE_NAME = "org.opencontainers.image.base.name"
_WEIGHTS = "-weights"
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class OciImages:
    """See `Images`. The registry is opened when something is asked of it, since its library takes a while to load."""

    def __init__(self, store: Path, registry: Callable[[], Registry]) -> None:
        self._store = store
        self._registry = registry

    def build(self, recipe: Recipe, say: Callable[[str], None]) -> Built:
        """See `Images`."""
        with self._room():
            return Builder(self._store, self._registry, say).build(recipe)

    def build_stages(self, recipe: StagesRecipe, say: Callable[[str], None]) -> Built:
        """See `Images`."""
        with self._room():
            return Builder(self._store, self._registry, say).build_stages(recipe)

    def write(self, image: Image, folder: Path, tag: str) -> Path:
        """See `Images`."""
        with self._room():
            return layout.write(image, folder, tag)

    def push(self, built: Built, ref: str) -> Pushed:
        """See `Images`."""
        registry, target = self._registry(), references.parse(ref)
        base = built.image.annotations.get(_BASE_NAME)
        # The base's layers may be in the same registry already, where it was fetched from.
        mount_from = [base] if base else ()
        pushed = [registry.push(built.image, f"{target.name}@{built.image.digest}", mount_from=mount_from)]
        if built.weights is not None:
            pushed.append(registry.push(built.weights, _of_weights(target, built.weights)))
        if not target.digest:
            pushed.append(registry.push(built.image, ref))
        sent, seconds = (sum(getattr(part, name) for part in pushed) for name in ("bytes_sent", "seconds"))
        return replace(pushed[0], bytes_sent=sent, seconds=seconds)

    def config(self, ref: str) -> tuple[str, Mapping[str, Any]]:
        """See `Images`."""
        registry = self._registry()
        digest = registry.resolve(ref)
        if digest is None:
            raise StageError(f"there is no image {ref}")
        try:
            told = json.loads(registry.manifest(ref))
        except KeyError as error:  # deleted since it was resolved
            raise StageError(f"there is no image {ref}") from error
        if "config" not in told:
            raise StageError(
                f"{ref} is no image for one platform", hint="name it by the digest of one platform's image"
            )
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
            path = registry.blob(ref, told["config"]["digest"], Path(directory) / "config")
            return digest, json.loads(path.read_bytes())

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Raises `SystemFault` where a disk is full."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise SystemFault(
                f"there is no room for the image: {error.strerror}",
                hint=f"what is in {self._store} is made again when it is needed, and may be removed; XDG_CACHE_HOME has it elsewhere",
            ) from error


def _of_weights(ref: Ref, weights: Image) -> str:
    """Where the weights alone are published, for volumes of the kind `image`: in the same repository, under the tag `TAG-weights`."""
    if ref.digest:
        return f"{ref.name}@{weights.digest}"
    return f"{ref.name}:{(ref.tag or 'latest')[: 128 - len(_WEIGHTS)]}{_WEIGHTS}"


def open_images(store: Path, registry: Callable[[], Registry]) -> OciImages:
    """The builder with its store, and a registry client."""
    return OciImages(store, registry)
