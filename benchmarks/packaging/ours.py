"""Drivetrain as an entrant: `python -m benchmarks.packaging.ours BUNDLE BASE STORE REF` builds and publishes as `drivetrain package --push`
does, and prints what it took as JSON. Without a reference it builds alone; with `-` for the bundle it fetches the base alone."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packaging.world import World, run


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds to build and to publish (`sent` and `pushed`: of the image alone, without what is attached to it), the most memory of the
    process in bytes, and the image by digest."""

    build: float
    publish: float
    pushed: float
    sent: int
    memory: int
    digest: str


def main(bundle: str, base: str, store: str, ref: str = "") -> None:
    """Builds, publishes, prints."""
    from drivetrain import packaging
    from drivetrain.backends.images import Built, Origin, Pushed, Recipe, opening
    from drivetrain.backends.images.oci import OciImages
    from drivetrain.backends.images.registry import open_registry
    from drivetrain.backends.images.store import Store
    from drivetrain.backends.images.trust import open_trust

    place, registry = Path(store), open_registry()
    if bundle == "-":
        opening.open_base(base, place, "linux/amd64", Store(place), lambda: registry)
        return
    pushes: list[Pushed] = []

    class Timed(OciImages):
        def push(self, built: Built, ref: str) -> Pushed:
            pushes.append(super().push(built, ref))
            return pushes[-1]

    images, began = Timed(place, lambda: registry), time.monotonic()
    recipe = Recipe(bundle=Path(bundle), name="flights", folder=place, base=base)
    built = images.build(recipe, lambda text: None)
    done = published = time.monotonic()
    if ref:
        origin = Origin("benchmark", "0" * 64, "0" * 64, "0" * 64)
        packaging.publish(
            images, open_trust(place, lambda: registry, None), built, ref, origin, None, lambda text: None
        )
        published = time.monotonic()
    print(
        json.dumps(
            {
                "build": done - began,
                "publish": published - done,
                "pushed": sum(push.seconds for push in pushes),
                "sent": sum(push.bytes_sent for push in pushes),
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "digest": built.image.digest,
            }
        )
    )


def prepare(world: World, base: str, store: Path) -> None:
    """Fetches the base into a new store, as buildah is given it too."""
    _call(world, "-", base, store)


def build(world: World, bundle: Path, base: str, store: Path, ref: str = "") -> Took:
    """One process of it."""
    return Took(**json.loads(_call(world, str(bundle), base, store, *([ref] if ref else []))))


def _call(world: World, bundle: str, base: str, store: Path, *more: str) -> str:
    words = [sys.executable, "-m", "benchmarks.packaging.ours", bundle, base, str(store), *more]
    return run(words, variables={**world.pip, "PYTHONPATH": ":".join(filter(None, sys.path))})


if __name__ == "__main__":
    main(*sys.argv[1:])
