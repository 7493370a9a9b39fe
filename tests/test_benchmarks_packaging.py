"""The packaging benchmarks' own parts: what is changed from case to case, and what counts as a median."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.packaging import naive, world
from benchmarks.packaging.judged import CASES, Samples
from benchmarks.packaging.world import Registry, World
from tests.backends.images import made


@pytest.fixture
def small(tmp_path: Path) -> World:
    (tmp_path / "wheels").mkdir()
    made.wheel(tmp_path / "wheels", "cog", "0.23.1")
    return World(tmp_path, tmp_path / "base", tmp_path / "wheels", made.bundle(tmp_path / "bundle"), {})


def test_weights_are_the_same_for_a_seed_and_others_for_another(small: World, tmp_path: Path) -> None:
    one = world.model(small, tmp_path / "one", 1, 3_000_000)
    first = (one / "model" / "weights.bin").read_bytes()
    assert len(first) == 3_000_000
    assert world.weights(one, 1, 3_000_000).read_bytes() == first
    assert world.weights(one, 2, 3_000_000).read_bytes() != first


def test_a_change_of_code_and_a_new_dependency_are_in_the_bundle(small: World, tmp_path: Path) -> None:
    place = world.model(small, tmp_path / "one", 1, 10)
    before = (place / "run.py").read_text()
    world.change_code(place, 7)
    assert (place / "run.py").read_text() == f"{before}\n# change 7\n"
    known = world.requirements(place)
    world.add_dependency(place)
    assert [*known, world.NEW] == list(world.requirements(place))


def test_the_dockerfile_is_written_once_so_that_it_is_no_change(small: World, tmp_path: Path) -> None:
    place = world.model(small, tmp_path / "one", 1, 10)
    buildah = naive.Buildah(small, tmp_path / "buildah")
    buildah.describe(place, "localhost:5000/base:1")
    assert (place / "packages.txt").read_text().splitlines()[-1] == "cog==0.23.1"
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    buildah.describe(place, "localhost:5000/base:1")
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    world.add_dependency(place)
    buildah.describe(place, "localhost:5000/base:1")
    assert world.NEW in (place / "packages.txt").read_text()


def test_four_medians_are_added_and_bytes_are_those_of_all_blobs(tmp_path: Path) -> None:
    samples = Samples()
    for number, case in enumerate(CASES, 1):
        samples.seconds[case] += [number, number + 10.0, number + 1.0]
        samples.moved[case] += [1_000_000]
    assert samples.together == 14.0
    assert samples.measurements("x")[1].median == 1.0
    place = tmp_path / "docker/registry/v2/blobs/sha256/ab/abcd"
    place.mkdir(parents=True)
    (place / "data").write_bytes(b"12345")
    assert Registry(tmp_path, "localhost:1").bytes() == 5
