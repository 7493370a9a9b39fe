"""Layers: bytes that follow from the contents alone."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.images import layers
from drivetrain.backends.images.layers import Entry, content
from drivetrain.backends.images.store import Sink, Store
from drivetrain.errors import StageError

PART = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120
)
NAME = st.lists(PART.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map("/".join)


def written(entries: list[Entry]) -> bytes:
    found = io.BytesIO()
    layers.write(Sink(found), entries)
    return found.getvalue()


@given(st.dictionaries(NAME, st.binary(max_size=2000), max_size=8), st.randoms())
def test_what_is_written_is_read_back_and_its_order_changes_nothing(files: dict[str, bytes], random: object) -> None:
    names = set(files)
    files = {n: d for n, d in files.items() if not any(str(p) in names for p in PurePosixPath(n).parents)}
    entries = [content(name, data) for name, data in files.items()]
    first = written(entries)
    random.shuffle(entries)  # type: ignore[attr-defined]
    assert written(entries) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]
        owners = {(info.uid, info.gid, info.uname, info.gname, info.mtime) for info in tar}
    assert found == files
    assert owners <= {(0, 0, "", "", layers.WHEN)}


@given(st.lists(st.sampled_from(["..", ".", "a", "", "b/../..", "/etc"]), min_size=1, max_size=5).map("/".join))
def test_no_name_leads_out_of_the_root(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        with pytest.raises(StageError, match="outside of the image's root"):
            written([content(name, b"")])
    else:
        written([content(name, b"")])


def test_times_and_umask_do_not_count_but_the_execute_bit_does(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_text("#!/bin/sh\n")
    first = written(list(layers.tree(tmp_path, "src")))
    os.utime(path, (1, 1))
    path.chmod(0o600)
    assert written(list(layers.tree(tmp_path, "src"))) == first
    path.chmod(0o755)
    assert written(list(layers.tree(tmp_path, "src"))) != first


def test_a_link_within_stays_one_and_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "project"
    (inside / "deep").mkdir(parents=True)
    (inside / "data").write_text("1")
    (inside / "deep" / "link").symlink_to(inside / "data")
    with tarfile.open(fileobj=io.BytesIO(written(list(layers.tree(inside, "src"))))) as tar:
        assert tar.getmember("src/deep/link").linkname == "../data"
    (tmp_path / "secret").write_text("2")
    (inside / "deep" / "link").unlink()
    (inside / "deep" / "link").symlink_to("../../secret")
    with pytest.raises(StageError, match="lies outside of what the image is made of"):
        list(layers.tree(inside, "src"))


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind(str(tmp_path / "s"))
        with pytest.raises(StageError, match="neither a file nor a directory"):
            list(layers.tree(tmp_path, "src"))


def test_a_name_cannot_be_a_file_and_a_directory() -> None:
    with pytest.raises(StageError, match="both a file and a directory"):
        written([content("a", b""), content("a/b", b"")])


@pytest.mark.parametrize("size", [3, 9])
def test_a_file_that_changes_while_it_is_read_is_refused(size: int) -> None:
    with pytest.raises(StageError, match="while it was read"):
        written([Entry("a", 6, lambda: io.BytesIO(b"x" * size))])


def test_gnu_tar_reads_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(written([content(f"{'long/' * 40}n\N{SNOWMAN}me", b"x" * 70_000)]))
    subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "t.tar"], check=True)
    assert (tmp_path / ("long/" * 40) / "n\N{SNOWMAN}me").stat().st_size == 70_000


def test_a_full_disk_leaves_nothing_that_looks_like_a_blob(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fill(sink: Sink) -> None:
        sink.write(b"x" * 100)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.write("any", fill)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_remembered_layer_whose_blob_was_cut_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.layer("code", ["x"], lambda sink: layers.write(sink, [content("a", b"1")]))
    path = store.path(first.blob.digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    assert store.layer("code", ["x"], lambda sink: layers.write(sink, [content("a", b"1")])) == first
    assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == first.blob.digest


@pytest.mark.slow
def test_two_gigabytes_of_weights_take_little_memory(tmp_path: Path) -> None:

    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "w").open("wb") as file:
        file.truncate(2 * 2**30)
    code = (
        "import sys; from pathlib import Path; from tests.memory import peak\n"
        "from drivetrain.backends.images.contents import Contents; from drivetrain.backends.images.store import Store\n"
        "print(Contents(Store(Path(sys.argv[1]) / 's'), '3.11').weights(Path(sys.argv[1]), '').blob.size)\n"
        "print(peak())\n"
    )
    began = time.monotonic()
    words = [sys.executable, "-c", code, tmp_path]
    found = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    size, peak = map(int, found.stdout.split())
    print(f"{size / 2**20 / (time.monotonic() - began):.0f} MiB/s, peak {peak / 2**20:.0f} MiB")
    assert size > 2 * 2**30
    assert peak < 200 * 2**20
