"""`python -m benchmarks.packaging.program BUNDLE BASE STORE [REF]` does what `drivetrain package --push` does from the bundle on, and
prints what it took as JSON. Without a reference it builds alone; with `-` for the bundle it fetches the base alone.

It imports nothing else of the benchmarks: its time and its memory are measured.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from drivetrain import packaging
from drivetrain.backends.images import Built, Origin, Pushed, Recipe, opening
from drivetrain.backends.images.oci import OciImages
from drivetrain.backends.images.registry import open_registry
from drivetrain.backends.images.store import Store
from drivetrain.backends.images.trust import open_trust


class Timed(OciImages):
    """Remembers what it pushed, which leaves out what is attached to an image."""

    pushes: list[Pushed]

    def push(self, built: Built, ref: str) -> Pushed:
        """See `Images`."""
        pushed = super().push(built, ref)
        self.pushes.append(pushed)
        return pushed


def main(bundle: str, base: str, store: str, ref: str = "") -> None:
    """Builds, publishes, prints."""
    place, registry = Path(store), open_registry()
    if bundle == "-":
        opening.open_base(base, place, "linux/amd64", Store(place), lambda: registry)
        return
    images, began = Timed(place, lambda: registry), time.monotonic()
    images.pushes = []
    recipe = Recipe(bundle=Path(bundle), name="flights", folder=place, base=base)
    built = images.build(recipe, lambda text: None)
    seconds = time.monotonic() - began
    if ref:
        trust, origin = open_trust(place, lambda: registry, None), Origin("benchmark", "0" * 64, "0" * 64, "0" * 64)
        packaging.publish(images, trust, built, ref, origin, None, lambda text: None)
    print(
        json.dumps(
            {
                "build": seconds,
                "pushed": sum(push.seconds for push in images.pushes),
                "sent": sum(push.bytes_sent for push in images.pushes),
                "memory": _memory(),
                "digest": built.image.digest,
            }
        )
    )


def _memory() -> int:
    """The most bytes that this process, or one that it started, has had resident. What getrusage says of the process itself begins with
    what its parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    kilobytes = max(int(line.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return kilobytes * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
