"""The packaging benchmarks' own parts: what is changed from case to case, and what counts as a median."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.packaging import naive, pictures, scratch, world
from benchmarks.packaging.containers import Storage
from benchmarks.packaging.publish import CASES, Race, Samples
from benchmarks.packaging.registries import Registry
from benchmarks.packaging.world import World
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
    buildah = naive.Buildah(small, Storage(tmp_path / "buildah", {}))
    buildah.describe(place, "localhost:5000/base:1")
    assert (place / "packages.txt").read_text().splitlines()[-1] == "cog==0.23.1"
    assert "COG_PREDICT_TYPE_STUB=run.py:Runner" in (place / "Dockerfile").read_text()
    assert "model" in (place / ".dockerignore").read_text().splitlines()
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


def race(mine: float, naive: float, pushed: float) -> Race:
    found = Race(pushes=[pushed], raw=[1.0], attached=[1000])
    for samples, seconds in ((found.mine, mine), (found.naive, naive)):
        for case in CASES:
            samples.seconds[case].append(seconds)
            samples.moved[case].append(500_000)
    return found


def test_targets_hold_at_their_bounds_and_miss_beyond_them() -> None:
    held = race(1.5, 2.6, 1.3).findings()
    assert [target.verdict for target in held.targets] == ["holds", "holds", "holds", "holds"]
    missed = race(2.1, 3.0, 1.4).findings()
    assert [target.verdict for target in missed.targets] == ["misses", "misses", "holds", "misses"]
    assert any("30% less" in note for note in missed.notes)


def test_the_picture_shows_both_entrants(tmp_path: Path) -> None:
    pictures.published(tmp_path / "images" / "x.png", race(1.5, 2.6, 1.3).findings().measurements, CASES)
    assert (tmp_path / "images" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_runs_on_and_nothing_lies_about_after_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), scratch.room() as place:  # noqa: PT012
        (place / "folder").mkdir()
        started = subprocess.Popen(["sleep", "60"], start_new_session=True)
        raise KeyboardInterrupt
    assert not psutil.pid_exists(started.pid)
    started.wait(0)
    assert not place.exists()


def test_a_command_that_is_waited_for_no_longer_is_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    communicate = subprocess.Popen.communicate

    def interrupted(process: subprocess.Popen[str], **options: Any) -> tuple[str, str]:
        """The first time, once the script has set its trap."""
        if not options:
            deadline = time.monotonic() + 60
            while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        return communicate(process, **options)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    before = signal.signal(signal.SIGALRM, interrupt)
    script = f"trap 'touch {tmp_path}/cleaned; exit' TERM; touch {tmp_path}/runs; while true; do sleep 0.05; done"
    try:
        with pytest.raises(KeyboardInterrupt):
            scratch.run(["sh", "-c", script])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "cleaned").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_what_is_mounted_in_a_room_is_not_emptied_with_it(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with scratch.room() as place:
        (place / "seen").mkdir()
        mounted = subprocess.run(["mount", "--bind", str(tmp_path / "kept"), str(place / "seen")], check=False)
        if mounted.returncode:
            pytest.skip("nothing can be mounted here")
        assert (place / "seen" / "file").exists()
    assert not place.exists()
    assert (tmp_path / "kept" / "file").exists()
