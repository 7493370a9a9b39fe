"""What runs commands, where it is looked for, and what is taken out of Docker's archives; real containers are in `test_commands`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from drivetrain.backends.images import Built, compiling, layers, programs
from drivetrain.backends.images.sdists import Place
from drivetrain.backends.images.store import Sink
from drivetrain.errors import StageError
from tests.backends.images import docker, made

Build = Callable[..., Built]


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has nothing but the given programs be installed."""

    def call(*folders: Path) -> None:
        monkeypatch.setenv("PATH", ":".join(map(str, folders)) or "/nowhere")

    return call


def script(folder: Path, name: str, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


def test_buildah_comes_before_docker(tmp_path: Path, only: Callable[..., None]) -> None:
    both = script(script(tmp_path / "both", "docker"), "buildah")
    only(both)
    assert isinstance(programs.found(), programs.Buildah)
    (both / "buildah").unlink()
    assert isinstance(programs.found(), programs.Docker)
    only()
    assert programs.found() is None


def test_docker_without_its_daemon_is_no_docker(tmp_path: Path, build: Build, only: Callable[..., None]) -> None:
    only(docker.without_daemon(tmp_path / "bin"))
    with pytest.raises(StageError, match="buildah is not installed, nor does a Docker answer") as caught:
        build(made.bundle(tmp_path / "bundle", cog="  run: [echo hello]\n"))
    assert "install buildah or Docker" in caught.value.hint


def test_an_image_that_docker_does_not_take_is_said_with_dockers_words(
    tmp_path: Path, build: Build, only: Callable[..., None]
) -> None:
    only(script(tmp_path / "bin", "docker", "#!/bin/sh\n[ $1 = ps ] && exit 0\necho no space left >&2\nexit 1\n"))
    with pytest.raises(StageError, match="docker ended with 1 at the image: no space left"):
        build(made.bundle(tmp_path / "bundle", cog="  run: [echo hello]\n"))


# the layer in an archive of Docker's


def archive(path: Path, *found: Mapping[str, bytes]) -> Path:
    """An archive as `docker save` writes it, with those layers."""
    with tarfile.open(path, "w") as tar:
        names = [f"blobs/sha256/{number}" for number in range(len(found))]
        for name, files in zip(names, found, strict=True):
            add(tar, name, packed(files))
        add(tar, "manifest.json", json.dumps([{"Config": "c", "RepoTags": [], "Layers": names}]).encode())
    return path


def packed(files: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            add(tar, name, content, 1_700_000_000.5, {"SCHILY.xattr.user.kind": "kept"})
    return data.getvalue()


def add(
    tar: tarfile.TarFile, name: str, data: bytes, mtime: float = 0, headers: Mapping[str, str] | None = None
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.pax_headers = len(data), mtime, dict(headers or {})  # type: ignore[assignment]
    tar.addfile(info, io.BytesIO(data))


def top(path: Path, below: int) -> dict[str, tarfile.TarInfo]:
    found = io.BytesIO()
    programs._write_top(path, below, Sink(found))
    with tarfile.open(fileobj=io.BytesIO(found.getvalue())) as tar:
        return {info.name: info for info in tar}


def test_the_last_layer_is_taken_out_without_times_and_marks_of_a_container(tmp_path: Path) -> None:
    path = archive(tmp_path / "a", {"below": b"1"}, {"made": b"2", ".dockerenv": b"", "run/.containerenv": b""})
    (found,) = top(path, 1).values()
    assert (found.name, found.size, found.mtime) == ("made", 1, layers.WHEN)
    assert found.pax_headers == {"SCHILY.xattr.user.kind": "kept"}


def test_where_nothing_has_changed_docker_adds_no_layer(tmp_path: Path) -> None:
    assert top(archive(tmp_path / "a", {"below": b"1"}), 1) == {}


def test_an_image_with_other_layers_is_not_taken_for_the_one_that_was_made(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="3 layers, and not with one more than 1"):
        top(archive(tmp_path / "a", {}, {}, {}), 1)


# what pip in a container is told


def test_pips_configuration_goes_along_with_the_paths_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "wheels").mkdir(parents=True)
    (tmp_path / "index" / "simple").mkdir(parents=True)
    (tmp_path / "my ca.pem").write_text("")
    text = f"""
        [global]
        index-url = https://user:secret@example.com/simple
        cert = {tmp_path / "my ca.pem"}
        require-virtualenv = true
        timeout = 5
        [download]
        timeout = 7
        """
    (tmp_path / "pip.conf").write_text("\n".join(line.strip() for line in text.splitlines()))
    for name in ("INDEX_URL", "CERT", "DEFAULT_TIMEOUT", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels /nowhere https://example.com/links")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{tmp_path}/index/simple")
    place = Place(tmp_path / "project", tmp_path / "constraints.txt", ["--find-links wheels", "-i https://example.org"])
    found, mounted = compiling._settings(place)
    assert found["index-url"] == "https://user:secret@example.com/simple"
    assert found["find-links"].split("\n") == [f"{place.folder}/wheels", "/nowhere", "https://example.com/links"]
    assert (found["timeout"], found["cert"]) == ("7", f"{tmp_path}/my ca.pem")
    assert "require-virtualenv" not in found
    assert set(mounted) == {place.folder / "wheels", tmp_path / "index", tmp_path / "my ca.pem"}
    (tmp_path / "written.conf").write_text(compiling._written(found))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "written.conf"))
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert compiling._settings(place)[0] == found
    assert compiling._lines(place) == (
        [f"--find-links {place.folder}/wheels", "-i https://example.org"],
        [place.folder / "wheels"],
    )
