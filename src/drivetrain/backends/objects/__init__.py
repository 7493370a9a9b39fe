"""Objects: immutable artifacts by digest, and small named references to them, on a directory or on S3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from drivetrain.records import Artifact, Scalar


class Objects(Protocol):
    """A content-addressed store. Writes are atomic, reads verify every digest.

    Every verb raises `Unavailable` when the store does not answer, and `SystemFault` when it cannot be used at all
    (disk full, read-only, refused credentials).
    """

    def put(self, kind: str, source: Path, metadata: Mapping[str, Scalar] | None = None) -> Artifact:
        """Stores a file or a whole directory and returns its record. Storing the same bytes twice is free."""
        ...

    def get(self, artifact: Artifact, destination: Path) -> Path:
        """Writes the artifact's files under the directory `destination` and returns it.

        Raises `CorruptArtifact` if a byte differs or a file is gone; then nothing is left at `destination`.
        """
        ...

    def read(self, artifact: Artifact, name: str) -> bytes:
        """One file of an artifact, verified. Raises `CorruptArtifact`; `KeyError` if the artifact has no such file."""
        ...

    def files(self, artifact: Artifact) -> Mapping[str, int]:
        """The artifact's file names with their sizes in bytes."""
        ...

    def holds(self, artifact: Artifact) -> bool:
        """Whether every file is there with its right size. Reads no contents: `get` and `read` verify those."""
        ...

    def discard(self, artifact: Artifact) -> None:
        """Forgets the manifest and every file of it that is damaged, so that a new `put` writes them again."""
        ...

    def uri(self, artifact: Artifact) -> str:
        """Where the artifact's manifest lies (`file:///...` or `s3://...`)."""
        ...

    def ref(self, name: str) -> bytes | None:
        """What the reference `name` (`cache/KEY`, `champion/MODEL`) holds, or None."""
        ...

    def set_ref(self, name: str, value: bytes) -> None:
        """Points a reference somewhere else, atomically. The last writer wins."""
        ...

    def refs(self, prefix: str) -> Iterator[str]:
        """The names of the references that begin with `prefix`."""
        ...
