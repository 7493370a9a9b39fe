"""Wheels: resolved for a platform by pip, unpacked without it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from drivetrain.backends.images import layers, locks, unpacked
from drivetrain.backends.images.store import Sink, Store
from drivetrain.backends.images.wheels import Wanted, Wheels
from drivetrain.errors import StageError, SystemFault, Unavailable
from tests.backends.images import made

SITE = unpacked.site_packages(made.PYTHON)
HERE = unpacked.Interpreter(sys.executable, platform.python_version())


def resolve(tmp_path: Path, *requirements: str, pins: str = "", architecture: str = "amd64") -> dict[str, str]:
    found = Wheels(Store(tmp_path / "store")).resolve(Wanted(requirements, made.PYTHON, architecture, pins))
    return {wheel.name: wheel.version for wheel in found}


def test_what_a_package_needs_comes_along(tmp_path: Path, packages: Path) -> None:
    assert resolve(tmp_path, "wanted==1.0") == {"wanted": "1.0", "helper": "1.0"}


def test_the_same_question_is_answered_without_pip(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(tmp_path, "wanted==1.0")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert resolve(tmp_path, "wanted==1.0") == first


def test_the_lock_file_decides_between_versions(tmp_path: Path, packages: Path) -> None:
    made.wheel(packages, "helper", "2.0")
    assert resolve(tmp_path, "wanted")["helper"] == "2.0"
    pins = "helper==1.0 ; python_version >= '3.8' \\\n    # via wanted\nunheard-of==9+cpu\n"
    assert resolve(tmp_path, "wanted", pins=pins)["helper"] == "1.0"


def test_a_wheel_that_the_lock_file_does_not_know_is_refused(tmp_path: Path, packages: Path) -> None:
    digest = hashlib.sha256((packages / "helper-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert resolve(tmp_path, "wanted", pins=f"helper==1.0 \\\n    --hash=sha256:{digest}\n")["helper"] == "1.0"
    with pytest.raises(StageError, match="which the lock file does not have for helper"):
        resolve(tmp_path, "wanted", pins=f"helper==1.0 \\\n    --hash=sha256:{'0' * 64}\n")


@pytest.mark.parametrize(("architecture", "version"), [("amd64", "1.0"), ("arm64", "2.0")])
def test_the_platform_decides_which_wheel_is_taken(
    tmp_path: Path, packages: Path, architecture: str, version: str
) -> None:
    made.wheel(packages, "native", "1.0", tags="cp311-cp311-manylinux_2_17_x86_64")
    made.wheel(packages, "native", "2.0", tags="cp311-abi3-manylinux_2_28_aarch64")
    made.wheel(packages, "native", "3.0", tags="cp312-cp312-manylinux_2_17_x86_64")
    assert resolve(tmp_path, "native", architecture=architecture)["native"] == version


def test_what_is_needed_on_the_platform_counts_and_not_what_is_needed_here(tmp_path: Path, packages: Path) -> None:
    made.wheel(packages, "there", requires=("helper",))
    made.wheel(packages, "top", requires=("there; platform_machine == 'aarch64'", "nowhere; extra == 'more'"))
    assert resolve(tmp_path, "top", architecture="arm64") == {"top": "1.0", "there": "1.0", "helper": "1.0"}
    assert resolve(tmp_path, "top") == {"top": "1.0"}


def test_a_package_without_a_wheel_for_the_platform_is_named(tmp_path: Path, packages: Path) -> None:
    made.wheel(packages, "native", "1.0", tags="cp311-cp311-manylinux_2_17_x86_64")
    with pytest.raises(StageError, match=r"native has no wheel for linux/arm64 and Python 3\.11"):
        resolve(tmp_path, "native", architecture="arm64")


def test_requirements_that_contradict_each_other_are_refused(tmp_path: Path, packages: Path) -> None:
    made.wheel(packages, "helper", "0.5")
    with pytest.raises(StageError, match="cannot be met for linux/amd64"):
        resolve(tmp_path, "wanted", "helper<1")


@pytest.mark.parametrize("line", ["./here", "-e .", "/tmp/x-1.0-py3-none-any.whl", "-r other.txt", "a b"])
def test_what_only_this_machine_has_is_refused(tmp_path: Path, packages: Path, line: str) -> None:
    with pytest.raises(StageError):
        resolve(tmp_path, line)


def test_an_index_that_does_not_answer_may_do_so_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("INDEX_URL", "http://127.0.0.1:9/"), ("RETRIES", "1"), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unavailable, match="no package index answers"):
        resolve(tmp_path, "wanted")


# unpacked


def unpack(path: Path, tmp_path: Path, *, compiled: bool = False) -> tarfile.TarFile:
    found = io.BytesIO()
    with contextlib.ExitStack() as stack:
        code = None
        if compiled:
            unpacked.compile_all([(path, tmp_path / "compiled.zip")], HERE, SITE)
            code = stack.enter_context(unpacked.opened(tmp_path / "compiled.zip"))
        file = stack.enter_context(unpacked.opened(path))
        layers.write(Sink(found), unpacked.entries(file, path.name, made.PYTHON, code))
    return tarfile.open(fileobj=io.BytesIO(found.getvalue()))


def test_every_part_of_a_wheel_has_its_place(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": b"def main(): return 0\n",
        "pkg-1.0.data/scripts/tool": b"#!python\nprint(1)\n",
        "pkg-1.0.data/scripts/shell": b"#!/bin/sh\n",
        "pkg-1.0.data/data/share/pkg/x": b"x",
        "pkg-1.0.data/purelib/other.py": b"",
        "pkg-1.0.data/headers/pkg.h": b"",
    }
    points = "[console_scripts]\npkg = pkg:main\nOther = pkg.sub : Class.call [extra]\n"
    with unpack(made.wheel(tmp_path, "pkg", files=files, entry_points=points), tmp_path) as tar:
        names = set(tar.getnames())
        assert {
            f"{SITE}/pkg/__init__.py",
            f"{SITE}/other.py",
            "opt/venv/share/pkg/x",
            "opt/venv/include/pkg.h",
        } <= names
        assert tar.extractfile("opt/venv/bin/tool").read() == b"#!/opt/venv/bin/python\nprint(1)\n"  # type: ignore[union-attr]
        assert tar.extractfile("opt/venv/bin/shell").read() == b"#!/bin/sh\n"  # type: ignore[union-attr]
        assert b"from pkg import main" in tar.extractfile("opt/venv/bin/pkg").read()  # type: ignore[union-attr]
        assert b"sys.exit(Class.call())" in tar.extractfile("opt/venv/bin/Other").read()  # type: ignore[union-attr]
        assert {tar.getmember(f"opt/venv/bin/{name}").mode for name in ("tool", "shell", "pkg", "Other")} == {0o755}


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "pkg-1.0.data/data/../../evil", "a\\b"])
def test_a_wheel_that_reaches_out_is_refused(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(StageError, match="lies outside of it"),
        unpack(made.wheel(tmp_path, "pkg", files={name: b""}), tmp_path),
    ):
        pass


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"nonsense")
    with pytest.raises(StageError, match="is no wheel"):
        unpacked.opened(tmp_path / "x.whl")


def test_compiled_files_are_used_without_a_look_at_their_sources(tmp_path: Path) -> None:
    files = {"pkg/__init__.py": b"X = {'a', 'b', 'c'}\n", "pkg/template.py": b"print 'for another Python'\n"}
    path = made.wheel(tmp_path, "pkg", files=files)
    with unpack(path, tmp_path, compiled=True) as tar:
        tar.extractall(tmp_path / "root", filter="data")
    package = tmp_path / "root" / SITE / "pkg"
    assert [path.name for path in (package / "__pycache__").iterdir()] == ["__init__.cpython-311.pyc"]
    (package / "__init__.py").write_text("X = 'the source was read'\n")
    command = [sys.executable, "-c", "import pkg; print(sorted(pkg.X))"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=package.parent)
    assert found.stdout == "['a', 'b', 'c']\n"


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = made.wheel(
        tmp_path, "pkg", files={"pkg.py": b"def f(x):\n    return x in {'a', 'b', 'c', 'd', 1, 2.5}\n" * 20}
    )
    for target in (tmp_path / "a", tmp_path / "b"):
        unpacked.compile_all([(path, target)], HERE, SITE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interpreter_that_fails_is_told_with_the_wheel(tmp_path: Path) -> None:
    path = made.wheel(tmp_path, "pkg")
    with pytest.raises(SystemFault, match=r"pkg-1\.0-py3-none-any\.whl could not be compiled"):
        unpacked.compile_all([(path, tmp_path / "a")], unpacked.Interpreter("/bin/false", "3.11.0"), SITE)


def test_the_python_that_runs_compiles_for_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert unpacked.interpreter(made.PYTHON) == HERE
    assert unpacked.interpreter("3.2") is None


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo /opt/bin/python3.2; echo 3.2.5", unpacked.Interpreter("/opt/bin/python3.2", "3.2.5")),
        ("echo 'pyenv: python3.2: command not found' >&2; exit 127", None),
        (f'exec {sys.executable} "$@"', None),
        ("echo hello", None),
    ],
    ids=["a shim", "a shim for nothing", "another Python", "no Python"],
)
def test_what_is_on_the_path_is_asked_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: unpacked.Interpreter | None
) -> None:
    (tmp_path / "python3.2").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python3.2").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unpacked.interpreter("3.2") == found


def test_the_list_of_wheels_is_a_lock_file(tmp_path: Path, packages: Path) -> None:
    found = Wheels(Store(tmp_path / "store")).resolve(Wanted(("wanted",), made.PYTHON, "amd64"))
    lines = locks.as_lock(found).splitlines()
    assert lines[0] == "helper==1.0 \\"
    assert resolve(tmp_path, "wanted", pins=locks.as_lock(found)) == {"wanted": "1.0", "helper": "1.0"}
