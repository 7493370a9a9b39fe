"""Images pushed to and pulled from Debian's docker-registry."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drivetrain.backends.images import CONFIG, LAYER, MANIFEST, Blob, Image
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.errors import CorruptArtifact, StageError, SystemFault
from tests.backends.images.registries import RegistryServer, docker_config


def blob(folder: Path, data: bytes, media_type: str = LAYER) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest
    path.write_bytes(data)
    return Blob(f"sha256:{digest}", len(data), media_type, path)


def image(folder: Path, *layers: bytes) -> Image:
    """An image of layers that are no archives: a registry does not look into them."""
    config = blob(
        folder, json.dumps({"layers": [hashlib.sha256(layer).hexdigest() for layer in layers]}).encode(), CONFIG
    )
    return of(config, [blob(folder, layer) for layer in layers])


def of(config: Blob, blobs: Sequence[Blob]) -> Image:
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor() for layer in blobs],
        }
    ).encode()
    return Image(manifest, f"sha256:{hashlib.sha256(manifest).hexdigest()}", config, blobs, {})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path_factory.mktemp("registry") / "data")
    yield found
    found.kill()


@pytest.fixture
def registry() -> OciRegistry:
    return open_registry()


def test_an_image_that_was_pushed_is_found_by_tag_and_digest_with_all_its_bytes(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"base" * 1000, b"code", b"")
    pushed = registry.push(made, f"{server.host}/a/whole:1")
    assert pushed.ref == f"{server.host}/a/whole@{made.digest}"
    assert registry.resolve(f"{server.host}/a/whole:1") == made.digest
    assert registry.manifest(pushed.ref) == made.manifest
    for layer in made.blobs:
        target = registry.blob(pushed.ref, layer.digest, tmp_path / "pulled")
        assert target.read_bytes() == layer.path.read_bytes()


def test_only_blobs_that_the_registry_lacks_are_sent(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    first = image(tmp_path, b"b" * 3_000_000, b"code 1")
    assert registry.push(first, f"{server.host}/b:1").bytes_sent >= 3_000_000
    second = registry.push(image(tmp_path, b"b" * 3_000_000, b"code 2"), f"{server.host}/b:2")
    assert second.bytes_sent < 2_000
    again = registry.push(first, f"{server.host}/b:1")
    assert again.bytes_sent == len(first.manifest)


def test_blobs_of_another_repository_are_mounted_not_sent(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    registry.push(image(tmp_path, b"base" * 250_000), f"{server.host}/bases/python:3")
    made = image(tmp_path, b"base" * 250_000, b"mine")
    pushed = registry.push(
        made,
        f"{server.host}/c:1",
        mount_from=[f"{server.host}/bases/none", f"{server.host}/bases/python", "elsewhere.org/x"],
    )
    assert (pushed.bytes_mounted, pushed.bytes_sent < 2_000) == (1_000_000, True)
    assert registry.resolve(f"{server.host}/c:1") == made.digest


def test_a_layer_that_lies_in_the_registry_alone_is_mounted_or_else_missed(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"only there" * 1000)
    registry.push(made, f"{server.host}/d/base:1")
    afar = Image(made.manifest, made.digest, made.config, [Blob(made.layers[0].digest, 10_000, LAYER)], {})
    with pytest.raises(StageError, match="lies in another registry"):
        registry.push(afar, f"{server.host}/d/mine:1")
    assert server.tags("d/mine") == []
    registry.push(afar, f"{server.host}/d/mine:1", mount_from=[f"{server.host}/d/base"])
    assert server.tags("d/mine") == ["1"]


def test_what_has_no_tag_is_published_under_its_digest_and_gets_one_later(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"untagged")
    registry.push(made, f"{server.host}/e@{made.digest}")
    assert server.tags("e") == []
    assert registry.manifest(f"{server.host}/e@{made.digest}") == made.manifest
    registry.push(made, f"{server.host}/e:1")
    assert server.tags("e") == ["1"]


def test_what_is_not_there_is_none_and_a_key_error(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    assert registry.resolve(f"{server.host}/nothing:1") is None
    with pytest.raises(KeyError):
        registry.manifest(f"{server.host}/nothing:1")
    with pytest.raises(CorruptArtifact, match="has no blob"):
        registry.blob(f"{server.host}/nothing:1", f"sha256:{'0' * 64}", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_two_pushes_of_one_image_at_once_both_succeed(server: RegistryServer, tmp_path: Path) -> None:
    layers = [bytes([number]) * 500_000 for number in range(8)]
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor() as pool:
        pushed = list(
            pool.map(lambda folder: open_registry().push(image(folder, *layers), f"{server.host}/f:1"), folders)
        )
    assert pushed[0].digest == pushed[1].digest == open_registry().resolve(f"{server.host}/f:1")


def test_a_layer_that_another_push_is_writing_over_is_waited_for(server: RegistryServer, tmp_path: Path) -> None:
    registry, made = open_registry(), image(tmp_path, b"layer" * 1000)
    registry.push(made, f"{server.host}/over:1")
    link = server.home / "docker/registry/v2/repositories/over/_layers/sha256" / made.blobs[-1].digest[7:] / "link"
    text = link.read_text()
    link.write_text("")  # what a registry sees between the truncation of a file and its new content
    written = threading.Timer(0.5, link.write_text, [text])
    written.start()
    try:
        assert registry.push(made, f"{server.host}/over:2").digest == made.digest
    finally:
        written.join()


def test_two_different_images_pushed_to_one_tag_leave_one_of_them_whole(server: RegistryServer, tmp_path: Path) -> None:
    made = [image(tmp_path, b"common" * 100_000, bytes([number]) * 1000) for number in range(6)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: open_registry().push(each, f"{server.host}/g:1"), made))
    left = open_registry().resolve(f"{server.host}/g:1")
    found = next(each for each in made if each.digest == left)
    for layer in found.blobs:
        open_registry().blob(f"{server.host}/g:1", layer.digest, tmp_path / "pulled")


def test_referrers_are_listed_with_their_kinds_and_notes(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"signed")
    ref = registry.push(made, f"{server.host}/h:1").ref
    assert registry.referrers(ref, made.digest) == []
    one = registry.attach(ref, made.digest, "application/vnd.one", [blob(tmp_path, b"1", "text/plain")], {"why": "so"})
    two = registry.attach(ref, made.digest, "application/vnd.two", [blob(tmp_path, b"2", "text/plain")])
    registry.attach(ref, made.digest, "application/vnd.one", [blob(tmp_path, b"1", "text/plain")], {"why": "so"})
    found = registry.referrers(ref, made.digest)
    assert [(entry.digest, entry.artifact_type, dict(entry.annotations)) for entry in found] == [
        (one, "application/vnd.one", {"why": "so"}),
        (two, "application/vnd.two", {}),
    ]
    assert sorted(server.tags("h")) == ["1", made.digest.replace(":", "-")]
    told = json.loads(registry.manifest(f"{server.host}/h@{one}"))
    assert told["subject"]["digest"] == made.digest


def test_many_who_attach_at_once_are_all_listed(server: RegistryServer, tmp_path: Path) -> None:
    made = image(tmp_path, b"popular")
    registry = open_registry()
    ref = registry.push(made, f"{server.host}/i:1").ref
    blobs = [blob(tmp_path, str(number).encode(), "text/plain") for number in range(4)]
    with ThreadPoolExecutor() as pool:
        attached = list(pool.map(lambda each: registry.attach(ref, made.digest, "a/b", [each]), blobs))
    assert {entry.digest for entry in registry.referrers(ref, made.digest)} == set(attached)


def test_skopeo_reads_what_was_pushed(server: RegistryServer, registry: OciRegistry, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    made = image(tmp_path, b"for others")
    registry.push(made, f"{server.host}/j:1")
    words = [skopeo, "inspect", "--raw", "--tls-verify=false", f"docker://{server.host}/j:1"]
    assert subprocess.run(words, check=True, capture_output=True).stdout == made.manifest


@pytest.mark.parametrize("text", ["UPPER/case", "host:1/x:bad tag", "x@sha256:12", "localhost:1/", "a//b", ":1", ""])
def test_what_is_no_reference_is_said_to_be_none(registry: OciRegistry, text: str) -> None:
    with pytest.raises(StageError, match="no reference"):
        registry.resolve(text)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path_factory.mktemp("registry") / "data", password=True)
    yield found
    found.kill()


def test_credentials_are_those_of_docker_login(guarded: RegistryServer, tmp_path: Path) -> None:
    config = docker_config(tmp_path / "config.json", guarded.host)
    registry = open_registry([tmp_path / "absent.json", config])
    made = image(tmp_path, b"secret" * 1000)
    registry.push(made, f"{guarded.host}/a:1")
    assert registry.resolve(f"{guarded.host}/a:1") == made.digest


def test_a_wrong_password_and_none_are_refused_at_once_with_what_to_do(guarded: RegistryServer, tmp_path: Path) -> None:
    made = image(tmp_path, b"secret")
    wrong = docker_config(tmp_path / "wrong.json", guarded.host, "another password")
    with pytest.raises(SystemFault, match="refuses the credentials") as refused:
        open_registry([wrong]).push(made, f"{guarded.host}/b:1")
    assert "docker login" in refused.value.hint
    assert "another password" not in str(refused.value)
    with pytest.raises(SystemFault, match="wants credentials, and there are none"):
        open_registry().push(made, f"{guarded.host}/b:1")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemFault, match="cannot be read"):
        open_registry([tmp_path / "broken.json"]).push(made, f"{guarded.host}/b:1")
