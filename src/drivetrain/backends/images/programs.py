"""buildah and Docker: the programs that run commands in a container of an image, as root and with the network of this machine.

Each has two verbs, and leaves neither container nor image behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol, cast

from drivetrain.backends.images import Blob, Image, Layer, layout
from drivetrain.backends.images.layers import WHEN
from drivetrain.backends.images.store import Sink, Store
from drivetrain.errors import StageError

_MARKS = (".dockerenv", "run/.containerenv")
"""Files by which a container is known for one; they are no part of what commands have changed."""
_TIMES = ("mtime", "atime", "ctime")
_EACH = 'n=0; for c; do /bin/sh -ec "$c" || { code=$?; echo >&2; echo $n >&2; exit $code; }; n=$((n+1)); done'
"""Carries out each argument, and after one that fails ends with which it was."""


class Program(Protocol):
    """What runs commands. Both verbs raise `StageError` if one fails, with the end of what it printed."""

    def layer(self, image: Image, commands: Sequence[str], made: str, store: Store, platform: str) -> Layer:
        """What the commands change in the image's file system, when they run one after the other; `made` says what that is."""
        ...

    def run(self, image: Image, command: str, volumes: Sequence[str], store: Store) -> None:
        """Carries out a command and keeps nothing but what it writes to `volumes` (`HERE:THERE` or `HERE:THERE:ro`)."""
        ...


def found() -> Program | None:
    """buildah where it is installed, else Docker where one answers."""
    buildah, docker = shutil.which("buildah"), shutil.which("docker")
    if buildah is not None:
        return Buildah(buildah)
    # The command alone is no Docker: it may be there without a daemon.
    return Docker(docker) if docker is not None and _carried_out(docker, "ps", "--quiet").returncode == 0 else None


def short(command: str) -> str:
    """The command's beginning, for a line that tells of it."""
    return command if len(command) <= 80 else f"{command[:77]}..."


