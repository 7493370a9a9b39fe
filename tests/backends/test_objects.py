"""What every object store promises, on a directory and on a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.backends.objects import Objects, content
from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.objects.manifest import Content, Manifest, decode, hash_file
from drivetrain.backends.objects.s3 import open_s3, versions
from drivetrain.errors import CorruptArtifact, DataError, SystemFault, UsageError
from drivetrain.records import Artifact


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


TREE = {
    "rows.parquet": b"PAR1" + bytes(range(256)) * 20,
    "tables/weather/2013-01.parquet": b"weather",
    "tables/weather/2013-02.parquet": b"",
    "tables/same as rows": b"PAR1" + bytes(range(256)) * 20,
    "ünïcode/ñame #1 100%~.txt": "grüße".encode(),
    ".hidden": b"\x00",
}


def test_a_tree_comes_back_byte_for_byte(objects: Objects, tmp_path: Path) -> None:
    artifact = objects.put("snapshot", write_tree(tmp_path / "tree", TREE), {"rows": 3})
    assert artifact.kind == "snapshot"
    assert artifact.size == sum(len(data) for data in TREE.values())
    assert artifact.metadata == {"rows": 3}
    assert objects.get(artifact, tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert read_tree(tmp_path / "new" / "out") == TREE
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_single_file_comes_back_under_its_own_name(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"{}")
    artifact = objects.put("report", tmp_path / "report.json")
    assert objects.files(artifact) == {"report.json": 2}
    assert read_tree(objects.get(artifact, tmp_path / "out")) == {"report.json": b"{}"}
    tree = write_tree(tmp_path / "tree", {"report.json": b"{}"})
    assert objects.put("report", tree).digest == artifact.digest


def test_a_file_of_several_parts_comes_back(objects: Objects, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(21_000_001)
    (tmp_path / "large").write_bytes(data)
    artifact = objects.put("model", tmp_path / "large")
    assert (objects.get(artifact, tmp_path / "out") / "large").read_bytes() == data
    assert objects.read(artifact, "large") == data


def test_the_digest_is_that_of_the_canonical_manifest(objects: Objects, tmp_path: Path) -> None:
    artifact = objects.put("any", write_tree(tmp_path / "tree", {"b": b"2", "a/c": b"1"}))
    one, two = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    manifest = f'{{"files":{{"a/c":["{one}",1],"b":["{two}",1]}}}}'.encode()
    assert artifact.digest == hashlib.sha256(manifest).hexdigest()


def test_objects_lie_where_the_layout_says(objects: Objects, place: Any, tmp_path: Path) -> None:
    artifact = objects.put("any", write_tree(tmp_path / "tree", {"a": b"1"}))
    objects.set_ref("cache/k", b"v")
    blob = hashlib.sha256(b"1").hexdigest()
    expected = [f"blobs/{blob[:2]}/{blob}", f"manifests/{artifact.digest[:2]}/{artifact.digest}", "refs/cache/k"]
    assert place.keys() == expected
    scheme = "file" if place.name == "directory" else "s3"
    assert objects.uri(artifact).startswith(f"{scheme}://")
    assert objects.uri(artifact).endswith(f"/{expected[1]}")


def test_the_uri_of_a_directory_is_the_path_of_the_manifest(tmp_path: Path) -> None:
    objects = open_directory(tmp_path / "with space")
    artifact = objects.put("any", write_tree(tmp_path / "tree", {"a": b"1"}))
    manifest = tmp_path / "with space" / "manifests" / artifact.digest[:2] / artifact.digest
    assert objects.uri(artifact) == manifest.as_uri()
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == artifact.digest


def test_kind_and_metadata_do_not_count_towards_the_digest(objects: Objects, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", TREE)
    assert objects.put("a", tree, {"x": 1}).digest == objects.put("b", tree).digest


def test_the_same_bytes_stored_twice_are_written_once(objects: Objects, place: Any, tmp_path: Path) -> None:
    first = objects.put("any", write_tree(tmp_path / "one", TREE))
    keys = place.keys()
    before = {path: path.stat().st_ino for path in (tmp_path / "objects").rglob("*")}
    assert objects.put("any", write_tree(tmp_path / "two", TREE)) == first
    assert place.keys() == keys
    assert {path: path.stat().st_ino for path in (tmp_path / "objects").rglob("*")} == before


def test_an_empty_directory_is_an_artifact_and_empty_directories_inside_are_not_kept(
    objects: Objects, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "nothing" / "here").mkdir(parents=True)
    artifact = objects.put("any", tmp_path / "tree")
    assert objects.holds(artifact)
    assert (artifact.size, objects.files(artifact)) == (0, {})
    out = objects.get(artifact, tmp_path / "out")
    assert list(out.iterdir()) == []


def test_an_empty_directory_may_wait_at_the_destination(objects: Objects, tmp_path: Path) -> None:
    artifact = objects.put("any", write_tree(tmp_path / "tree", TREE))
    (tmp_path / "out").mkdir()
    assert read_tree(objects.get(artifact, tmp_path / "out")) == TREE


def test_what_stands_at_the_destination_is_not_touched(objects: Objects, tmp_path: Path) -> None:
    artifact = objects.put("any", write_tree(tmp_path / "tree", TREE))
    write_tree(tmp_path / "out", {"mine": b"1"})
    (tmp_path / "file").write_bytes(b"2")
    for destination in (tmp_path / "out", tmp_path / "file"):
        with pytest.raises(SystemFault, match="something is there") as caught:
            objects.get(artifact, destination)
        assert caught.value.hint
    assert read_tree(tmp_path / "out") == {"mine": b"1"}
    assert (tmp_path / "file").read_bytes() == b"2"


def test_one_file_is_read_by_its_name(objects: Objects, tmp_path: Path) -> None:
    artifact = objects.put("any", write_tree(tmp_path / "tree", TREE))
    assert objects.read(artifact, ".hidden") == b"\x00"
    assert objects.read(artifact, "tables/weather/2013-02.parquet") == b""
    assert objects.files(artifact) == {name: len(data) for name, data in TREE.items()}
    with pytest.raises(KeyError):
        objects.read(artifact, "tables")


def test_an_artifact_that_was_never_stored_is_not_held(objects: Objects, tmp_path: Path) -> None:
    artifact = Artifact("model", "ab" * 32, 1)
    assert not objects.holds(artifact)
    objects.discard(artifact)
    for verb in (objects.files, lambda it: objects.read(it, "x"), lambda it: objects.get(it, tmp_path / "out")):
        with pytest.raises(CorruptArtifact, match="model abababababab is damaged: its manifest is gone") as caught:
            verb(artifact)
        assert caught.value.digest == artifact.digest
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 32 + "\n"])
def test_what_is_no_digest_reaches_no_file(objects: Objects, tmp_path: Path, digest: str) -> None:
    artifact = Artifact("any", digest, 1)
    assert not objects.holds(artifact)
    for verb in (objects.uri, objects.files, objects.discard, lambda it: objects.get(it, tmp_path / "out")):
        with pytest.raises(CorruptArtifact, match="no digest"):
            verb(artifact)


def test_a_link_to_a_file_of_the_tree_is_stored_as_that_file(objects: Objects, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"versions/1/model": b"m"})
    (tree / "latest").symlink_to("versions/1/model")
    artifact = objects.put("any", tree)
    out = objects.get(artifact, tmp_path / "out")
    assert read_tree(out) == {"versions/1/model": b"m", "latest": b"m"}
    assert not (out / "latest").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "folder", "nowhere", "link"])
def test_any_other_link_is_refused(objects: Objects, place: Any, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    tree = write_tree(tmp_path / "tree", {"folder/a": b"1"})
    (tree / "link").symlink_to(target)
    with pytest.raises(DataError, match="link cannot be stored"):
        objects.put("any", tree)
    assert place.keys() == []


def test_what_is_no_file_is_refused(objects: Objects, tmp_path: Path) -> None:
    os.mkfifo(write_tree(tmp_path / "tree", {}) / "pipe")
    with pytest.raises(DataError, match="pipe cannot be stored"):
        objects.put("any", tmp_path / "tree")
    with pytest.raises(DataError, match=r"no file or directory .*nothing"):
        objects.put("any", tmp_path / "nothing")


@pytest.mark.parametrize("name", [b"back\\slash", b"not-utf8-\xff"])
def test_a_name_that_not_every_system_takes_is_refused(objects: Objects, tmp_path: Path, name: bytes) -> None:
    tree = write_tree(tmp_path / "tree", {})
    Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(b"1")
    with pytest.raises(DataError, match="cannot be stored") as caught:
        objects.put("any", tree)
    assert caught.value.hint == "rename the file"


def test_a_file_that_changes_while_it_is_stored_is_no_artifact(
    objects: Objects, place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(20_000_000))

    def hash_and_change(hashed: Path, chunk_size: int) -> Content:
        """Somebody writes between the two times that the file is read."""
        found = hash_file(hashed, chunk_size)
        with hashed.open("r+b", buffering=0) as file:
            file.seek(19_999_000)
            file.write(b"changed")
        return found

    monkeypatch.setattr(content, "hash_file", hash_and_change)
    with pytest.raises(SystemFault, match="growing changed while it was stored"):
        objects.put("any", path)
    assert place.keys() == []


def test_references_are_written_read_and_moved(objects: Objects) -> None:
    assert objects.ref("champion/flights") is None
    objects.set_ref("champion/flights", b"\x00one")
    assert objects.ref("champion/flights") == b"\x00one"
    objects.set_ref("champion/flights", b"")
    assert objects.ref("champion/flights") == b""
    assert objects.ref("champion") is None


def test_references_are_listed_by_what_they_begin_with(objects: Objects) -> None:
    assert list(objects.refs("")) == []
    for name in ("cache/ab1", "cache/ab2", "cache/b", "cached/x", "champion/m_o-d.e=l"):
        objects.set_ref(name, b"1")
    assert list(objects.refs("cache/")) == ["cache/ab1", "cache/ab2", "cache/b"]
    assert list(objects.refs("cache/ab")) == ["cache/ab1", "cache/ab2"]
    assert list(objects.refs("cache")) == ["cache/ab1", "cache/ab2", "cache/b", "cached/x"]
    assert list(objects.refs("nothing/here")) == []
    assert len(list(objects.refs(""))) == 5


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".", "a b", "a#1", "é", "a\n", "x" * 201]
)
def test_a_bad_name_for_a_reference_is_refused(objects: Objects, name: str) -> None:
    with pytest.raises(ValueError, match="no name for a reference"):
        objects.set_ref(name, b"1")
    with pytest.raises(ValueError, match="no name for a reference"):
        objects.ref(name)


segments = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=8).filter(
    lambda text: text not in (".", "..")
)
names = st.lists(segments, min_size=1, max_size=3).map("/".join)


def _is_a_tree(files: dict[str, bytes]) -> bool:
    return not any(other.startswith(name + "/") for name in files for other in files)


trees = st.dictionaries(names, st.binary(max_size=64), max_size=5).filter(_is_a_tree)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=trees, seed=st.randoms(use_true_random=False))
def test_any_tree_comes_back_and_equal_trees_have_equal_digests(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], seed: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("any")
    objects = open_directory(folder / "objects")
    shuffled = list(files.items())
    seed.shuffle(shuffled)
    first = objects.put("any", write_tree(folder / "one", files))
    second = objects.put("any", write_tree(folder / "two", dict(shuffled)))
    assert first == second
    assert objects.holds(first)
    assert read_tree(objects.get(first, folder / "out")) == files


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=trees)
def test_any_tree_has_the_same_digest_in_every_store(
    place: Any, tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    tree = write_tree(folder / "tree", files)
    artifact = place.open().put("any", tree)
    assert artifact == open_directory(folder / "objects").put("any", tree)
    assert read_tree(place.open().get(artifact, folder / "out")) == files


@given(files=st.dictionaries(names, st.binary(max_size=4), max_size=4).filter(_is_a_tree))
def test_a_manifest_is_read_back_from_its_bytes_which_know_no_order(files: dict[str, bytes]) -> None:
    manifest = Manifest({name: Content(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()})
    assert decode(manifest.encode()) == manifest
    assert Manifest(dict(reversed(list(manifest.files.items())))).encode() == manifest.encode()


@given(
    st.one_of(st.binary(max_size=50), st.recursive(st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode))
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode(data)


EMPTY = hashlib.sha256(b"").hexdigest()
BAD_FILES: list[dict[str, Any]] = [
    {"/etc/cron.d/x": [EMPTY, 0]},
    {"../x": [EMPTY, 0]},
    {"a/../../x": [EMPTY, 0]},
    {"a//x": [EMPTY, 0]},
    {"": [EMPTY, 0]},
    {"a\0": [EMPTY, 0]},
    {"..\\x": [EMPTY, 0]},
    {"x" * 256: [EMPTY, 0]},
    {"a": [EMPTY, 0], "a/b": [EMPTY, 0]},
    {"a": ["../" + EMPTY[3:], 0]},
    {"a": [EMPTY, -1]},
    {"a": [EMPTY, "0"]},
    {"a": [EMPTY]},
]


@pytest.mark.parametrize("files", BAD_FILES)
def test_a_manifest_that_would_leave_its_tree_is_refused(
    objects: Objects, place: Any, tmp_path: Path, files: dict[str, Any]
) -> None:
    data = json.dumps({"files": files}).encode()
    digest = hashlib.sha256(data).hexdigest()
    place.write(f"blobs/{EMPTY[:2]}/{EMPTY}", b"")
    place.write(f"manifests/{digest[:2]}/{digest}", data)
    artifact = Artifact("any", digest, 0)
    assert not objects.holds(artifact)
    with pytest.raises(CorruptArtifact, match="its manifest is refused"):
        objects.get(artifact, tmp_path / "sub" / "out")
    assert not (tmp_path / "sub" / "out").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://bucket/x", None),
        ("s3:///x", None),
        ("s3://USER:hunter2@bucket/x", None),
        ("s3://bucket/x", "127.0.0.1:9000"),
        ("s3://bucket/x", "ftp://host"),
        ("s3://bucket/x", "http://USER:hunter2@host:9000"),
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str, endpoint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        open_s3(url, endpoint)
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_a_prefix_is_optional_and_may_end_with_a_slash(s3_server: Any, s3_credentials: None, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"a": b"1"})
    for url, base in (("s3://objects", "s3://objects"), ("s3://objects/", "s3://objects"), ("s3://objects/p/q/",) * 2):
        objects = open_s3(url, s3_server.endpoint)
        artifact = objects.put("any", tree)
        assert objects.holds(artifact)
        assert objects.uri(artifact) == f"{base.rstrip('/')}/manifests/{artifact.digest[:2]}/{artifact.digest}"
    assert (s3_server.root / "objects" / "manifests").is_dir()
    assert (s3_server.root / "objects" / "p" / "q" / "manifests").is_dir()


OPEN = """
import sys
from pathlib import Path
def open_place(kind, *where):
    if kind == "directory":
        from drivetrain.backends.objects.directory import open_directory
        return open_directory(Path(where[0]))
    from drivetrain.backends.objects.s3 import open_s3, versions
    return open_s3(*where)
