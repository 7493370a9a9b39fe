"""A base opened: its layers brought into the store, its config read, its Python found.

It is an OCI layout folder, a root file system as a tar archive, or an image in a registry.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from drivetrain.backends.images import LAYER_GZIP, PIECE, Blob, Image, Layer, Registry, layout
from drivetrain.backends.images.store import Sink, Store
from drivetrain.errors import CorruptArtifact, StageError
from drivetrain.records import digest as digest_of

_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_INTERPRETER = re.compile(r"(?:\./)?((?:[^/]+/)*bin/python(3\.\d+))")
_PREFERRED = ("usr/local/bin/", "usr/bin/")


@dataclass(frozen=True, slots=True)
class Base:
    """What an image stands on. `name` is how it was asked for, `digest` that of its manifest or archive; `pythons` maps versions to the
    interpreters' paths in it; `is_local` whether it is a file or folder here."""

    name: str
    digest: str
    layers: Sequence[Layer]
    config: Mapping[str, Any]
    pythons: Mapping[str, str]
    is_local: bool

    def python(self, version: str) -> str:
        """The path of the interpreter. Raises `StageError` if the base has none of that version."""
        if version not in self.pythons:
            has = f"it has {', '.join(sorted(self.pythons))}" if self.pythons else "it has none"
            raise StageError(
                f"the base {self.name} has no Python {version}, which cog.yaml asks for: {has}",
                hint="build.python_version of cog.yaml has to be one that package.base brings along",
            )
        return self.pythons[version]


def open_base(name: str, folder: Path, platform: str, store: Store, registry: Callable[[], Registry]) -> Base:
    """The base of that name: a path (relative to `folder`; `FOLDER:TAG` for one of a layout's images), or else a reference.

    Raises `StageError` if it cannot be one, and what the registry raises.
    """
    found = _local(name, folder)
    if found is None:
        if name.startswith((".", "/")):
            raise StageError(f"the base {name} does not exist")
        return _of_image(name, _from_registry(name, platform, store, registry()), platform, store, is_local=False)
    path, tag = found
    if path.is_dir():
        return _of_image(name, layout.read(path, platform, tag), platform, store, is_local=True)
    layer = _archive(path, store)
    architecture = platform.partition("/")[2]
    return Base(name, layer.blob.digest, [layer], {"architecture": architecture}, _pythons([layer], store), True)


def _local(name: str, folder: Path) -> tuple[Path, str | None] | None:
    bare = name.removeprefix("oci:")
    path = folder / bare
    if path.exists():
        return path, None
    before, colon, tag = bare.rpartition(":")
    return (folder / before, tag) if colon and (folder / before / "oci-layout").is_file() else None


# An image


def _of_image(name: str, image: Image, platform: str, store: Store, *, is_local: bool) -> Base:
    if image.config.path is None:
        raise StageError(f"the base {name} has no config")
    config = json.loads(image.config.path.read_bytes())
    for key, wanted in zip(("os", "architecture"), platform.split("/"), strict=False):
        if config.get(key, wanted) != wanted:
            raise StageError(f"the base {name} is for {config.get(key)}, and the image is to be for {platform}")
    diff_ids = config.get("rootfs", {}).get("diff_ids", [])
    if len(diff_ids) != len(image.layers):
        raise StageError(f"the base {name} has {len(image.layers)} layers, and its config names {len(diff_ids)}")
    told = [str(entry.get("created_by", "")) for entry in config.get("history", []) if not entry.get("empty_layer")]
    told += [""] * (len(diff_ids) - len(told))
    layers = [
        Layer(_kept(blob, store), diff_id, made or "base")
        for blob, diff_id, made in zip(image.layers, diff_ids, told, strict=False)
    ]
    return Base(name, image.digest, layers, config, _declared(config) or _pythons(layers, store), is_local)


def _kept(blob: Blob, store: Store) -> Blob:
    """The blob in the store, read and verified where it was not there yet."""
    if store.holds(blob):
        return Blob(blob.digest, blob.size, blob.media_type, store.path(blob.digest))
    kept = store.copy(blob.media_type, cast(Path, blob.path))
    if kept.digest != blob.digest:
        raise CorruptArtifact(f"{blob.path} is not what its digest says", digest=blob.digest)
    return kept


