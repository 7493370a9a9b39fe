"""Commands that `cog.yaml` wants run while the image is built; they need a container, which buildah or Docker makes."""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.backends.images import Image, Layer, programs
from drivetrain.backends.images.store import Store
from drivetrain.errors import StageError
from drivetrain.records import digest as digest_of


def installing(packages: Sequence[str]) -> list[str]:
    """The commands that install Debian's or Ubuntu's packages and leave nothing else behind."""
    if not packages:
        return []
    names = " ".join(sorted(packages))
    return [
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends "
        f"{names} && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf"
    ]


def layer(image: Image, commands: Sequence[str], store: Store, platform: str) -> Layer:
    """What the commands change when they run in a container of the image, one after the other, as root, with the network of this
    machine. Commands are not run again for an image that they were run in before.

    Raises `StageError` if there is neither buildah nor Docker, or a command fails, with the end of what it printed.
    """
    key = digest_of(["commands", image.digest, list(commands)])
    known = store.recall(key)
    if known is not None:
        return known
    program = programs.found()
    if program is None:
        said = f"cog.yaml wants a command run while the image is built ({programs.short(commands[0])})"
        raise StageError(
            f"{said}, and buildah is not installed, nor does a Docker answer",
            hint="install buildah or Docker; or name a base that has what the command brings as package.base",
        )
    return store.remember(key, program.layer(image, commands, f"commands {'; '.join(commands)}", store, platform))
