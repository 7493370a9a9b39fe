"""Lines that are cut, registries that go down or fill up, bytes that were changed: never half an image behind a tag."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.backends.images import LAYER, Blob, Image, uploads
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.errors import CorruptArtifact, SystemFault, Unavailable
from tests.backends.images.keeping import KeepingProxy
from tests.backends.images.registries import Line, RegistryServer
from tests.backends.images.test_registry import blob, image

MIB = 1 << 20
LARGE = random.Random(4).randbytes(12 * MIB)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path / "registry" / "data")
    yield found
    found.kill()


@pytest.fixture
def registry() -> OciRegistry:
    return open_registry()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob of a few megabytes takes several requests, and a test of a broken registry a second."""
    monkeypatch.setattr(uploads, "CHUNK", 4 * MIB)
    monkeypatch.setattr(uploads, "WAITS", (0.05, 0.2, 0.5))


@contextlib.contextmanager
def cut_line(server: RegistryServer | KeepingProxy, after: int, cuts: int = 1) -> Iterator[Line]:
    line = Line(server.port, after, cuts)
    yield line
    line.close()


def whole(registry: OciRegistry, ref: str, made: Image, folder: Path) -> bool:
    assert registry.resolve(ref) == made.digest
    return all(
        registry.blob(ref, each.digest, folder / "pulled").read_bytes() == each.path.read_bytes() for each in made.blobs
    )


