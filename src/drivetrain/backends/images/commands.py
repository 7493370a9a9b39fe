"""Commands that `cog.yaml` wants run while the image is built: the one thing that needs a container, and buildah to make it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import uuid
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
        # buildah makes an image's name of the folder's; it keeps what others of this name are at apart.
        before = f"before-{uuid.uuid4().hex}"
        layout.write(image, place / before)
        _carry_out(program, place, before, commands)
        made = layout.read(place / "after", platform)
        blob, config = made.layers[-1], made.config
        if blob.path is None or config.path is None:
            raise StageError("buildah wrote no layer")
        diff_id = str(json.loads(config.path.read_bytes())["rootfs"]["diff_ids"][-1])
        kept = store.copy(blob.media_type, blob.path)
    return store.remember(key, Layer(kept, diff_id, f"commands {'; '.join(commands)}"))


def _carry_out(program: str, place: Path, before: str, commands: Sequence[str]) -> None:
    def run(what: str, *words: str) -> str:
        ended = subprocess.run(
            [program, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=place
        )
        if ended.returncode != 0:
            said = (ended.stderr.strip() or ended.stdout.strip())[-1000:]
            raise StageError(f"buildah ended with {ended.returncode} at {what}: {said}")
        return ended.stdout.strip()

    container = run("the image", "from", "--pull-never", "--name", before, f"oci:{before}:latest").splitlines()[-1]
    try:
        for command in commands:
            where = ("--network", "host", "--user", "0:0", "--workingdir", "/")
            run(_short(command), "run", *where, container, "--", "/bin/sh", "-ec", command)
        how = ("--quiet", "--disable-compression", "--timestamp", str(WHEN), "--format", "oci")
        run("what the commands made", "commit", *how, container, "oci:after:latest")
    finally:
        for words in (("rm", container), ("rmi", f"localhost/{before}:latest")):
            subprocess.run([program, *words], capture_output=True, check=False)


def _short(command: str) -> str:
    return command if len(command) <= 80 else f"{command[:77]}..."
