"""The image in which a pipeline's steps run: the project, all of Drivetrain, and a lock file's packages."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from drivetrain import __version__
from drivetrain.backends.images import Built, StagesRecipe, itself, locks, unpacked
from drivetrain.backends.images.builder import Builder
from drivetrain.errors import StageError
from tests.backends.images import made
from tests.backends.images.conftest import no_registry

Build = Callable[..., Built]

SITE = unpacked.site_packages(made.PYTHON)
LOCK = "wanted==1.0\nhelper==1.0 ; python_version < '3.12'\nhelper==2.0 ; python_version >= '3.12'\n"
COG = f'build:\n  python_version: "{made.PYTHON}"\nrun: "run.py:Runner"\n'


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has Drivetrain be installed with other requirements than its own."""
    info = tmp_path / "installed" / "drivetrain-0.dist-info"
    info.mkdir(parents=True)
    monkeypatch.setattr(itself, "_distribution", lambda: metadata.PathDistribution(info))

    def call(*requires: str, python: str = ">=3.11,<3.14") -> None:
        lines = [f"Requires-Dist: {line}\n" for line in requires]
        text = f"Metadata-Version: 2.5\nName: drivetrain\nVersion: 0\nRequires-Python: {python}\n{''.join(lines)}"
        (info / "METADATA").write_text(text)
        (info / "entry_points.txt").write_text("[console_scripts]\ndrivetrain = drivetrain.cli.main:main\n")

    call("wanted>=1", "elsewhere; sys_platform == 'win32'", "more; extra == 'some'")
    return call


@pytest.fixture
def build(tmp_path: Path, packages: Path, installed: Callable[..., None]) -> Build:
    """Builds the image of a project."""

    def call(project: Path, store: str = "store", **changed: Any) -> Built:
        made.base(project.parent / "base.tar")
        given = {
            "folder": project,
            "name": "small",
            "lock": "requirements.lock",
            "cog": "cog.yaml",
            "base": "../base.tar",
        }
        return Builder(tmp_path / store, no_registry, lambda text: None).build_stages(StagesRecipe(**(given | changed)))

    return call


