"""Damage, crashes, full disks and servers that go away: no artifact is ever half there, and no byte is ever wrong."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.objects import Objects
from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.objects.faults import fault_of
from drivetrain.backends.objects.s3 import open_s3
from drivetrain.errors import CorruptArtifact, SystemFault, Unavailable
from drivetrain.records import Artifact

OPEN = """
import sys
from pathlib import Path
def open_place(kind, *where):
    if kind == "directory":
        from drivetrain.backends.objects.directory import open_directory
        return open_directory(Path(where[0]))
    from drivetrain.backends.objects.s3 import open_s3
    return open_s3(*where)
"""

FIRST, SECOND = b"first" * 1000, b"second" * 1000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "a.bin").write_bytes(FIRST)
    (tmp_path / "tree" / "sub" / "b.bin").write_bytes(SECOND)
    return tmp_path / "tree"


def blob(data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"blobs/{digest[:2]}/{digest}"


def manifest(artifact: Artifact) -> str:
    return f"manifests/{artifact.digest[:2]}/{artifact.digest}"


def flip(place: Any, key: str) -> None:
    data = bytearray(place.read(key))
    data[len(data) // 2] ^= 1
    place.write(key, bytes(data))


def truncate(place: Any, key: str) -> None:
    place.write(key, place.read(key)[:-1])


def remove(place: Any, key: str) -> None:
    place.delete(key)


DAMAGES = [flip, truncate, remove]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_written(
    objects: Objects, place: Any, tree: Path, tmp_path: Path, damage: Callable[[Any, str], None]
) -> None:
    artifact = objects.put("snapshot", tree)
    damage(place, blob(SECOND))
    (tmp_path / "here").mkdir()
    with pytest.raises(CorruptArtifact) as caught:
        objects.get(artifact, tmp_path / "here" / "out")
    assert list((tmp_path / "here").iterdir()) == []
    message = str(caught.value)
    assert message.startswith(f"snapshot {artifact.digest[:12]} is damaged: file sub/b.bin ")
    assert hashlib.sha256(SECOND).hexdigest()[:12] in message
    assert "is gone" in message if damage is remove else "has the digest" in message
    assert caught.value.digest == artifact.digest
    assert caught.value.hint
    with pytest.raises(CorruptArtifact, match=r"sub/b\.bin"):
        objects.read(artifact, "sub/b.bin")
    assert objects.read(artifact, "a.bin") == FIRST


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_noticed_before_any_file(
    objects: Objects, place: Any, tree: Path, tmp_path: Path, damage: Callable[[Any, str], None]
) -> None:
    artifact = objects.put("snapshot", tree)
    damage(place, manifest(artifact))
    for verb in (objects.files, lambda it: objects.get(it, tmp_path / "out")):
        with pytest.raises(CorruptArtifact, match="its manifest"):
            verb(artifact)
    assert not objects.holds(artifact)
    assert not (tmp_path / "out").exists()


def test_what_has_another_size_or_is_gone_is_not_held(objects: Objects, place: Any, tree: Path) -> None:
    artifact = objects.put("snapshot", tree)
    assert objects.holds(artifact)
    truncate(place, blob(FIRST))
    assert not objects.holds(artifact)
    place.delete(blob(FIRST))
    assert not objects.holds(artifact)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("also_manifest", [False, True])
def test_after_discard_a_new_put_makes_it_whole_again(
    objects: Objects, place: Any, tree: Path, tmp_path: Path, damage: Callable[[Any, str], None], also_manifest: bool
) -> None:
    artifact = objects.put("snapshot", tree)
    damage(place, blob(FIRST))
    if also_manifest:
        place.write(manifest(artifact), place.read(manifest(artifact)) + b" ")
    objects.discard(artifact)
    assert place.keys() == [blob(SECOND)]
    objects.discard(artifact)
    assert objects.put("snapshot", tree) == artifact
    out = objects.get(artifact, tmp_path / "out")
    assert (out / "a.bin").read_bytes() == FIRST
    assert (out / "sub" / "b.bin").read_bytes() == SECOND


def test_discard_keeps_the_intact_files_that_others_share(objects: Objects, place: Any, tree: Path) -> None:
    artifact = objects.put("snapshot", tree)
    other = objects.put("other", tree / "sub")
    flip(place, blob(FIRST))
    objects.discard(artifact)
    assert not objects.holds(artifact)
    assert objects.holds(other)
    assert objects.read(other, "b.bin") == SECOND


PUT_WITHOUT_END = (
    OPEN
    + """
