"""The builder's store: blobs by their digest, and which layer was made of what, so that nothing is made twice.

`blobs/sha256/` is laid out as in an OCI image layout. Everything is written beside its place and moved there when it is whole:
a build that is killed, or whose disk is full, leaves nothing that a later one would take for a blob.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from drivetrain.backends.images import LAYER, PIECE, Blob, Layer
from drivetrain.records import digest as digest_of

_FORM = 1
"""Part of every key; raised when the bytes of layers made of the same things change."""


class Sink:
    """A file being written, digested on the way. `total` is in bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.total = 0

    def write(self, piece: bytes) -> int:
        """Takes the piece, as a file does."""
        self._hash.update(piece)
        self._file.write(piece)
        self.total += len(piece)
        return len(piece)

    def tell(self) -> int:
        """Where the next piece goes, as a file says it."""
        return self.total

    @property
    def digest(self) -> str:
        """Of what has been written so far."""
        return f"sha256:{self._hash.hexdigest()}"


class Store:
    """A directory of blobs. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._made = root / "made"
        for place in (self._blobs, self._made):
            place.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob of that digest lies, or would."""
        return self._blobs / digest.removeprefix("sha256:")

    def holds(self, blob: Blob) -> bool:
        """Whether the blob is there with its size."""
        path = self.path(blob.digest)
        return path.is_file() and path.stat().st_size == blob.size

    def write(self, media_type: str, fill: Callable[[Sink], None]) -> Blob:
        """The blob that `fill` writes; nothing is kept of one that raises."""
        with self.scratch() as scratch:
            with scratch.open("wb") as file:
                sink = Sink(file)
                fill(sink)
            return self.adopt(scratch, Blob(sink.digest, sink.total, media_type))

    def put(self, media_type: str, content: bytes) -> Blob:
        """A small blob from memory."""
        return self.write(media_type, lambda sink: void(sink.write(content)))

    def copy(self, media_type: str, source: Path) -> Blob:
        """A file's bytes as a blob."""

        def fill(sink: Sink) -> None:
            with source.open("rb") as file:
                while piece := file.read(PIECE):
                    sink.write(piece)

        return self.write(media_type, fill)

    def adopt(self, file: Path, blob: Blob) -> Blob:
        """Moves a file whose digest is known into its place."""
        target = self.path(blob.digest)
        os.chmod(file, 0o444)  # layouts link to it
        os.replace(file, target)
        return Blob(blob.digest, blob.size, blob.media_type, target, blob.annotations)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new empty file in the store's file system, gone afterwards unless it was moved away."""
        handle, name = tempfile.mkstemp(prefix="writing-", dir=self.root)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    # what was made of what

    def layer(self, made: str, parts: object, fill: Callable[[Sink], None]) -> Layer:
        """The uncompressed layer that `fill` writes; the one from before where a layer of the same `parts` (JSON-ready values, which
        tell all that the bytes depend on) is still there."""
        key = _key(made, parts)
        return self.recall(key) or self.remember(key, self.plain(made, fill))

    def known(self, made: str, parts: object) -> bool:
        """Whether `layer` would find the layer there already."""
        return self.recall(_key(made, parts)) is not None

    def plain(self, made: str, fill: Callable[[Sink], None]) -> Layer:
        """The uncompressed layer that `fill` writes."""
        blob = self.write(LAYER, fill)
        return Layer(blob, blob.digest, made)

    def recall(self, key: str) -> Layer | None:
        """The layer that was remembered under the key, if its blob is still there."""
        told = self.note(key)
        if not isinstance(told, dict):
            return None
        blob = Blob(told["digest"], told["size"], told["media_type"], self.path(told["digest"]))
        return Layer(blob, told["diff_id"], told["made"]) if self.holds(blob) else None

    def remember(self, key: str, layer: Layer) -> Layer:
        """Keeps which blob the key stands for."""
        blob = layer.blob
        self.keep_note(
            key,
            {
                "digest": blob.digest, "size": blob.size, "media_type": blob.media_type,
                "diff_id": layer.diff_id, "made": layer.made,
            },
        )  # fmt: skip
        return layer

    def note(self, key: str) -> object:
        """What was noted under the key; None if nothing was, or it cannot be read."""
        try:
            return json.loads((self._made / key).read_bytes())
        except (OSError, ValueError):
            return None

    def keep_note(self, key: str, value: object) -> None:
        """Notes a small JSON-ready value."""
        with self.scratch() as scratch:
            scratch.write_text(json.dumps(value, sort_keys=True), encoding="utf-8")
            os.replace(scratch, self._made / key)


def _key(made: str, parts: object) -> str:
    return digest_of([_FORM, made.partition(" ")[0], parts])


def void(_: object) -> None:
    """Nothing, in place of a value that a callback must not return."""