def project(folder: Path, lock: str | None = LOCK) -> Path:
    """A project with what belongs into an image, and with what does not."""
    files = {
        "drivetrain.yaml": "name: small\n", "train.py": "def train(): ...\n", "cog.yaml": COG, "rows.csv": "a\n1\n",
        "feature_repo/definitions.py": "X = 1\n", "checks/training.json": "{}\n", ".env": "SECRET=1\n",
        ".git/config": "[core]\n", ".drivetrain/journal.db": "rows", "__pycache__/train.cpython-311.pyc": "code",
        "env/pyvenv.cfg": "home = /usr\n", "env/bin/python": "", "image/oci-layout": "{}", "image/blobs/x": "x",
        "keys/signing.key": "private", "keys/signing.pub": "public",
    }  # fmt: skip
    for name, text in ({**files, "requirements.lock": lock} if lock is not None else files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def layer(built: Built, kind: str) -> Path:
    found = next(layer.blob.path for layer in built.layers if layer.made.partition(" ")[0] == kind)
    assert found is not None
    return found


def config(built: Built) -> dict[str, Any]:
    assert built.image.config.path is not None
    found: dict[str, Any] = json.loads(built.image.config.path.read_bytes())["config"]
    return found


def test_the_layers_go_from_what_changes_least_to_what_changes_most(tmp_path: Path, build: Build) -> None:
    built = build(project(tmp_path / "project"))
    kinds = [layer.made.partition(" ")[0] for layer in built.layers]
    assert kinds == ["base", "packages", "drivetrain", "project"]
    assert {wheel.name: wheel.version for wheel in built.packages} == {"wanted": "1.0", "helper": "1.0"}
    assert built.weights is None


def test_all_of_drivetrain_is_in_it_as_an_installer_would_place_it(tmp_path: Path, build: Build) -> None:
    path = layer(build(project(tmp_path / "project")), "drivetrain")
    names = set(made.names(path))
    assert {
        f"{SITE}/drivetrain/cli/main.py", f"{SITE}/drivetrain/backends/tracking/mlflow.py", f"{SITE}/drivetrain/py.typed",
        f"{SITE}/drivetrain/templates/tabular/train.py", "opt/venv/bin/python", "opt/venv/pyvenv.cfg",
    } <= names  # fmt: skip
    assert f"{SITE}/drivetrain/cli/__pycache__/main.cpython-311.pyc" in names
    script = made.member(path, "opt/venv/bin/drivetrain")
    assert script.startswith(b"#!/opt/venv/bin/python\n")
    with tarfile.open(path) as tar:
        assert tar.getmember("opt/venv/bin/drivetrain").mode == 0o755
        tar.extractall(tmp_path / "root", filter="tar")
    (found,) = metadata.distributions(name="drivetrain", path=[str(tmp_path / "root" / SITE)])
    assert found.version == __version__
    assert "wanted>=1" in (found.requires or [])
    assert [point.value for point in found.entry_points] == ["drivetrain.cli.main:main"]


def test_the_projects_files_are_in_it_and_nothing_else(tmp_path: Path, build: Build) -> None:
    built = build(project(tmp_path / "project"), leave_out=["keys/signing.key"])
    path = layer(built, "project")
    assert {name for name in made.names(path) if "__pycache__" not in name} == {
        f"src/{name}" for name in (
            "drivetrain.yaml", "train.py", "cog.yaml", "rows.csv", "requirements.lock", "feature_repo/definitions.py",
            "checks/training.json", "keys/signing.pub",
        )
    }  # fmt: skip
    with tarfile.open(path) as tar:
        state = tar.getmember("src/.drivetrain")
    assert state.isdir()
    assert state.mode == 0o1777


def test_whoever_starts_a_step_names_the_whole_command(tmp_path: Path, build: Build) -> None:
    built = build(project(tmp_path / "project"), uid=777, annotations={"org.opencontainers.image.revision": "abc"})
    found = config(built)
    assert (found["User"], found["WorkingDir"], found["Cmd"]) == ("777", "/src", ["drivetrain", "--help"])
    assert not {"Entrypoint", "ExposedPorts", "Healthcheck"} & set(found)
    assert "HOME=/tmp" in found["Env"]
    assert any(entry.startswith("PATH=/opt/venv/bin:/usr/local/sbin:") for entry in found["Env"])
    assert found["Labels"]["org.opencontainers.image.title"] == "small-stages"
    assert built.image.annotations["org.opencontainers.image.revision"] == "abc"
    assert not any(name.startswith("run.cog") for name in found["Labels"])


def test_two_folders_and_two_stores_give_one_digest(tmp_path: Path, build: Build) -> None:
    first = build(project(tmp_path / "one" / "project"), store="first")
    second = project(tmp_path / "two" / "elsewhere")
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
    assert build(second, store="second").image.digest == first.image.digest


def test_a_change_of_the_code_changes_the_layer_of_the_project_alone(tmp_path: Path, build: Build) -> None:
    place = project(tmp_path / "project")
    before = build(place)
    (place / "train.py").write_text("def train(): return 1\n")
    after = build(place)
    assert before.image.digest != after.image.digest
    assert [one.blob for one in before.layers[:-1]] == [other.blob for other in after.layers[:-1]]


def test_a_project_without_cog_yaml_has_the_python_that_runs_here(tmp_path: Path, build: Build) -> None:
    place = project(tmp_path / "project", lock="wanted==1.0\nhelper==1.0\n")
    (place / "cog.yaml").unlink()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    made.base(tmp_path / "own.tar", pythons=(here,))
    names = made.names(layer(build(place, cog=None, base="../own.tar"), "drivetrain"))
    assert f"{unpacked.site_packages(here)}/drivetrain/__init__.py" in names


def test_a_link_out_of_the_project_is_refused(tmp_path: Path, build: Build) -> None:
    place = project(tmp_path / "project")
    (place / "data").symlink_to(tmp_path)
    with pytest.raises(StageError, match="lies outside of what the image is made of"):
        build(place)


# the lock file


def test_without_a_lock_file_there_is_no_image(tmp_path: Path, build: Build) -> None:
    with pytest.raises(StageError, match=r"there is no requirements\.lock") as caught:
        build(project(tmp_path / "project", lock=None))
    assert "uv pip compile" in caught.value.hint


@pytest.mark.parametrize("name", ["../requirements.lock", ".hidden/requirements.lock", "/requirements.lock"])
def test_a_lock_file_that_would_not_come_along_is_refused(tmp_path: Path, build: Build, name: str) -> None:
    with pytest.raises(StageError, match="does not come into the image"):
        build(project(tmp_path / "project"), lock=name)


def test_a_lock_file_without_what_drivetrain_needs_is_refused_with_all_that_is_missing(
    tmp_path: Path, build: Build, installed: Callable[..., None]
) -> None:
    installed("wanted>=2", "unheard-of", "helper>=1", "Other; python_version < '4'")
    with pytest.raises(
        StageError, match=r"does not have what Drivetrain .* itself needs: Other, unheard-of, wanted>=2$"
    ):
        build(project(tmp_path / "project"))


def test_a_python_that_drivetrain_does_not_run_on_is_refused(
    tmp_path: Path, build: Build, installed: Callable[..., None]
) -> None:
    installed("wanted", python=">=3.12")
    with pytest.raises(StageError, match=r"is to have Python 3\.11, and Drivetrain runs on >=3\.12"):
        build(project(tmp_path / "project"))


def test_a_lock_file_that_is_not_whole_is_refused_with_what_it_lacks(tmp_path: Path, build: Build) -> None:
    with pytest.raises(StageError, match=r"is not whole: it lacks helper>=1 \(for wanted\)"):
        build(project(tmp_path / "project", lock="wanted==1.0\n"))


@pytest.mark.parametrize("line", ["wanted>=1.0", "wanted"])
def test_a_line_that_pins_no_version_is_refused(tmp_path: Path, build: Build, line: str) -> None:
    with pytest.raises(StageError, match="does not say which version of wanted"):
        build(project(tmp_path / "project", lock=f"{line}\nhelper==1.0\n"))


def test_drivetrain_in_the_lock_file_is_the_one_that_builds_the_image(tmp_path: Path, build: Build) -> None:
    built = build(project(tmp_path / "project", lock=f"drivetrain==0.0.1\n{LOCK}"))
    assert [wheel.name for wheel in built.packages] == ["helper", "wanted"]


def test_the_lock_files_markers_are_asked_of_the_image_and_not_of_this_machine() -> None:
    pins = "a==1 ; python_version < '3.12'\na==2 ; python_version >= '3.12'\nb==1 ; platform_machine == 'aarch64'\n"
    pins += "c==1 ; sys_platform == 'win32'\nd==1!2.0+cpu \\\n    --hash=sha256:00\n    # via a\n"
    found = {
        (python, architecture): [str(line) for line in locks.pinned(pins, locks.environment(python, architecture))]
        for python, architecture in (("3.11", "amd64"), ("3.13", "arm64"))
    }
    assert found == {("3.11", "amd64"): ["a==1", "d==1!2.0+cpu"], ("3.13", "arm64"): ["a==2", "b==1", "d==1!2.0+cpu"]}


def test_digests_are_passed_on_where_every_package_has_them() -> None:
    first, second = (f"{name}==1 --hash=sha256:{digit * 64}\n" for name, digit in (("a", "0"), ("b", "1")))
    assert locks.lines([Requirement("a==1")], first + second) == [f"a==1 --hash=sha256:{'0' * 64}"]
    assert locks.lines([Requirement("a==1"), Requirement("c==1")], first + second) == ["a==1", "c==1"]


# source


def sdist(folder: Path, name: str, setup: str = "", requires: str = "") -> str:
    """A package that comes as source alone, with a build script of its own that needs what `requires` lists; its line in a lock file."""
    build = f"""
import os, zipfile

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(folder, config_settings=None, metadata_directory=None):
    {setup or "tag = 'py3-none-any'"}
    name = "{name}-1.0-" + tag + ".whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as file:
        file.writestr("{name}.py", "VERSION = 1\\n")
        file.writestr("{name}-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        file.writestr("{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: " + tag + "\\n")
        file.writestr("{name}-1.0.dist-info/RECORD", "")
    return name
"""
    project = f'[build-system]\nrequires = [{requires}]\nbuild-backend = "build"\nbackend-path = ["."]\n'
    project += f'[project]\nname = "{name}"\nversion = "1.0"\n'
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, text in {"build.py": build, "pyproject.toml": project, "PKG-INFO": info}.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{member}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def hashed(folder: Path, *names: str) -> str:
    files = {name: folder / f"{name}-1.0-py3-none-any.whl" for name in names}
    return "".join(
        f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files.items()
    )


def test_a_package_that_comes_as_source_is_built_if_it_is_python_alone(
    tmp_path: Path, build: Build, packages: Path
) -> None:
    lock = sdist(packages, "source") + hashed(packages, "wanted", "helper")
    place = project(tmp_path / "project", lock=lock)
    built, again = build(place, store="one"), build(place, store="two")
    assert f"{SITE}/source.py" in made.names(layer(built, "packages"))
    assert built.image.digest == again.image.digest
    kept = made.member(layer(built, "packages"), "opt/venv/requirements.lock").decode()
    assert lock.partition(" --hash=")[2].partition("\n")[0] in kept


def test_source_that_has_to_be_compiled_is_refused_where_no_container_can_be_made(
    tmp_path: Path, build: Build, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    lock = sdist(packages, "native", "tag = 'cp311-cp311-linux_x86_64'") + hashed(packages, "wanted", "helper")
    with pytest.raises(StageError, match="not of Python alone"):
        build(project(tmp_path / "project", lock=lock))


def test_source_that_does_not_build_says_why(
    tmp_path: Path, build: Build, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    lock = sdist(packages, "broken", "raise SystemExit('no such luck')") + hashed(packages, "wanted", "helper")
    with pytest.raises(StageError, match="no such luck"):
        build(project(tmp_path / "project", lock=lock))


def test_nothing_is_built_that_the_lock_file_does_not_name_by_its_digest(
    tmp_path: Path, build: Build, packages: Path
) -> None:
    lock = sdist(packages, "source").partition(" ")[0] + "\n" + hashed(packages, "wanted", "helper")
    with pytest.raises(StageError, match=r"source==1\.0 has no wheel for"):
        build(project(tmp_path / "project", lock=lock))


def test_source_is_built_with_what_lies_in_a_folder_of_the_project(
    tmp_path: Path, build: Build, packages: Path
) -> None:
    place = project(tmp_path / "project")
    made.wheel(place / "vendored", "tool", files={"tool.py": b""})
    lock = (
        "--find-links vendored\n" + sdist(packages, "source", requires='"tool"') + hashed(packages, "wanted", "helper")
    )
    (place / "requirements.lock").write_text(lock)
    assert f"{SITE}/source.py" in made.names(layer(build(place), "packages"))


# Drivetrain's own lock file


def test_this_repositorys_lock_file_has_what_drivetrain_needs() -> None:
    text = (Path(__file__).parents[3] / "requirements.lock").read_text()
    for python in ("3.11", "3.13"):
        target = locks.environment(python, "amd64")
        itself.refuse(locks.pinned(text, target), python, target, "requirements.lock")
