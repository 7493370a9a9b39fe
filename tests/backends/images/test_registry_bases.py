"""Bases in a registry, whole or not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.backends.images import INDEX, MANIFEST, Image, layout, opening
from drivetrain.backends.images.oci import OciImages
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.backends.images.store import Store
from drivetrain.errors import StageError
from tests.backends.images import made
from tests.backends.images.registries import RegistryServer
from tests.backends.images.test_builder import Build, skopeo


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path / "registry" / "data")
    yield found
    found.kill()


@pytest.fixture
def image(tmp_path: Path, build: Build) -> Image:
    return build(made.bundle(tmp_path / "bundle")).image


def index(folder: Path, image: Image, server: RegistryServer) -> str:
    """Has the registry hold the image in an index for one platform; returns the reference of that."""
    layout.write(image, folder)
    entry = {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest)}
    told = {"schemaVersion": 2, "mediaType": INDEX}
    named = json.dumps(
        {**told, "manifests": [{**entry, "platform": {"os": "linux", "architecture": "amd64"}}]}
    ).encode()
    whole = made_blob(folder, named)
    listed = {"mediaType": INDEX, "digest": whole, "size": len(named)}
    (folder / "index.json").write_text(json.dumps({**told, "manifests": [listed]}))
    ref = f"{server.host}/base:1"
    skopeo(
        "copy", "--dest-tls-verify=false", "--multi-arch=all", "--preserve-digests", f"oci:{folder}", f"docker://{ref}"
    )
    return ref


def made_blob(folder: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs" / "sha256" / digest).write_bytes(data)
    return f"sha256:{digest}"


def opened(ref: str, tmp_path: Path) -> opening.Base:
    return opening.open_base(ref, tmp_path, "linux/amd64", Store(tmp_path / "kept"), open_registry)


def test_a_base_of_several_platforms_is_that_of_the_one_that_is_wanted(
    tmp_path: Path, server: RegistryServer, image: Image
) -> None:
    found = opened(index(tmp_path / "several", image, server), tmp_path)
    assert [layer.blob.digest for layer in found.layers] == [blob.digest for blob in image.layers]
    assert found.digest == image.digest


def test_a_base_whose_index_names_what_is_not_there_is_refused(
    tmp_path: Path, server: RegistryServer, image: Image
) -> None:
    ref = index(tmp_path / "several", image, server)
    shutil.rmtree(server.home / f"docker/registry/v2/repositories/base/_manifests/revisions/sha256/{image.digest[7:]}")
    with pytest.raises(StageError, match=f"the base {ref} is not whole: .* no manifest {image.digest}") as caught:
        opened(ref, tmp_path)
    assert "--multi-arch=all" in caught.value.hint


class Emptied(OciRegistry):
    """A registry that has lost the image by the time that its manifest is asked for."""

    def manifest(self, ref: str) -> bytes:
        raise KeyError(ref)


def test_an_image_that_is_deleted_meanwhile_is_not_there(tmp_path: Path, server: RegistryServer, image: Image) -> None:
    ref = f"{server.host}/gone:1"
    open_registry().push(image, ref)
    assert OciImages(tmp_path / "store", open_registry).config(ref)[0] == image.digest
    with pytest.raises(StageError, match=f"there is no image {ref}"):
        OciImages(tmp_path / "store", Emptied).config(ref)