def test_a_line_that_is_cut_in_the_middle_of_a_blob_costs_that_blob_alone(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    small = [random.Random(seed).randbytes(MIB) for seed in range(3)]
    registry.push(image(tmp_path, *small), f"{server.host}/before:1")
    made = image(tmp_path, *small, LARGE)
    with cut_line(server, 6 * MIB) as line:
        pushed = registry.push(made, f"{line.host}/a:1", mount_from=[f"{line.host}/before"])
        assert line.cuts_left == 0
    assert whole(registry, f"{server.host}/a:1", made, tmp_path)
    # This registry forgets an upload of which a request broke off: what had come of it is sent once more, and nothing else.
    assert len(LARGE) < pushed.bytes_sent < len(LARGE) + 2 * uploads.CHUNK + MIB // 10


def test_a_registry_that_keeps_what_arrived_gets_the_rest_alone(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, LARGE)
    proxy = KeepingProxy(server.port)
    with cut_line(proxy, 7 * MIB) as line:
        registry.push(made, f"{line.host}/a:1")
        assert line.cuts_left == 0
        assert line.sent < len(LARGE) + MIB // 4
    proxy.close()
    assert proxy.resumed == 1
    assert whole(registry, f"{server.host}/a:1", made, tmp_path)


def test_a_registry_that_is_started_again_in_the_middle_gets_the_image(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WAITS", (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0))  # as long as it takes to start
    made = image(tmp_path, LARGE, b"code")
    count, killed = uploads._Upload._count, threading.Event()

    def kill_in_the_middle(upload: uploads._Upload, sent: int) -> None:
        count(upload, sent)
        if upload._sent > 5 * MIB and not killed.is_set():
            server.kill()
            killed.set()

    def restart() -> None:
        if killed.wait(60):
            time.sleep(0.2)
            server.start()

    monkeypatch.setattr(uploads._Upload, "_count", kill_in_the_middle)
    thread = threading.Thread(target=restart)
    thread.start()
    registry.push(made, f"{server.host}/a:1")
    assert killed.is_set()
    thread.join()
    assert whole(registry, f"{server.host}/a:1", made, tmp_path)


def test_a_line_that_breaks_again_and_again_ends_in_one_error_and_no_tag(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    with cut_line(server, 3 * MIB, cuts=100) as line, pytest.raises(Unavailable, match="does not answer"):
        registry.push(image(tmp_path, LARGE), f"{line.host}/a:1")
    assert server.tags("a") == []


def test_a_registry_that_is_not_there_is_unavailable(registry: OciRegistry, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"localhost:9 does not answer: .*refused"):
        registry.push(image(tmp_path, b"x"), "localhost:9/a:1")


def test_a_push_that_is_killed_has_published_nothing_and_the_next_sends_what_lacks(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from drivetrain.backends.images import uploads\n"
        "from drivetrain.backends.images.registry import open_registry\n"
        "from tests.backends.images import test_registry as made\n"
        "left, count = [20_000_000], uploads._Upload._count\n"
        "def killed_half_way(upload, sent):\n"
        "    count(upload, sent)\n"
        "    left[0] -= sent\n"
        "    if left[0] < 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "uploads._Upload._count = killed_half_way\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "layers = [bytes([number]) * 2_000_000 for number in range(20)]\n"
        "image = made.image(folder, *layers)\n"
        "open_registry().push(image, sys.argv[1])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    root = Path(__file__).parents[3]
    words = [sys.executable, "-c", code, f"{server.host}/a:1", str(tmp_path)]
    assert subprocess.run(words, env=environment, cwd=root, check=False).returncode == -signal.SIGKILL
    assert server.tags("a") == []
    there = len(server.blobs())
    assert there >= 3
    made = image(tmp_path, *(bytes([number]) * 2_000_000 for number in range(20)))
    pushed = registry.push(made, f"{server.host}/a:1")
    assert pushed.bytes_sent < (20 - there + 1) * 2_000_000 + 4_000
    assert whole(registry, f"{server.host}/a:1", made, tmp_path)


def test_a_full_disk_of_the_registry_is_said_to_be_one(registry: OciRegistry, tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        server = RegistryServer(mounted / "data")
        try:
            before = image(tmp_path, b"fits")
            registry.push(before, f"{server.host}/a:1")
            with pytest.raises(SystemFault, match="no space left") as full:
                registry.push(image(tmp_path, LARGE), f"{server.host}/a:1")
            assert not isinstance(full.value, Unavailable)
            assert registry.resolve(f"{server.host}/a:1") == before.digest
        finally:
            server.kill()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_here_leaves_no_part_of_a_blob(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, LARGE)
    registry.push(made, f"{server.host}/a:1")
    (tmp_path / "pulled").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, before[1]))
    try:
        with pytest.raises(SystemFault, match="cannot be written"):
            registry.blob(f"{server.host}/a:1", made.layers[0].digest, tmp_path / "pulled" / "layer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "pulled").iterdir()) == []


def test_a_download_that_is_cut_goes_on_where_it_was(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, LARGE)
    registry.push(made, f"{server.host}/a:1")
    with cut_line(server, 1 << 30) as line:
        line.cut_answers(5 * MIB)
        found = registry.blob(f"{line.host}/a:1", made.layers[0].digest, tmp_path / "pulled")
        assert line.received < len(LARGE) + MIB
    assert found.read_bytes() == LARGE


def test_a_layer_changed_in_the_registry_is_refused_with_its_digest(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"layer" * 1000)
    registry.push(made, f"{server.host}/a:1")
    server.data(made.layers[0].digest).write_bytes(b"other" * 1000)
    with pytest.raises(CorruptArtifact, match=made.layers[0].digest):
        registry.blob(f"{server.host}/a:1", made.layers[0].digest, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_manifest_changed_in_the_registry_is_refused_with_its_digest(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"layer" * 1000)
    registry.push(made, f"{server.host}/a:1")
    server.data(made.digest).write_bytes(made.manifest.replace(b'"size"', b' "size"'))
    # Docker's registry looks itself; what it says is not for a retry to change.
    with pytest.raises(SystemFault, match=made.digest):
        registry.manifest(f"{server.host}/a@{made.digest}")


def test_a_file_that_is_not_what_its_digest_says_is_not_published(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"layer" * 1000)
    assert made.layers[0].path is not None
    made.layers[0].path.write_bytes(b"other" * 1000)
    with pytest.raises(CorruptArtifact, match="is not what its digest says"):
        registry.push(made, f"{server.host}/a:1")
    assert server.tags("a") == []
    assert made.layers[0].digest not in server.blobs()


def test_a_file_that_became_shorter_is_not_published(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, LARGE)
    assert made.layers[0].path is not None
    os.truncate(made.layers[0].path, 6 * MIB)
    with pytest.raises(CorruptArtifact, match="is shorter"):
        registry.push(made, f"{server.host}/a:1")
    assert server.tags("a") == []


@pytest.mark.slow
def test_a_blob_of_a_gigabyte_is_sent_in_little_memory(server: RegistryServer, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from drivetrain.backends.images import Blob, LAYER\n"
        "from drivetrain.backends.images.registry import open_registry\n"
        "from tests.backends.images import test_registry as made\n"
        "from tests.memory import peak\n"
        "path = Path(sys.argv[2])\n"
        "large = Blob(sys.argv[3], path.stat().st_size, LAYER, path)\n"
        "small = made.image(path.parent, b'x')\n"
        "image = made.of(small.config, [large])\n"
        "before = peak()\n"
        "open_registry().push(image, sys.argv[1])\n"
        "print(peak() - before)\n"
    )
    path = tmp_path / "large"
    path.write_bytes(b"")
    os.truncate(path, 1 << 30)
    told = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True).stdout.split()[0]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code, f"{server.host}/a:1", str(path), f"sha256:{told}"],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40 << 20


def test_the_digest_of_an_empty_blob_goes_through(
    server: RegistryServer, registry: OciRegistry, tmp_path: Path
) -> None:
    made = image(tmp_path, b"")
    registry.push(made, f"{server.host}/a:1")
    assert registry.blob(f"{server.host}/a:1", blob(tmp_path, b"").digest, tmp_path / "pulled").read_bytes() == b""
    assert isinstance(made.layers[0], Blob)
    assert made.layers[0].media_type == LAYER
