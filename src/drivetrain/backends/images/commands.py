"""Commands that `cog.yaml` wants run while the image is built: the one thing that needs a container, and buildah to make it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from drivetrain.backends.images import Image, Layer, layout
from drivetrain.backends.images.layers import WHEN
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

    Raises `StageError` if buildah is missing, or a command fails, with the end of what it printed.
    """
    key = digest_of(["commands", image.digest, list(commands)])
    known = store.recall(key)
    if known is not None:
        return known
    program = shutil.which("buildah")
    if program is None:
        raise StageError(
            f"cog.yaml wants a command run while the image is built ({_short(commands[0])}), and buildah is not installed",
            hint="install buildah; or name a base that has what the command brings as package.base",
        )
    with tempfile.TemporaryDirectory(prefix="commands-", dir=store.root) as directory:
        place = Path(directory)
        layout.write(image, place / "before")
        _carry_out(program, place, commands)
        made = layout.read(place / "after", platform).layers[-1]
        if made.path is None:
            raise StageError("buildah wrote no layer")
        blob = store.copy(made.media_type, made.path)
        diff_id = _diff_id(place / "after", platform)
    return store.remember(key, Layer(blob, diff_id, f"commands {'; '.join(commands)}"))


def _carry_out(program: str, place: Path, commands: Sequence[str]) -> None:
    container = _run([program, "from", "--pull-never", f"oci:{place / 'before'}:latest"], "the image")
    try:
        for command in commands:
            words = [program, "run", "--network", "host", "--user", "0:0", "--workingdir", "/", container]
            _run([*words, "--", "/bin/sh", "-ec", command], _short(command))
        words = [program, "commit", "--quiet", "--disable-compression", "--timestamp", str(WHEN)]
        _run([*words, "--format", "oci", container, f"oci:{place / 'after'}:latest"], "what the commands made")
    finally:
        subprocess.run([program, "rm", container], capture_output=True, check=False)


def _run(words: Sequence[str], what: str) -> str:
    ended = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if ended.returncode != 0:
        said = (ended.stderr.strip() or ended.stdout.strip())[-1000:]
        raise StageError(f"buildah ended with {ended.returncode} at {what}: {said}")
    return ended.stdout.strip().splitlines()[-1] if ended.stdout.strip() else ""


def _short(command: str) -> str:
    return command if len(command) <= 80 else f"{command[:77]}..."


def _diff_id(folder: Path, platform: str) -> str:
    config = layout.read(folder, platform).config
    if config.path is None:
        raise StageError("buildah wrote no config")
    return str(json.loads(config.path.read_bytes())["rootfs"]["diff_ids"][-1])
