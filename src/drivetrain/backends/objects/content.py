"""Content-addressed objects on any store that obstore speaks to.

    blobs/ab/abcd...       contents, by their SHA-256
    manifests/12/1234...   manifests, by theirs: an artifact's digest
    refs/NAME              references

A manifest is written after all of its blobs, and every object appears whole or not at all; so what has a manifest is
complete. Only put, get, head, list and delete are used: some S3 servers misread anything further.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import ClassVar, Protocol, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from drivetrain.backends.objects.faults import fault_of, is_answer, is_missing_bucket
from drivetrain.backends.objects.manifest import (
    Content,
    Manifest,
    decode,
    digests_in,
    hash_file,
    is_digest,
    source_files,
)
from drivetrain.errors import CorruptArtifact, SystemFault
from drivetrain.records import Artifact, Scalar

PIECE = 1 << 20
"""Bytes read or written at a time: what one file needs in memory, whatever its size, is a small multiple of this."""
_WHOLE = 8 << 20
"""Files up to this size (bytes) are read once and stored in one call; larger ones go in parts of at least this size."""
_MAX_PARTS = 9_000
"""S3 takes 10 000 parts for an object."""
_REF_SEGMENT = re.compile(r"[A-Za-z0-9._=-]{1,200}")


def local_store(root: Path) -> ObjectStore:
    """A store in the directory `root`, which is made if it is missing."""
    with _translated(str(root)):
        root.mkdir(parents=True, exist_ok=True)
        return LocalStore(root)


def s3_store(bucket: str, prefix: str, endpoint: str | None, region: str | None) -> ObjectStore:
    """A store below `prefix` of a bucket; `endpoint` is None for AWS. Credentials come from obstore's own sources."""
    with _translated(f"opening s3://{bucket}"):
        return S3Store(
            bucket,
            prefix=prefix or None,
            config={
                **({"endpoint": endpoint} if endpoint else {}),
                **({"region": region} if region else {}),
                "virtual_hosted_style_request": False,
                "disable_tagging": True,
                "disable_bulk_delete": True,
            },
            client_options={
                **({"allow_http": True} if endpoint and endpoint.startswith("http://") else {}),
                # A server that cannot be reached is given up after about 9 s: three times 3 s. One that takes the
                # request and goes silent is given up after 30 s; a transfer that moves may take its time.
                "connect_timeout": timedelta(seconds=3),
                "read_timeout": timedelta(seconds=30),
                "timeout": timedelta(hours=6),
            },
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=8),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=1),
                    "base": 2,
                },
            },
        )


def versions(store: ObjectStore, prefix: str, where: str) -> dict[str, str]:
    """The keys below `prefix` with what changes when their contents do: ETag and size in bytes. Reads no contents."""
    with _translated(f"listing {where}"):
        listed = [entry for batch in obstore.list(store, prefix=prefix or None) for entry in batch]
    return {entry["path"]: f"{entry['e_tag']} {entry['size']}" for entry in listed}


A = TypeVar("A")
B = TypeVar("B")


class Each(Protocol):
    """Applies a function to every item, as `map` does, possibly to several at once."""

    def __call__(self, act: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]: ...


