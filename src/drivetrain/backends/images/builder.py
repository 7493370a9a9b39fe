"""The builder: a bundle becomes an image, layer upon layer, from what changes least to what changes most.

    base | system packages | Python packages | commands | replica | code | weights

Nothing of it runs in a container, unless `cog.yaml` asks for system packages or commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from drivetrain.backends.images import (
    Built,
    Layer,
    Recipe,
    Registry,
    Wheel,
    bases,
    commands,
    config,
    opening,
    runtime,
    unpacked,
)
from drivetrain.backends.images.cog import CogFile
from drivetrain.backends.images.cog import read as read_cog
from drivetrain.backends.images.contents import Contents
from drivetrain.backends.images.opening import Base
from drivetrain.backends.images.store import Store
from drivetrain.backends.images.wheels import Wanted, Wheels

_HOME = "/tmp"
"""The user has no directory of his own, and the root file system may be read-only: what libraries keep for themselves goes there."""
_SCHEMA = Path(".cog") / "openapi_schema.json"


class Builder:
    """Builds images; what it has made once it finds again in `store`."""

    def __init__(self, store: Path, registry: Callable[[], Registry], say: Callable[[str], None]) -> None:
        self.store = Store(store)
        self._registry = registry
        self._say = say

    def build(self, recipe: Recipe) -> Built:
        """The image.

        Raises `StageError` for a bundle, `cog.yaml`, base or requirements that no image can be made of, `Unavailable` if a package index
        or registry does not answer.
        """
        cog = read_cog(recipe.bundle)
        kept = Wheels(self.store)
        packages = kept.resolve(self._wanted(recipe, cog))
        base, lacking = self._base(recipe, cog, [wheel.name for wheel in packages])
        contents = Contents(self.store, cog.python)
        if not contents.compiles:
            self._say(f"there is no Python {cog.python} here: Python files are compiled when the image starts")
        below = list(base.layers)
        below += self._ran(
            recipe, base, below, [*commands.installing([*lacking, *cog.system_packages]), *cog.pre_install]
        )
        interpreter = base.python(cog.python) if not lacking else f"/usr/bin/python{cog.python}"
        self._say(f"{len(packages)} packages for Python {cog.python}")
        below += contents.packages(packages, kept)
        below.append(contents.replica(interpreter))
        below += self._ran(recipe, base, below, cog.commands)
        above = [contents.code(recipe.bundle)]
        if (recipe.bundle / "model").is_dir():
            above.append(contents.weights(recipe.bundle, recipe.weights))
        return self._finished(recipe, cog, base, [*below, *above], packages, contents.compiles)

    def _wanted(self, recipe: Recipe, cog: CogFile) -> Wanted:
        lines = (*cog.requirements, *runtime.requirements(recipe.grpc))
        return Wanted(lines, cog.python, recipe.platform.partition("/")[2], recipe.pins)

    def _base(self, recipe: Recipe, cog: CogFile, packages: Sequence[str]) -> tuple[Base, Sequence[str]]:
        choice = bases.Choice(recipe.base) if recipe.base else bases.choose(cog, packages)
        self._say(f"base {choice.reference}")
        base = opening.open_base(choice.reference, recipe.folder, recipe.platform, self.store, self._registry)
        return base, choice.system_packages

    def _ran(self, recipe: Recipe, base: Base, below: Sequence[Layer], wanted: Sequence[str]) -> list[Layer]:
        if not wanted:
            return []
        start = config.Start("/bin/sh", "", (), {}, f"/{unpacked.HOME}/bin", 0, health=False)
        image = config.image(self.store, recipe.platform, base.config, below, start, {}, {})
        self._say(f"{len(wanted)} commands, in a container of buildah's")
        return [commands.layer(image, wanted, self.store, recipe.platform)]

    def _finished(
        self,
        recipe: Recipe,
        cog: CogFile,
        base: Base,
        layers: Sequence[Layer],
        packages: Sequence[Wheel],
        compiled: bool,
    ) -> Built:
        told = self._annotations(recipe, base)
        start = config.Start(
            program=f"/{unpacked.HOME}/bin/python",
            module=runtime.MODULE,
            arguments=[*runtime.arguments(recipe.name, cog.runner), *recipe.arguments],
            environment=_environment(cog),
            path=f"/{unpacked.HOME}/bin",
            uid=recipe.uid,
        )
        labels = {**told, **_labels(recipe, cog, packages)}
        image = config.image(self.store, recipe.platform, base.config, layers, start, labels, told)
        weights = None
        if layers[-1].made == "weights":
            weights = config.weights(self.store, recipe.platform, layers[-1], told)
        return Built(image, weights, packages, base.digest, layers, compiled)

    def _annotations(self, recipe: Recipe, base: Base) -> dict[str, str]:
        prefix = "org.opencontainers.image"
        # The name of a file here would say more about this machine than about the image.
        named = {} if base.is_local else {f"{prefix}.base.name": base.name}
        return {f"{prefix}.title": recipe.name, **named, f"{prefix}.base.digest": base.digest, **recipe.annotations}


def _environment(cog: CogFile) -> dict[str, str]:
    found = {"HOME": _HOME, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if cog.gpu:
        found |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    if cog.concurrency is not None:
        found["COG_MAX_CONCURRENCY"] = str(cog.concurrency)
    return found | dict(cog.environment)


def _labels(recipe: Recipe, cog: CogFile, packages: Sequence[Wheel]) -> dict[str, str]:
    """Those that `cog build` puts on its images."""
    found = {
        "run.cog.config": json.dumps(cog.told, sort_keys=True),
        "run.cog.has_init": "true",
        "run.cog.pip_freeze": "\n".join(f"{wheel.name}=={wheel.version}" for wheel in packages),
        "run.cog.version": next(wheel.version for wheel in packages if wheel.name == "cog"),
    }
    if (recipe.bundle / _SCHEMA).is_file():
        schema = json.loads((recipe.bundle / _SCHEMA).read_bytes())
        found["run.cog.openapi_schema"] = json.dumps(schema, sort_keys=True)
    return found
