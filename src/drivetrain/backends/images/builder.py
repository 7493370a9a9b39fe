"""The builder: an image is put together, layer upon layer, from what changes least to what changes most.

    base | system packages | Python packages | replica | commands | code | weights       of a bundle: the model's service
    base | system packages | Python packages | Drivetrain | commands | project           of a project: the steps of a pipeline

Nothing of it runs in a container, unless `cog.yaml` asks for system packages or commands, or a package has to be compiled.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from drivetrain.backends.images import (
    Built,
    Image,
    Layer,
    Recipe,
    Registry,
    StagesRecipe,
    Wheel,
    bases,
    cog,
    commands,
    config,
    itself,
    locks,
    opening,
    runtime,
    unpacked,
)
from drivetrain.backends.images.cog import CogFile
from drivetrain.backends.images.compiling import Ground
from drivetrain.backends.images.contents import Contents
from drivetrain.backends.images.opening import Base
from drivetrain.backends.images.store import Store
from drivetrain.backends.images.wheels import Wanted, Wheels
from drivetrain.errors import StageError

_HOME = "/tmp"
"""The user has no directory of his own, and the root file system may be read-only: what libraries keep for themselves goes there."""
_BIN = f"/{unpacked.HOME}/bin"
_SCHEMA = Path(".cog") / "openapi_schema.json"
_ENVIRONMENT = {"HOME": _HOME, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
_GPU = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


class Builder:
    """Builds images; what it has made once it finds again in `store`."""

    def __init__(self, store: Path, registry: Callable[[], Registry], say: Callable[[str], None]) -> None:
        self.store = Store(store)
        self._registry = registry
        self._say = say

    def build(self, recipe: Recipe) -> Built:
        """The image of a bundle: the model's service.

        Raises `StageError` for a bundle, `cog.yaml`, base or requirements that no image can be made of, `Unavailable` if a package index
        or registry does not answer.
        """
        told = cog.read(recipe.bundle)
        _refuse_without_runner(recipe.bundle, told)
        lines = (*told.requirements, *runtime.requirements(recipe.grpc))
        wanted = Wanted(lines, told.python, _architecture(recipe), recipe.pins)
        contents = self._contents(told.python)
        packages, base, layers = self._below(recipe, told, wanted, contents, contents.replica)
        layers.append(contents.code(recipe.bundle))
        if (recipe.bundle / "model").is_dir():
            layers.append(contents.weights(recipe.bundle, recipe.weights))
        annotations = _annotations(recipe, recipe.name, base)
        start = config.Start(
            entrypoint=[f"{_BIN}/python", "-m", runtime.MODULE],
            arguments=[*runtime.arguments(recipe.name, told.runner), *recipe.arguments],
            environment=_environment(told),
            path=_BIN,
            uid=recipe.uid,
        )
        labels = {**annotations, **_labels(recipe, told, packages)}
        image = config.image(self.store, recipe.platform, base.config, layers, start, labels, annotations)
        weights = None
        if layers[-1].made == "weights":
            weights = config.weights(self.store, recipe.platform, layers[-1], annotations)
        return Built(image, weights, packages, base.digest, layers, contents.compiles)

    def build_stages(self, recipe: StagesRecipe) -> Built:
        """The image of a project: what a pipeline's steps run in.

        Raises what `build` raises; `StageError` also for a lock file that is missing, is not whole, or lacks what Drivetrain needs.
        """
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        told = cog.read(recipe.folder, recipe.cog) if recipe.cog else cog.without(here)
        wanted = _locked(recipe, told.python)
        contents = self._contents(told.python)
        packages, base, layers = self._below(recipe, told, wanted, contents, contents.drivetrain)
        layers.append(contents.project(recipe.folder, recipe.leave_out))
        annotations = _annotations(recipe, f"{recipe.name}-stages", base)
        start = config.Start(
            # Who starts a step names the whole command.
            entrypoint=(),
            arguments=["drivetrain", "--help"],
            environment=_ENVIRONMENT | (_GPU if told.gpu else {}),
            path=_BIN,
            uid=recipe.uid,
            serves=False,
        )
        image = config.image(self.store, recipe.platform, base.config, layers, start, annotations, annotations)
        return Built(image, None, packages, base.digest, layers, contents.compiles)

    def _contents(self, python: str) -> Contents:
        contents = Contents(self.store, python)
        if not contents.compiles:
            self._say(f"there is no Python {python} here: Python files are compiled when the image starts")
        return contents

    def _below(
        self, recipe: Recipe | StagesRecipe, told: CogFile, wanted: Wanted, contents: Contents, own: Callable[[str], Layer]
    ) -> tuple[Sequence[Wheel], Base, list[Layer]]:  # fmt: skip
        """What stands below the user's files: the packages, the base, and all layers up to `cog.yaml`'s commands. `own` makes
        Drivetrain's layer for an interpreter."""
        kept = Wheels(self.store)
        under = functools.cache(lambda names: self._under(recipe, told, names))

        def ground(names: Sequence[str]) -> Ground:
            base, layers, interpreter = under(tuple(names))
            return Ground(self._running(recipe, base, layers), interpreter)

        packages = kept.resolve(wanted, recipe.folder, ground)
        base, below, interpreter = under(tuple(wheel.name for wheel in packages))
        layers = list(below)
        self._say(f"{len(packages)} packages for Python {told.python}")
        layers += contents.packages(packages, kept)
        layers.append(own(interpreter))
        layers += self._ran(recipe, base, layers, told.commands)
        return packages, base, layers

    def _under(
        self, recipe: Recipe | StagesRecipe, told: CogFile, packages: Sequence[str]
    ) -> tuple[Base, Sequence[Layer], str]:
        """The base that packages of those names stand on, its layers and that of the system packages, and its Python's path."""
        base, lacking = self._base(recipe, told, packages)
        first = [*commands.installing([*lacking, *told.system_packages]), *told.pre_install]
        layers = [*base.layers, *self._ran(recipe, base, base.layers, first)]
        return base, layers, base.python(told.python) if not lacking else f"/usr/bin/python{told.python}"

    def _base(
        self, recipe: Recipe | StagesRecipe, told: CogFile, packages: Sequence[str]
    ) -> tuple[Base, Sequence[str]]:
        choice = bases.Choice(recipe.base) if recipe.base else bases.choose(told, packages)
        self._say(f"base {choice.reference}")
        base = opening.open_base(choice.reference, recipe.folder, recipe.platform, self.store, self._registry)
        return base, choice.system_packages

    def _ran(
        self, recipe: Recipe | StagesRecipe, base: Base, below: Sequence[Layer], wanted: Sequence[str]
    ) -> list[Layer]:
        if not wanted:
            return []
        self._say(f"{len(wanted)} commands, in a container")
        return [commands.layer(self._running(recipe, base, below), wanted, self.store, recipe.platform)]

    def _running(self, recipe: Recipe | StagesRecipe, base: Base, layers: Sequence[Layer]) -> Image:
        """An image of the layers to run commands in."""
        start = config.Start(["/bin/sh"], (), {}, _BIN, 0, serves=False)
        return config.image(self.store, recipe.platform, base.config, layers, start, {}, {})