source, seed = Path(sys.argv[1]), int(sys.argv[2])
objects = open_place(*sys.argv[3:])
source.mkdir()
(source / "large").write_bytes(bytes(9_000_000))
for count in range(100_000):
    stamp = f"{seed} {count}".encode()
    (source / "small").write_bytes(stamp)
    with (source / "large").open("r+b") as file:
        file.write(stamp)
    objects.put("any", source)
    print(count, flush=True)
"""
)


def every_artifact(place: Any) -> Iterator[Artifact]:
    for key in place.keys("manifests"):
        yield Artifact("any", key.rpartition("/")[2], 0)


def test_a_process_killed_while_it_stores_leaves_no_half_artifact(
    objects: Objects, place: Any, tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    instants = random.Random(7)
    for seed in range(5):
        process = start_python(PUT_WITHOUT_END, str(tmp_path / f"source{seed}"), str(seed), *place.address)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(instants.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    stored = list(every_artifact(place))
    assert len(stored) >= 5
    for artifact in stored:
        assert objects.holds(artifact)
        out = objects.get(artifact, tmp_path / "out" / artifact.digest)
        assert sorted(path.name for path in out.iterdir()) == ["large", "small"]
    last = tmp_path / "source4"
    whole = objects.put("any", last)
    assert (objects.get(whole, tmp_path / "last") / "large").read_bytes() == (last / "large").read_bytes()


def test_eight_processes_that_store_the_same_tree_at_once_agree(
    objects: Objects, place: Any, tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(6):
        (tree / str(number)).write_bytes(random.Random(number).randbytes(50_000))
    (tree / "large").write_bytes(random.Random(9).randbytes(9_000_000))
    code = OPEN + (
        "import time\n"
        "objects = open_place(*sys.argv[3:])\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
        "from drivetrain.errors import Unavailable\n"
        "for failed in range(40):\n"
        "    try:\n"
        "        print(objects.put('any', Path(sys.argv[1])).digest, failed)\n"
        "        break\n"
        "    except Unavailable:\n"
        "        time.sleep(0.2)\n"
    )
    racers = [start_python(code, str(tree), str(tmp_path / "go"), *place.address) for _ in range(8)]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 8
    (tmp_path / "go").touch()
    answers = [racer.communicate(timeout=120) for racer in racers]
    assert [errors for _, errors in answers] == [""] * 8
    digests, failures = zip(*(output.split() for output, _ in answers), strict=True)
    assert len(set(digests)) == 1
    if place.name == "directory":  # the S3 server answers 500 to some of those who write one key at once
        assert set(failures) == {"0"}
        assert len(place.keys()) == 8
    artifact = Artifact("any", digests[0], 0)
    assert objects.holds(artifact)
    out = objects.get(artifact, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in tree.iterdir()
    }


def test_a_reference_read_while_it_is_written_is_never_torn(tmp_path: Path) -> None:
    # In a directory only: rclone's S3 server takes the old object away before it puts the new one there, as others do not.
    objects = open_directory(tmp_path / "objects")
    values = [bytes([number]) * 4000 for number in range(4)]
    objects.set_ref("champion/m", values[0])
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            for value in values:
                objects.set_ref("champion/m", value)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen: list[bytes | None] = []
    deadline = time.monotonic() + 60
    while (len(seen) < 200 or not {*values} <= {*seen}) and time.monotonic() < deadline:
        seen.append(objects.ref("champion/m"))
    enough.set()
    for thread in threads:
        thread.join()
    assert {*seen} == {*values}
    assert objects.ref("champion/m") == values[-1]


def test_a_forked_process_is_told_so_rather_than_left_waiting(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = OPEN + (
        "import os\n"
        "objects = open_place('directory', sys.argv[1])\n"
        "objects.set_ref('a', b'1')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        objects.ref('a')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error, error.hint, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    output, errors = start_python(code, str(tmp_path / "objects")).communicate(timeout=60)
    assert errors == ""
    assert output.startswith("SystemFault reading the reference a in ")
    assert "is not possible in a forked process" in output
    assert "spawn" in output


# A directory that cannot be used


def test_a_directory_below_a_file_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "objects"):
        with pytest.raises(SystemFault) as caught:
            open_directory(root)
        assert str(root) in str(caught.value)
        assert "stands" in caught.value.hint


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of 1 MB, and mounts it again with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
        return disk

    try:
        yield mount
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    finally:
        if os.path.ismount(disk):
            subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_leaves_no_artifact(tiny_disk: Any, tmp_path: Path) -> None:
    disk = tiny_disk("size=1m")
    objects = open_directory(disk / "objects")
    small = tmp_path / "small"
    small.write_bytes(b"1" * 10_000)
    kept = objects.put("any", small)
    for size in (3_000_000, 12_000_000):
        (tmp_path / "large").write_bytes(os.urandom(size))
        with pytest.raises(SystemFault, match=r"storing model .*No space left on device") as caught:
            objects.put("model", tmp_path / "large")
        assert "free some space" in caught.value.hint
        assert not isinstance(caught.value, Unavailable)
    assert list((disk / "objects" / "manifests").rglob("*/*")) == [Path(objects.uri(kept).removeprefix("file://"))]
    assert objects.put("any", small) == kept
    assert objects.holds(kept)


def test_a_full_disk_at_the_destination_leaves_nothing_there(tiny_disk: Any, tmp_path: Path) -> None:
    disk = tiny_disk("size=1m")
    objects = open_directory(tmp_path / "objects")
    (tmp_path / "large").write_bytes(os.urandom(3_000_000))
    artifact = objects.put("model", tmp_path / "large")
    with pytest.raises(SystemFault, match=r"reading model .*No space left on device"):
        objects.get(artifact, disk / "out")
    assert list(disk.iterdir()) == []


def test_a_read_only_directory_can_be_read_and_says_why_it_is_not_written(
    tiny_disk: Any, tree: Path, tmp_path: Path
) -> None:
    disk = tiny_disk("size=1m")
    artifact = open_directory(disk / "objects").put("any", tree)
    tiny_disk("remount,ro")
    objects = open_directory(disk / "objects")
    assert objects.holds(artifact)
    assert objects.put("any", tree) == artifact
    (tree / "new").write_bytes(b"new")
    for verb in (
        lambda: objects.put("any", tree),
        lambda: objects.set_ref("a", b"1"),
        lambda: objects.discard(artifact),
    ):
        with pytest.raises(SystemFault, match="Read-only file system") as caught:
            verb()
        assert "read-only" in caught.value.hint
    assert objects.holds(artifact)


def test_a_directory_without_permission_says_so(tmp_path: Path) -> None:
    root = tmp_path / "objects"
    objects = open_directory(root)
    if os.getuid() != 0:
        lock, unlock = ["chmod", "a-w", str(root)], ["chmod", "u+w", str(root)]
    else:
        lock, unlock = ["chattr", "+i", str(root)], ["chattr", "-i", str(root)]
    try:
        locked = subprocess.run(lock, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        locked = False
    if not locked:
        pytest.skip("this file system cannot take a right away from root")
    try:
        with pytest.raises(SystemFault, match=r"[Pp]ermi") as caught:
            objects.set_ref("a", b"1")
        assert "permissions" in caught.value.hint
    finally:
        subprocess.run(unlock, check=True)


def test_a_limit_on_file_sizes_is_said_and_leaves_nothing(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(10_000_000))
    (tmp_path / "medium").write_bytes(os.urandom(2_000_000))
    stored = open_directory(tmp_path / "objects").put("any", tmp_path / "medium")
    code = OPEN + (
        "import resource, signal\n"
        "from drivetrain.errors import SystemFault\n"
        "from drivetrain.records import Artifact\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "root, new = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "stored = Artifact('any', sys.argv[3], 0)\n"
        "objects = open_place('directory', root)\n"
        "other = open_place('directory', new)\n"
        "verbs = [lambda: other.put('any', root.parent / 'large'), lambda: other.put('any', root.parent / 'medium'),\n"
        "    lambda: objects.get(stored, new / 'out')]\n"
        "for verb in verbs:\n"
        "    try:\n"
        "        verb()\n"
        "    except SystemFault as error:\n"
        "        print('File too large' in str(error), 'ulimit' in error.hint)\n"
    )
    process = start_python(code, str(tmp_path / "objects"), str(tmp_path / "new"), stored.digest)
    output, errors = process.communicate(timeout=30)
    assert (output, errors) == ("True True\n" * 3, "")
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file() and "#" not in path.name] == []
    assert not (tmp_path / "new" / "out").exists()


# A server that cannot be used


def test_a_stopped_server_is_unavailable(own_s3_server: Any, s3_credentials: None, tree: Path, tmp_path: Path) -> None:
    objects = open_s3("s3://objects/p", own_s3_server.endpoint)
    artifact = objects.put("model", tree)
    own_s3_server.stop()
    verbs: list[Callable[[], object]] = [
        lambda: objects.put("model", tree),
        lambda: objects.get(artifact, tmp_path / "out"),
        lambda: objects.read(artifact, "a.bin"),
        lambda: objects.holds(artifact),
        lambda: objects.discard(artifact),
        lambda: objects.ref("a"),
        lambda: objects.set_ref("a", b"1"),
        lambda: objects.refs("a"),
    ]
    for verb in verbs:
        with pytest.raises(Unavailable, match="does not answer") as caught:
            verb()
        assert "s3_endpoint" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_server_that_dies_during_a_get_leaves_nothing(
    own_s3_server: Any, s3_credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_s3("s3://objects", own_s3_server.endpoint)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(120_000_000)
    artifact = objects.put("model", tmp_path / "large")
    pieces: Callable[[str], Iterable[bytes]] = objects._pieces  # type: ignore[attr-defined]
    got: list[int] = []

    def cut_off(key: str) -> Iterator[bytes]:
        for piece in pieces(key):
            if not got:
                own_s3_server.stop()
            got.append(len(piece))
            yield piece

    monkeypatch.setattr(objects, "_pieces", cut_off)
    with pytest.raises(Unavailable):
        objects.get(artifact, tmp_path / "here" / "out")
    assert 0 < sum(got) < 120_000_000
    assert list((tmp_path / "here").iterdir()) == []


def test_a_wrong_secret_is_refused_and_not_repeated(
    s3_server: Any, s3_credentials: None, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2-token")
    objects = open_s3("s3://objects", s3_server.endpoint)
    for verb in (lambda: objects.ref("a"), lambda: objects.put("model", tree), lambda: objects.refs("")):
        with pytest.raises(SystemFault, match="refused the credentials") as caught:
            verb()
        assert not isinstance(caught.value, Unavailable)
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + repr(objects)


def test_a_bucket_that_is_not_there_is_said(s3_server: Any, s3_credentials: None, tree: Path) -> None:
    objects = open_s3("s3://no-such-bucket/p", s3_server.endpoint)
    artifact = Artifact("any", "ab" * 32, 1)
    for verb in (
        lambda: objects.put("model", tree),
        lambda: objects.set_ref("a", b"1"),
        lambda: objects.ref("a"),
        lambda: objects.files(artifact),
        lambda: objects.holds(artifact),
        lambda: objects.refs(""),
    ):
        with pytest.raises(SystemFault, match="there is no such bucket") as caught:
            verb()
        assert not isinstance(caught.value, CorruptArtifact | Unavailable)


def test_a_server_that_takes_no_connection_is_given_up_within_seconds(s3_credentials: None) -> None:
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for waiting in (first, second):  # the queue is full now: further connections get no answer
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        objects = open_s3("s3://objects", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(Unavailable):
            objects.ref("a")
        assert 2 < time.monotonic() - start < 25  # without the limits of its own it would be minutes


ANSWERS = [
    ("503 Service Unavailable: <Error><Code>SlowDown</Code></Error>", Unavailable, "503 SlowDown"),
    ("500 Internal Server Error: ", Unavailable, "500"),
    ("429 Too Many Requests: ", Unavailable, "429"),
    ("507 Insufficient Storage: <Error><Code>XMinioStorageFull</Code></Error>", SystemFault, "is full"),
    ("400 Bad Request: <Error><Code>ExpiredToken</Code><Token-0>hunter2</Token-0></Error>", SystemFault, "credentials"),
    ("403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>", SystemFault, "clock"),
    ("400 Bad Request: <Error><Code>AuthorizationHeaderMalformed</Code></Error>", SystemFault, "another region"),
    ("301 Moved Permanently: <Error><Code>PermanentRedirect</Code></Error>", SystemFault, "another region"),
    ("405 Method Not Allowed: hunter2", SystemFault, "405"),
]


@pytest.mark.parametrize(("answer", "kind", "said"), ANSWERS)
def test_the_answer_of_a_server_decides_whether_to_try_again(
    s3_credentials: None, answer: str, kind: type[SystemFault], said: str
) -> None:
    status, _, body = answer.partition(": ")
    reply = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        objects = open_s3("s3://objects", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(SystemFault, match=said) as caught:
            objects.ref("a")
        server.shutdown(socket.SHUT_RDWR)
    assert type(caught.value) is kind
    assert caught.value.hint
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_missing_credentials_are_said(s3_credentials: None) -> None:
    fault = fault_of(OSError("Error performing PUT http://169.254.169.254/latest/api/token in 3s"), "reading x")
    assert "no credentials for S3" in str(fault)
    assert "AWS_ACCESS_KEY_ID" in fault.hint
