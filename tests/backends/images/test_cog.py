"""cog.yaml, read as Cog reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.backends.images import cog
from drivetrain.errors import StageError


def read(folder: Path, text: str, requirements: str = "") -> cog.CogFile:
    (folder / "cog.yaml").write_text(text, encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    return cog.read(folder)


def test_every_key_that_concerns_an_image_is_read(tmp_path: Path) -> None:
    text = """
build:
  gpu: true
  cuda: "12.6"
  python_version: 3.11.4
  python_requirements: requirements.txt
  system_packages: [libgomp1, ffmpeg]
  pre_install: ["echo before"]
  run:
    - echo one
    - command: echo two
      mounts: []
environment: [A=1, "B=x=y"]
concurrency: {max: 4}
run: "run.py:Runner"
"""
    found = read(tmp_path, text, "numpy==2.0  # fast\n\n# all\npandas>=2 \\\n  ,<3\n")
    assert (found.runner, found.python, found.gpu, found.cuda) == ("run.py:Runner", "3.11", True, "12.6")
    assert found.requirements == ("numpy==2.0", "pandas>=2    ,<3")
    assert found.system_packages == ("libgomp1", "ffmpeg")
    assert (found.pre_install, found.commands) == (("echo before",), ("echo one", "echo two"))
    assert (found.environment, found.concurrency) == ({"A": "1", "B": "x=y"}, 4)


def test_a_version_is_no_number(tmp_path: Path) -> None:
    assert read(tmp_path, "build:\n  python_version: 3.10\n").python == "3.10"


def test_the_old_keys_still_count(tmp_path: Path) -> None:
    found = read(tmp_path, 'build:\n  python_packages: ["numpy==2.0"]\npredict: "p.py:P"\n')
    assert (found.runner, found.requirements) == ("p.py:P", ("numpy==2.0",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("build: {pyhton_version: 3.11}", "build.pyhton_version is no key"),
        ("buidl: {}", "buidl is no key"),
        ("build: [1]", "build is not a mapping"),
        ("build: {python_version: '2.7'}", "is 2.7; Cog takes 3.10"),
        ("build: {gpu: maybe}", "build.gpu is neither"),
        ("build: {system_packages: vim}", "build.system_packages is not a list"),
        ("build: {python_requirements: ../../etc/passwd}", "lies outside of the project"),
        ("build: {python_requirements: /etc/passwd}", "lies outside of the project"),
        ("build: {python_requirements: none.txt}", "cannot be read"),
        ("build: {python_requirements: requirements.txt, python_packages: [a]}", "exclude each other"),
        ("build: {run: [{command: a, mounts: [{type: secret, id: pip, target: /x}]}]}", "secret mounts are not supp"),
        ("build: {run: [{command: a, user: root}]}", "build.run.user is no key"),
        ("build: {run: [{mounts: []}]}", "build.run is not a text"),
        ("environment: [A]", "not of the form NAME=VALUE"),
        ("concurrency: {max: 0}", "no whole number above zero"),
        ("a: [", "no YAML"),
        ("- 1", "the file is not a mapping"),
    ],
)
def test_what_cog_would_refuse_is_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        read(tmp_path, text)


def test_a_bundle_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"there is no cog\.yaml"):
        cog.read(tmp_path)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
KEYS = sorted({*cog._KEYS, *cog._BUILD})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=4))
def test_any_document_is_read_or_refused(tmp_path: Path, document: dict[str, object]) -> None:
    try:
        found = read(tmp_path, json.dumps(document))
    except StageError:
        return
    assert found.python in cog._PYTHONS
