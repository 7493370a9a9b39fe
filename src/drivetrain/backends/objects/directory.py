"""Objects in a directory: the embedded answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from drivetrain.backends.objects import Objects
from drivetrain.backends.objects.content import PIECE, ContentStore, local_store


def open_directory(root: Path) -> Objects:
    """The objects in the directory `root`, which is made if it is missing. Raises `SystemFault` if it cannot be."""
    root = root.absolute()
    return ContentStore(local_store(root), root.as_uri(), pieces=partial(_file_pieces, root))


def _file_pieces(root: Path, key: str) -> Iterator[bytes]:
    # obstore reads local files 8 KiB at a time, which takes four times as long.
    with (root / key).open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            yield piece
