"""OCI image layouts: an image as a folder that other tools read and write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivetrain.backends.images import CONFIG, INDEX, LAYER, LAYER_GZIP, LAYER_ZSTD, PIECE, Blob, Image
from drivetrain.errors import CorruptArtifact, StageError

_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_REF_NAME = "org.opencontainers.image.ref.name"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_AS_OCI: Mapping[str, str] = {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
    "application/vnd.docker.container.image.v1+json": CONFIG,
}
"""Docker's names for blobs whose bytes are the same in OCI's images."""


def write(image: Image, folder: Path, tag: str = "latest") -> Path:
    """Adds the image to the layout at `folder`, which is made where there is none; blobs are linked where that is possible, else
    copied. `index.json`, which is what makes the image part of the layout, comes last.

    Raises `StageError` if the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "oci-layout").is_file():
        raise StageError(f"{folder} is not empty and no OCI image layout", hint="name a new folder")
    place = folder / "blobs" / "sha256"
    place.mkdir(parents=True, exist_ok=True)
    for blob in image.blobs:
        _place(blob, place)
    _replace(place / image.digest.removeprefix("sha256:"), image.manifest)
    _replace(folder / "oci-layout", _VERSION)
    told = {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest)}
    entry = {**told, "annotations": {_REF_NAME: tag}}
    others = [known for known in _index(folder) if known.get("annotations", {}).get(_REF_NAME) != tag]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, entry]}
    _replace(folder / "index.json", _json(index))
    return folder


def _index(folder: Path) -> list[dict[str, Any]]:
    path = folder / "index.json"
    return list(_load(path.read_bytes(), path)["manifests"]) if path.is_file() else []


def _place(blob: Blob, place: Path) -> None:
    target = place / blob.digest.removeprefix("sha256:")
    if target.is_file() and target.stat().st_size == blob.size:
        return
    if blob.path is None:
        raise StageError(f"the layer {blob.digest} lies in a registry, and not here")
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        try:
            os.link(blob.path, beside)
        except OSError:  # another file system
            shutil.copyfile(blob.path, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read(folder: Path, platform: str, tag: str | None = None) -> Image:
    """The layout's image for the platform (`linux/amd64`), or that of a tag; its layers are looked at when they are used.

    Raises `StageError` if the layout has none, or several that could be meant, `CorruptArtifact` if a manifest or config does not have
    the digest that names it, or a layer is not there.
    """
    index = folder / "index.json"
    if not index.is_file():
        raise StageError(f"{folder} is no OCI image layout", hint="it has no index.json")
    found = _choose(folder, _index(folder), platform, tag)
    manifest = _blob_bytes(folder, found)
    return parsed(manifest, lambda blob: _there(folder, blob))


def parsed(manifest: bytes, locate: Any) -> Image:
    """The image that a manifest of OCI or Docker describes; `locate(blob)` gives each blob the path where it lies.

    Raises `StageError` if it describes none.
    """
    told = _load(manifest, "the manifest")
    if "config" not in told or "layers" not in told:
        raise StageError("the manifest is not one of an image")
    config, *layers = [locate(_described(entry)) for entry in (told["config"], *told["layers"])]
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    return Image(manifest, digest, config, layers, told.get("annotations") or {})


def _described(entry: Mapping[str, Any]) -> Blob:
    kind = str(entry["mediaType"])
    return Blob(str(entry["digest"]), int(entry["size"]), _AS_OCI.get(kind, kind))


def _choose(folder: Path, entries: Sequence[Mapping[str, Any]], platform: str, tag: str | None) -> Mapping[str, Any]:
    if tag is not None:
        entries = [entry for entry in entries if (entry.get("annotations") or {}).get(_REF_NAME) == tag]
    fitting = of_platform(entries, platform)
    if len(fitting) != 1:
        tags = ", ".join(sorted((entry.get("annotations") or {}).get(_REF_NAME, "") for entry in entries)) or "none"
        what = "no image" if not fitting else f"{len(fitting)} images"
        raise StageError(f"{folder} has {what} for {platform}", hint=f"tags there: {tags}; name one as FOLDER:TAG")
    found = fitting[0]
    if found["mediaType"] in (INDEX, _DOCKER_LIST):
        return _choose(folder, _load(_blob_bytes(folder, found), folder)["manifests"], platform, None)
    return found


def of_platform(entries: Sequence[Mapping[str, Any]], platform: str) -> list[Mapping[str, Any]]:
    """An index's entries that are for the platform, those that name it before those that name none."""
    system, _, architecture = platform.partition("/")
    wanted = {"os": system, "architecture": architecture}
    named = [entry for entry in entries if {key: (entry.get("platform") or {}).get(key) for key in wanted} == wanted]
    return named or [entry for entry in entries if "platform" not in entry]


def _blob_bytes(folder: Path, entry: Mapping[str, Any]) -> bytes:
    digest = str(entry["digest"])
    path = folder / "blobs" / digest.replace(":", "/")
    data = path.read_bytes() if path.is_file() else b""
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise CorruptArtifact(f"{path} is not what its name says", digest=digest)
    return data


def _there(folder: Path, blob: Blob) -> Blob:
    path = folder / "blobs" / blob.digest.replace(":", "/")
    if not path.is_file() or path.stat().st_size != blob.size:
        raise CorruptArtifact(f"{path} is not there, or not of its size", digest=blob.digest)
    return Blob(blob.digest, blob.size, blob.media_type, path)


def verify(image: Image) -> None:
    """Reads every blob that lies here. Raises `CorruptArtifact` for the first that does not have the digest that names it."""
    for blob in image.blobs:
        if blob.path is None:
            continue
        found = hashlib.sha256()
        with blob.path.open("rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
        if f"sha256:{found.hexdigest()}" != blob.digest:
            raise CorruptArtifact(f"{blob.path} is not what its digest says", digest=blob.digest)


def _load(data: bytes, where: object) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise StageError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise StageError(f"{where} is no JSON object")
    return found