"""


def test_memory_does_not_grow_with_the_size_of_a_file(
    place: Any, tmp_path: Path, start_python: Callable[..., Any]
) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(160_000_000)
    code = OPEN + (
        "from tests.memory import peak\n"
        "tree, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "objects = open_place(*sys.argv[3:])\n"
        "objects.ref('a')\n"
        "before = peak()\n"
        "objects.get(objects.put('any', tree), out)\n"
        "print(peak() - before)\n"
    )
    process = start_python(code, str(tmp_path / "large"), str(tmp_path / "out"), *place.address)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert int(output) < 90_000_000
    assert (tmp_path / "out" / "large").stat().st_size == 160_000_000


def test_opening_a_directory_loads_no_heavy_library(tmp_path: Path, start_python: Callable[..., Any]) -> None:
    code = OPEN + (
        "open_place('directory', sys.argv[1]).ref('cache/key')\n"
        "heavy = {'asyncio', 'logging', 'concurrent.futures', 'ssl', 'pydantic', 'numpy', 'pandas', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)), len(sys.modules))\n"
    )
    output, errors = start_python(code, str(tmp_path / "objects")).communicate(timeout=30)
    assert errors == ""
    loaded, count = output.rsplit(maxsplit=1)
    assert loaded == "[]"
    assert int(count) < 130


def test_the_versions_of_data_on_s3_change_with_their_contents_and_with_nothing_else(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    folder = s3_server.root / "objects" / "raw" / "2013"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("1")
    (folder / "b.csv").write_text("1")

    def look(source: str) -> dict[str, str]:
        return versions(source, s3_server.endpoint)

    deadline = time.monotonic() + 60  # the server looks at its directory again after a second
    while sorted(before := look("s3://objects/raw/*/*.csv")) != ["raw/2013/a.csv", "raw/2013/b.csv"]:
        assert time.monotonic() < deadline, before
        time.sleep(0.1)
    assert list(look("s3://objects/raw/2013/a.csv")) == ["raw/2013/a.csv"]
    assert look("s3://objects/raw/*/*.csv") == before
    (folder / "b.csv").write_text("2")
    deadline = time.monotonic() + 60
    while look("s3://objects/raw/*/*.csv") == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert look("s3://objects/raw/2013/a.csv")["raw/2013/a.csv"] == before["raw/2013/a.csv"]