def _refuse_without_runner(bundle: Path, told: CogFile) -> None:
    file, _, name = told.runner.rpartition(":")
    if not name or not (bundle / file).is_file():
        said = f"run names {told.runner}, and {file} is not in the bundle" if told.runner else "it has no `run:`"
        raise StageError(said, where="cog.yaml", hint="such as `run: run.py:Runner`, with the file in the project")


def _architecture(recipe: Recipe | StagesRecipe) -> str:
    return recipe.platform.partition("/")[2]


def _locked(recipe: StagesRecipe, python: str) -> Wanted:
    """The lock file's packages, which Drivetrain's own must be among; Drivetrain itself is taken from here."""
    path = recipe.folder / recipe.lock
    if Path(recipe.lock).is_absolute() or any(part.startswith(".") for part in Path(recipe.lock).parts):
        raise StageError(
            f"the lock file {recipe.lock} lies outside of the project or is hidden, and does not come into the image",
            hint="move it, and have `lock` in the definition name it there",
        )
    if not path.is_file():
        raise StageError(
            f"there is no {recipe.lock}, and the image of a pipeline's steps has the packages of a lock file",
            hint="`uv pip compile --generate-hashes` or `pip-compile --generate-hashes` writes one; `lock` in the definition names it",
        )
    pins = path.read_text(encoding="utf-8")
    target = locks.environment(python, _architecture(recipe))
    found = locks.pinned(pins, target, without=itself.NAME)
    itself.refuse(found, python, target, recipe.lock)
    lines = [*locks.places(pins), *locks.lines(found, pins)]
    return Wanted(lines, python, _architecture(recipe), pins, whole=True)


def _annotations(recipe: Recipe | StagesRecipe, title: str, base: Base) -> dict[str, str]:
    prefix = "org.opencontainers.image"
    # The name of a file here would say more about this machine than about the image.
    named = {} if base.is_local else {f"{prefix}.base.name": base.name}
    return {f"{prefix}.title": title, **named, f"{prefix}.base.digest": base.digest, **recipe.annotations}


def _environment(told: CogFile) -> dict[str, str]:
    found = _ENVIRONMENT | (_GPU if told.gpu else {})
    if told.concurrency is not None:
        found["COG_MAX_CONCURRENCY"] = str(told.concurrency)
    return found | dict(told.environment)


def _labels(recipe: Recipe, told: CogFile, packages: Sequence[Wheel]) -> dict[str, str]:
    """Those that `cog build` puts on its images."""
    found = {
        "run.cog.config": json.dumps(told.told, sort_keys=True),
        "run.cog.has_init": "true",
        "run.cog.pip_freeze": "\n".join(f"{wheel.name}=={wheel.version}" for wheel in packages),
        "run.cog.version": next(wheel.version for wheel in packages if wheel.name == "cog"),
    }
    if (recipe.bundle / _SCHEMA).is_file():
        schema = json.loads((recipe.bundle / _SCHEMA).read_bytes())
        found["run.cog.openapi_schema"] = json.dumps(schema, sort_keys=True)
    return found