def _from_registry(name: str, platform: str, store: Store, registry: Registry) -> Image:
    digest, repository = registry.resolve(name), _repository(name)
    if digest is None:
        raise StageError(f"there is no image {name}, which the base is to be")
    manifest = _manifest(name, f"{repository}@{digest}", registry)
    told = json.loads(manifest)
    if "manifests" in told:
        fitting = layout.of_platform(told["manifests"], platform)
        if not fitting:
            raise StageError(f"the base {name} is not there for {platform}")
        manifest = _manifest(name, f"{repository}@{fitting[0]['digest']}", registry)

    def fetched(blob: Blob) -> Blob:
        if not store.holds(blob):
            with store.scratch() as scratch:
                store.adopt(registry.blob(name, blob.digest, scratch), blob)
        return Blob(blob.digest, blob.size, blob.media_type, store.path(blob.digest))

    return layout.parsed(manifest, fetched)


def _manifest(name: str, ref: str, registry: Registry) -> bytes:
    try:
        return registry.manifest(ref)
    except KeyError as error:
        raise StageError(
            f"the base {name} is not whole: its registry has no manifest {ref.partition('@')[2]}",
            hint="copy it there with every platform that its index names (skopeo copy --multi-arch=all)",
        ) from error


def _repository(reference: str) -> str:
    bare = reference.partition("@")[0]
    head, slash, last = bare.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


# An archive


def _archive(path: Path, store: Store) -> Layer:
    """The root file system as a layer: as it is where it is plain or gzip, else unpacked."""
    seen = path.stat()
    key = digest_of(["archive", str(path.resolve()), seen.st_size, seen.st_mtime_ns, seen.st_ino])
    known = store.recall(key)
    if known is not None:
        return known
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_ZSTD):
        raise StageError(f"{path} is compressed with zstd, which Python cannot read", hint="unpack it: zstd -d")
    if not tarfile.is_tarfile(path):
        raise StageError(f"the base {path} is no tar archive")
    if head.startswith(_GZIP):
        blob = store.copy(LAYER_GZIP, path)
        with gzip.open(path) as unpacked:
            return store.remember(key, Layer(blob, _digest(cast(IO[bytes], unpacked)), f"base {path.name}"))

    def fill(sink: Sink) -> None:
        with lzma.open(path) if head.startswith(_XZ) else path.open("rb") as file:
            while piece := file.read(PIECE):
                sink.write(piece)

    return store.remember(key, store.plain(f"base {path.name}", fill)) if _is_readable(head) else _refuse(path)


def _is_readable(head: bytes) -> bool:
    return head.startswith(_XZ) or head[257:262] == b"ustar"


def _refuse(path: Path) -> Layer:
    raise StageError(f"{path} is packed in a way that is not known", hint="a plain tar, or one with gzip or xz")


def _digest(file: IO[bytes]) -> str:
    found = hashlib.sha256()
    while piece := file.read(PIECE):
        found.update(piece)
    return f"sha256:{found.hexdigest()}"


# Its Python


def _declared(config: Mapping[str, Any]) -> dict[str, str]:
    """What Docker's official Python images say of themselves."""
    variables = dict(entry.partition("=")[::2] for entry in config.get("config", {}).get("Env") or [])
    version = ".".join(variables.get("PYTHON_VERSION", "").split(".")[:2])
    return {version: f"/usr/local/bin/python{version}"} if version and "PYTHON_SHA256" in variables else {}


def _pythons(layers: Sequence[Layer], store: Store) -> dict[str, str]:
    found: dict[str, str] = {}
    for layer in layers:
        for path in _interpreters(layer, store):
            version = path.rpartition("python")[2]
            if version not in found or _rank(path) < _rank(found[version]):
                found[version] = path
    return found


def _rank(path: str) -> int:
    return next((number for number, start in enumerate(_PREFERRED) if path.startswith(f"/{start}")), len(_PREFERRED))


def _interpreters(layer: Layer, store: Store) -> Sequence[str]:
    key = digest_of(["pythons", layer.diff_id])
    known = store.note(key)
    if isinstance(known, list):
        return known
    found = sorted(_listed(cast(Path, layer.blob.path)))
    store.keep_note(key, found)
    return found


def _listed(path: Path) -> Iterator[str]:
    try:
        with tarfile.open(path, "r|*", bufsize=PIECE) as tar:
            for info in tar:
                match = _INTERPRETER.fullmatch(info.name)
                if match and (info.isfile() or info.islnk()):
                    yield f"/{match[1]}"
    except tarfile.ReadError as error:
        raise StageError(
            f"the base's layer {path.name} cannot be read: {error}", hint="layers packed with zstd are not"
        ) from error