class ContentStore:
    """The need `Objects` on an obstore store.

    `base` is the URI of the store's root, without a slash at its end; `each` says how the files of a tree are gone
    through; `pieces` gives the bytes of an object by its key, where there is a quicker way than through the store.
    """

    def __init__(
        self,
        store: ObjectStore,
        base: str,
        each: Each = map,
        pieces: Callable[[str], Iterable[bytes]] | None = None,
    ) -> None:
        self._store = store
        self._base = base
        self._each = each
        self._pieces = pieces or self._stream

    def put(self, kind: str, source: Path, metadata: Mapping[str, Scalar] | None = None) -> Artifact:
        with _translated(f"storing {kind} from {source} in {self._base}"):
            found = source_files(source)
            manifest = Manifest(dict(zip(found, self._each(self._put_file, found.values()), strict=True)))
            data = manifest.encode()
            digest = hashlib.sha256(data).hexdigest()
            if self._bytes(_manifest_key(digest)) != data:
                obstore.put(self._store, _manifest_key(digest), data)
        return Artifact(kind, digest, manifest.size, dict(metadata or {}))

    def _put_file(self, path: Path) -> Content:
        if path.stat().st_size <= _WHOLE:
            data = path.read_bytes()
            content = Content(hashlib.sha256(data).hexdigest(), len(data))
            self._put_blob(content, lambda: data)
        else:
            content = hash_file(path, PIECE)
            self._put_blob(content, lambda: _unchanged_pieces(path, content))
        return content

    def _put_blob(self, content: Content, data: Callable[[], bytes | Iterator[bytes]]) -> None:
        if self._has(content):
            return
        part = max(_WHOLE, -(-content.size // _MAX_PARTS))
        several = content.size > _WHOLE
        try:
            obstore.put(
                self._store,
                _blob_key(content.digest),
                data(),
                use_multipart=several,
                chunk_size=part,
                max_concurrency=2,
            )
        except BaseError as error:
            # Some servers refuse a write while another process writes the same key, and so the same bytes.
            if not (is_answer(error) and self._has(content)):
                raise

    def get(self, artifact: Artifact, destination: Path) -> Path:
        with _translated(f"reading {_label(artifact)} into {destination}"):
            manifest = self._manifest(artifact)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
                raise SystemFault(
                    f"{_label(artifact)} cannot be written to {destination}: something is there",
                    hint="give an empty or a new directory",
                )
            unfinished = destination.with_name(f".{destination.name[:200]}.{os.urandom(6).hex()}")
            try:
                unfinished.mkdir()
                list(self._each(partial(self._get_file, artifact, unfinished), manifest.files.items()))
                unfinished.rename(destination)
            except BaseException:
                rmtree(unfinished, ignore_errors=True)
                raise
        return destination

    def _get_file(self, artifact: Artifact, tree: Path, file: tuple[str, Content]) -> None:
        name, content = file
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as output:
            self._copy(artifact, name, content, output.write)

    def _copy(self, artifact: Artifact, name: str, content: Content, write: Callable[[bytes], object]) -> None:
        """Hands the blob on in pieces and checks it on the way."""
        found = self._digest(content.digest, write)
        if found != content.digest:
            state = f"has the digest {found[:12]}" if found else "is gone"
            raise _corrupt(artifact, f"file {name} {state}, expected {content.digest[:12]}")

    def _digest(self, digest: str, write: Callable[[bytes], object]) -> str | None:
        """The digest of the bytes that are stored under `digest`, or None if there are none."""
        running = hashlib.sha256()
        try:
            for piece in self._pieces(_blob_key(digest)):
                running.update(piece)
                write(piece)
        except FileNotFoundError:
            return None
        return running.hexdigest()

    def read(self, artifact: Artifact, name: str) -> bytes:
        with _translated(f"reading {name} of {_label(artifact)}"):
            content = self._manifest(artifact).files[name]
            pieces: list[bytes] = []
            self._copy(artifact, name, content, pieces.append)
        return b"".join(pieces)

    def files(self, artifact: Artifact) -> Mapping[str, int]:
        with _translated(f"reading {_label(artifact)}"):
            return {name: content.size for name, content in self._manifest(artifact).files.items()}

    def holds(self, artifact: Artifact) -> bool:
        with _translated(f"looking for {_label(artifact)}"):
            try:
                manifest = self._manifest(artifact)
            except CorruptArtifact:
                return False
            return all(self._each(self._has, set(manifest.files.values())))

    def discard(self, artifact: Artifact) -> None:
        with _translated(f"discarding {_label(artifact)}"):
            key = _manifest_key(_checked_digest(artifact))
            manifest = self._bytes(key)
            if manifest is None:
                return
            # The manifest first, so that none is ever without its blobs. It may be damaged itself: whatever digests
            # can still be read from it are looked at.
            self._delete(key)
            for digest in digests_in(manifest):
                if self._digest(digest, lambda piece: None) != digest:
                    self._delete(_blob_key(digest))

    def uri(self, artifact: Artifact) -> str:
        return f"{self._base}/{_manifest_key(_checked_digest(artifact))}"

    def ref(self, name: str) -> bytes | None:
        with _translated(f"reading the reference {name} in {self._base}"):
            return self._bytes(_ref_key(name))

    def set_ref(self, name: str, value: bytes) -> None:
        with _translated(f"writing the reference {name} in {self._base}"):
            obstore.put(self._store, _ref_key(name), value, use_multipart=False)

    def refs(self, prefix: str) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        with _translated(f"listing the references {prefix}* in {self._base}"):
            root = _ref_key(folder) if folder else "refs"
            listed = obstore.list(self._store, prefix=root)
            names = [entry["path"].removeprefix("refs/") for batch in listed for entry in batch]
        return iter(sorted(name for name in names if name.startswith(prefix)))

    def _manifest(self, artifact: Artifact) -> Manifest:
        data = self._bytes(_manifest_key(_checked_digest(artifact)))
        if data is None:
            raise _corrupt(artifact, "its manifest is gone")
        found = hashlib.sha256(data).hexdigest()
        if found != artifact.digest:
            raise _corrupt(artifact, f"its manifest has the digest {found[:12]}, expected {artifact.digest[:12]}")
        try:
            return decode(data)
        except ValueError as error:
            raise _corrupt(artifact, f"its manifest is refused: {error}") from error

    def _stream(self, key: str) -> Iterable[bytes]:
        return map(bytes, obstore.get(self._store, key).stream(min_chunk_size=PIECE))

    def _has(self, content: Content) -> bool:
        try:
            return obstore.head(self._store, _blob_key(content.digest))["size"] == content.size
        except FileNotFoundError:
            return False

    def _bytes(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise
            return None

    def _delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._store, key)


def _unchanged_pieces(path: Path, content: Content) -> Iterator[bytes]:
    """The file in pieces; raises `SystemFault`, which ends the upload, if it is no longer what was hashed."""
    running = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            running.update(piece)
            yield piece
    if running.hexdigest() != content.digest:
        raise SystemFault(f"{path} changed while it was stored", hint="let nothing write to it, and run again")


def _blob_key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _manifest_key(digest: str) -> str:
    return f"manifests/{digest[:2]}/{digest}"


def _ref_key(name: str) -> str:
    for segment in name.split("/"):
        if segment in (".", "..") or not _REF_SEGMENT.fullmatch(segment):
            raise ValueError(f"{name!r} is no name for a reference: letters, digits and . _ = - between slashes are")
    return f"refs/{name}"


def _label(artifact: Artifact) -> str:
    return f"{artifact.kind} {artifact.digest[:12]}"


def _checked_digest(artifact: Artifact) -> str:
    if not is_digest(artifact.digest):
        raise _corrupt(artifact, "what names it is no digest")
    return artifact.digest


def _corrupt(artifact: Artifact, what: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{_label(artifact)} is damaged: {what}",
        digest=artifact.digest,
        hint="`drivetrain run` makes it again; if this comes back, check the disk or the bucket",
    )


class _Runtime:
    """obstore's threads belong to the process that made its first call; a fork of it would wait for them for ever."""

    process: ClassVar[int | None] = None


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turns what obstore and the operating system raise into `Unavailable` or `SystemFault`."""
    process = os.getpid()
    if _Runtime.process is None:
        _Runtime.process = process
    if _Runtime.process != process:
        raise SystemFault(
            f"{where} is not possible in a forked process",
            hint="start the process with `spawn`, as in multiprocessing.get_context('spawn')",
        )
    try:
        yield
    except OSError as error:
        raise fault_of(error, where) from _shown(error)
    except BaseError as error:
        raise fault_of(error, where) from _shown(error)


def _shown(error: Exception) -> Exception | None:
    """The cause to show in a traceback: none where it quotes a server's whole answer."""
    return None if is_answer(error) else error