class Buildah:
    """See `Program`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def layer(self, image: Image, commands: Sequence[str], made: str, store: Store, platform: str) -> Layer:
        """See `Program`."""
        with self._container(image, store) as (place, container):
            for command in commands:
                self._run_in(place, container, command, ())
            how = ("--quiet", "--disable-compression", "--timestamp", str(WHEN), "--format", "oci")
            self._run(place, "what the commands made", "commit", *how, container, "oci:after:latest")
            after = layout.read(place / "after", platform)
            blob, config = after.layers[-1], after.config
            if blob.path is None or config.path is None:
                raise StageError("buildah wrote no layer")
            diff_id = str(json.loads(config.path.read_bytes())["rootfs"]["diff_ids"][-1])
            return Layer(store.copy(blob.media_type, blob.path), diff_id, made)

    def run(self, image: Image, command: str, volumes: Sequence[str], store: Store) -> None:
        """See `Program`."""
        with self._container(image, store) as (place, container):
            self._run_in(place, container, command, volumes)

    @contextlib.contextmanager
    def _container(self, image: Image, store: Store) -> Iterator[tuple[Path, str]]:
        with tempfile.TemporaryDirectory(prefix="commands-", dir=store.root) as directory:
            place = Path(directory)
            # buildah makes an image's name of the folder's; it keeps what others of this name are at apart.
            before = f"before-{uuid.uuid4().hex}"
            layout.write(image, place / before)
            words = ("from", "--pull-never", "--name", before, f"oci:{before}:latest")
            container = self._run(place, "the image", *words).splitlines()[-1]
            try:
                yield place, container
            finally:
                _carried_out(self._path, "rm", container)
                _carried_out(self._path, "rmi", f"localhost/{before}:latest")

    def _run_in(self, place: Path, container: str, command: str, volumes: Sequence[str]) -> None:
        where = ("--network", "host", "--user", "0:0", "--workingdir", "/", *_volumes(volumes))
        self._run(place, short(command), "run", *where, container, "--", "/bin/sh", "-ec", command)

    def _run(self, place: Path, what: str, *words: str) -> str:
        ended = _carried_out(self._path, *words, cwd=place)
        if ended.returncode != 0:
            raise _failure("buildah", ended.returncode, what, ended.stderr.strip() or ended.stdout.strip())
        return ended.stdout.strip()


class Docker:
    """See `Program`. No more than what Docker 20.10's own command has is asked of it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def layer(self, image: Image, commands: Sequence[str], made: str, store: Store, platform: str) -> Layer:
        """See `Program`."""
        with self._ran(image, commands, ()) as container, store.scratch() as archive:
            after = f"localhost/drivetrain-after-{uuid.uuid4().hex}:latest"
            try:
                self._run("what the commands made", "commit", container, after)
                # The layers below come along: Docker gives none out alone.
                self._run("what the commands made", "save", "--output", str(archive), after)
            finally:
                _carried_out(self._path, "image", "rm", "--force", after)
            return store.plain(made, lambda sink: _write_top(archive, len(image.layers), sink))

    def run(self, image: Image, command: str, volumes: Sequence[str], store: Store) -> None:
        """See `Program`."""
        with self._ran(image, [command], volumes):
            pass

    @contextlib.contextmanager
    def _ran(self, image: Image, commands: Sequence[str], volumes: Sequence[str]) -> Iterator[str]:
        """A container in which the commands have run."""
        container = f"drivetrain-{uuid.uuid4().hex}"
        before = f"localhost/{container}:latest"
        where = ("--network", "host", "--user", "0:0", "--workdir", "/", "--entrypoint", "/bin/sh", *_volumes(volumes))
        try:
            self._load(image, before)
            words = ("--name", container, "--pull", "never", *where, before, "-ec", _EACH, "sh", *commands)
            ended = _carried_out(self._path, "run", *words)
            if ended.returncode != 0:
                said, _, number = ended.stderr.strip().rpartition("\n")
                known = number.isdigit() and int(number) < len(commands)
                what = short(commands[int(number)]) if known else "the container"
                said = (said if known else ended.stderr).strip() or ended.stdout.strip()
                raise _failure("docker", ended.returncode, what, said)
            yield container
        finally:
            _carried_out(self._path, "rm", "--force", "--volumes", container)
            _carried_out(self._path, "image", "rm", "--force", before)

    def _load(self, image: Image, name: str) -> None:
        """Has Docker know the image under the name: as an archive of Docker's own form, which all its versions take."""
        with subprocess.Popen(
            [self._path, "load", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            with contextlib.suppress(BrokenPipeError):  # it says why
                _write_archive(image, name, cast(IO[bytes], process.stdin))
            said = process.communicate()[1].decode(errors="replace")
        if process.returncode != 0:
            raise _failure("docker", process.returncode, "the image", said.strip())

    def _run(self, what: str, *words: str) -> None:
        ended = _carried_out(self._path, *words)
        if ended.returncode != 0:
            raise _failure("docker", ended.returncode, what, ended.stderr.strip() or ended.stdout.strip())


def _write_archive(image: Image, name: str, file: IO[bytes]) -> None:
    names = [f"{blob.digest.removeprefix('sha256:')}.tar" for blob in image.layers]
    config = f"{image.config.digest.removeprefix('sha256:')}.json"
    manifest = json.dumps([{"Config": config, "RepoTags": [name], "Layers": names}]).encode()
    with tarfile.open(fileobj=file, mode="w|") as tar:
        info = tarfile.TarInfo("manifest.json")
        info.size = len(manifest)
        tar.addfile(info, io.BytesIO(manifest))
        by_name = dict(zip([config, *names], [image.config, *image.layers], strict=True))
        for member, blob in by_name.items():
            tar.add(_path(blob), member)


def _path(blob: Blob) -> Path:
    if blob.path is None:
        raise StageError(f"the layer {blob.digest} lies in a registry, and not here")
    return blob.path


def _write_top(archive: Path, below: int, sink: Sink) -> None:
    """The layer above the `below` others of the image in Docker's archive, its times fixed; an empty one where nothing was changed."""
    with tarfile.open(archive) as tar, tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as target:  # type: ignore[arg-type]
        names = json.load(cast(IO[bytes], tar.extractfile("manifest.json")))[0]["Layers"]
        if len(names) == below:
            return
        if len(names) != below + 1:
            raise StageError(f"docker wrote an image with {len(names)} layers, and not with one more than {below}")
        with tarfile.open(fileobj=tar.extractfile(names[-1]), mode="r|*") as source:
            for info in source:
                if info.name.removeprefix("./") in _MARKS:
                    continue
                info.mtime = WHEN
                info.pax_headers = {key: value for key, value in info.pax_headers.items() if key not in _TIMES}
                target.addfile(info, source.extractfile(info) if info.isreg() else None)


def _volumes(volumes: Sequence[str]) -> list[str]:
    return [word for volume in volumes for word in ("--volume", volume)]


def _carried_out(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=cwd)


def _failure(name: str, code: int, what: str, said: str) -> StageError:
    return StageError(f"{name} ended with {code} at {what}: {said[-1000:]}")
