"""Commands in real containers of a Debian, by buildah and by Docker's command; and packages that are compiled in them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import textwrap
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from drivetrain.backends.images import Built, Recipe, StagesRecipe, itself, layout, programs, unpacked
from drivetrain.backends.images.builder import Builder
from drivetrain.errors import StageError
from tests.backends.images import containers, docker, made
from tests.backends.images.conftest import no_registry, offline

pytestmark = pytest.mark.slow

SITE = unpacked.site_packages(made.PYTHON)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a base that has a compiler."""
    root = tmp_path_factory.mktemp("commands")
    containers.needed("podman", "buildah", "debootstrap")
    containers.debian(root / "base.tar", ("python3-dev", "gcc", "libc6-dev"))
    with pytest.MonkeyPatch.context() as patch:
        containers.configured(patch, root)
        yield root


@pytest.fixture(params=["buildah", "docker"])
def program(request: pytest.FixtureRequest, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The program that runs commands; nothing of its is left when the test ends."""
    name: str = request.param
    if name == "docker":
        monkeypatch.setenv("PATH", str(docker.installed(tmp_path / "bin", os.environ["PATH"])))
        assert shutil.which("buildah") is None
    return name


@pytest.fixture(autouse=True)
def left(place: Path) -> Iterator[None]:
    """Looks whether a container or an image is left."""
    yield
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:{os.defpath}")
        names = containers.podman("ps", "--all", "--external", "--format", "{{.Names}}").splitlines()
        names += containers.podman("images", "--all", "--format", "{{.Repository}}").splitlines()
    assert not [name for name in names if "drivetrain-" in name or "before-" in name]


def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "store", no_registry, lambda text: None)


def recipe(place: Path, bundle: Path) -> Recipe:
    return Recipe(bundle=bundle, name="small", folder=place, base="base.tar")


def layer(built: Built, kind: str) -> Path:
    found = next(layer.blob.path for layer in built.layers if layer.made.partition(" ")[0] == kind)
    assert found is not None
    return found


def test_the_layer_is_what_the_commands_have_changed(
    place: Path, tmp_path: Path, packages: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        "echo one > /etc/ran && cd /etc && NAME=x",
        'pwd >> /etc/ran; echo "$NAME" >> /etc/ran; rm /etc/debian_version',
    )
    cog = f"  run:\n    - {first}\n    - {second}\n"
    wanted = recipe(place, made.bundle(tmp_path / "bundle", cog=cog))
    built = builder(tmp_path).build(wanted)
    path = layer(built, "commands")
    assert made.member(path, "etc/ran") == b"one\n/\n\n"
    names = set(made.names(path))
    assert "etc/.wh.debian_version" in names
    # What was there before is not in it, nor are the marks of a container; a missing /etc/hosts is made by whoever runs one.
    assert names <= {"etc/ran", "etc/.wh.debian_version", "etc/hosts", "etc/mtab", "etc/resolv.conf", "etc/hostname"}
    with tarfile.open(path) as tar:
        assert {info.mtime for info in tar} == {315_532_800}
    layout.verify(built.image)
    monkeypatch.setenv("PATH", "/nowhere")
    assert builder(tmp_path).build(wanted).image == built.image


def test_a_command_that_fails_is_named_with_what_it_printed(
    place: Path, tmp_path: Path, packages: Path, program: str
) -> None:
    cog = "  pre_install: ['true', 'printf \"no such luck\" >&2; exit 3', 'false']\n"
    with pytest.raises(StageError, match=rf"{program} ended with 3 at printf .* exit 3: no such luck"):
        builder(tmp_path).build(recipe(place, made.bundle(tmp_path / "bundle", cog=cog)))


def test_commands_that_change_nothing_make_an_empty_layer(
    place: Path, tmp_path: Path, packages: Path, program: str
) -> None:
    built = builder(tmp_path).build(recipe(place, made.bundle(tmp_path / "bundle", cog="  run: ['true']\n")))
    assert not [name for name in made.names(layer(built, "commands")) if not name.startswith("etc/")]


def test_an_image_of_packed_layers_is_taken_by_docker(
    place: Path, tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.base(tmp_path / "small.tar", mode="w:gz")
    monkeypatch.setenv("PATH", str(docker.installed(tmp_path / "bin", os.environ["PATH"])))
    wanted = Recipe(made.bundle(tmp_path / "bundle", cog="  run: ['true']\n"), "small", tmp_path, base="small.tar")
    # It is taken; there is only no shell in it.
    with pytest.raises(StageError, match=r"docker ended with 127 at the container: .*/bin/sh"):
        builder(tmp_path).build(wanted)


# packages that have to be compiled

SOURCE = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native", "", -1, methods};
PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&module); }
"""
BACKEND = """
import os, subprocess, sysconfig, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    file = "native" + sysconfig.get_config_var("EXT_SUFFIX")
    subprocess.run(["cc", "-shared", "-fPIC", "-I", sysconfig.get_path("include"), "native.c", "-o", file], check=True)
    tag = "cp311-cp311-linux_x86_64"
    name = "native-1.0-" + tag + ".whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.write(file)
        wheel.writestr("compiled_in.txt", open("/etc/hostname-of-base").read() + os.urandom(8).hex())
        wheel.writestr("native-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: native\\nVersion: 1.0\\n")
        wheel.writestr("native-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: " + tag + "\\n")
        wheel.writestr("native-1.0.dist-info/RECORD", "")
    return name
"""
METADATA = """
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.mkdir(os.path.join(folder, "native-1.0.dist-info"))
    with open(os.path.join(folder, "native-1.0.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: native\\nVersion: 1.0\\n")
    return "native-1.0.dist-info"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose lock file has a package with C in it, and names the folder with what that is built with."""
    info = tmp_path / "installed" / "drivetrain-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: drivetrain\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\n")
    monkeypatch.setattr(itself, "_distribution", lambda: metadata.PathDistribution(info))
    offline(monkeypatch, tmp_path / "index")
    folder = tmp_path / "project"
    made.wheel(folder / "vendored", "backend", files={"backend.py": (BACKEND + METADATA).encode()})
    pyproject = '[build-system]\nrequires = ["backend"]\nbuild-backend = "backend"\n'
    pyproject += '[project]\nname = "native"\nversion = "1.0"\n'
    info_of = "Metadata-Version: 2.1\nName: native\nVersion: 1.0\n"
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "native-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, text in {"native.c": SOURCE, "pyproject.toml": pyproject, "PKG-INFO": info_of}.items():
            entry = tarfile.TarInfo(f"native-1.0/{member}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "requirements.lock").write_text(f"--find-links vendored\nnative==1.0 --hash=sha256:{digest}\n")
    cog = f"""\
        build:
          python_version: "{made.PYTHON}"
          pre_install: ["echo base > /etc/hostname-of-base"]
        run: "run.py:Runner"
        """
    (folder / "cog.yaml").write_text(textwrap.dedent(cog))
    return folder


def stages(place: Path, project: Path) -> StagesRecipe:
    base = str(place / "base.tar")
    return StagesRecipe(folder=project, name="small", lock="requirements.lock", cog="cog.yaml", base=base)


def test_a_package_is_compiled_in_the_base_once_and_runs_there(
    place: Path, tmp_path: Path, project: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.environ["PATH"] if program == "buildah" else f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin"
    built = builder(tmp_path).build_stages(stages(place, project))
    (wheel,) = built.packages
    assert (wheel.name, wheel.file) == ("native", "native-1.0-cp311-cp311-linux_x86_64.whl")
    path = layer(built, "packages")
    assert made.member(path, f"{SITE}/compiled_in.txt").startswith(b"base\n")
    # The source is what the lock file names, and what the image's own lock file names.
    lock = (project / "requirements.lock").read_text()
    assert wheel.source in lock
    assert wheel.source in made.member(path, "opt/venv/requirements.lock").decode()

    folder = tmp_path / f"drivetrain-{uuid.uuid4().hex}"
    layout.write(built.image, folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", usual)
    image = containers.podman("pull", "--quiet", f"oci:{folder.name}")
    try:
        code = "import native; print(native.answer())"
        assert containers.podman("run", "--rm", "--network", "host", image, "python", "-c", code) == "42"
    finally:
        containers.podman("rmi", "--force", image)

    # The wheel would have other bytes if it were compiled again.
    monkeypatch.setenv("PATH", "/nowhere")
    assert builder(tmp_path).build_stages(stages(place, project)).image == built.image
    for note in (tmp_path / "store" / "made").iterdir():
        if wheel.file in note.read_text() and wheel.sha256 in note.read_text() and "source" in note.read_text():
            note.unlink()
    monkeypatch.setenv("PATH", usual)
    assert builder(tmp_path).build_stages(stages(place, project)).packages == built.packages


def test_source_that_does_not_compile_says_why_and_what_may_be_lacking(
    place: Path, tmp_path: Path, project: Path, program: str
) -> None:
    cog = (project / "cog.yaml").read_text().replace("echo base > /etc/hostname-of-base", "rm /usr/bin/cc")
    (project / "cog.yaml").write_text(cog)
    with pytest.raises(
        StageError, match=r"(?s)native-1\.0\.tar\.gz .* in a container of the base that failed: .*cc"
    ) as caught:
        builder(tmp_path).build_stages(stages(place, project))
    assert "build.system_packages" in caught.value.hint


def test_source_that_only_the_base_can_tell_of_is_compiled_there_too(
    place: Path, tmp_path: Path, project: Path
) -> None:
    made.wheel(project / "vendored", "backend", files={"backend.py": BACKEND.encode()})
    helper = made.wheel(tmp_path / "index", "helper").read_bytes()
    lock = (project / "requirements.lock").read_text()
    line = f"helper==1.0 --hash=sha256:{hashlib.sha256(helper).hexdigest()}\n"
    (project / "requirements.lock").write_text(lock + line)
    built = builder(tmp_path).build_stages(stages(place, project))
    assert [wheel.name for wheel in built.packages] == ["helper", "native"]
    assert built.packages[1].source in lock


def test_source_with_another_digest_is_not_compiled(place: Path, tmp_path: Path, project: Path) -> None:
    lock = project / "requirements.lock"
    lock.write_text(lock.read_text().rpartition("sha256:")[0] + f"sha256:{'0' * 64}\n")
    with pytest.raises(StageError, match="DO NOT MATCH THE HASHES"):
        builder(tmp_path).build_stages(stages(place, project))


def test_without_a_container_it_is_said_what_to_install(
    place: Path, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "cog.yaml").write_text(f'build:\n  python_version: "{made.PYTHON}"\nrun: "run.py:Runner"\n')
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StageError, match=r"native-1\.0\.tar\.gz is source") as caught:
        builder(tmp_path).build_stages(stages(place, project))
    assert "install buildah or Docker" in caught.value.hint
    assert programs.found() is None
