"""Referrers: manifests that name another one as their subject, and the lists of them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drivetrain.backends.images import EMPTY, INDEX, MANIFEST, Blob, Referrer
from drivetrain.errors import SystemFault

_NOTHING = b"{}"
_NOTHING_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@contextlib.contextmanager
def empty() -> Iterator[Blob]:
    """The blob `{}`, which the specification has in place of a config where there is none."""
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        path = Path(directory) / "empty"
        path.write_bytes(_NOTHING)
        yield Blob(_NOTHING_DIGEST, len(_NOTHING), EMPTY, path)


def manifest(artifact_type: str, blobs: Sequence[Blob], subject: Blob, annotations: Mapping[str, str]) -> bytes:
    """The manifest of the blobs about the subject."""
    told = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": Blob(_NOTHING_DIGEST, len(_NOTHING), EMPTY).descriptor(),
        "layers": [blob.descriptor() for blob in blobs],
        "subject": subject.descriptor(),
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return _json(told)


def index(entries: Sequence[Referrer]) -> bytes:
    """The list of referrers, as the referrers API answers and as the tag in its place holds it."""
    told = [
        {
            "mediaType": MANIFEST,
            "digest": entry.digest,
            "size": entry.size,
            "artifactType": entry.artifact_type,
            **({"annotations": dict(entry.annotations)} if entry.annotations else {}),
        }
        for entry in entries
    ]
    return _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": told})


def parse(data: bytes) -> list[Referrer]:
    """The referrers in such a list. Raises `SystemFault` if it is none."""
    try:
        return [
            Referrer(
                str(entry["digest"]),
                str(entry.get("artifactType") or ""),
                int(entry["size"]),
                {str(key): str(value) for key, value in (entry.get("annotations") or {}).items()},
            )
            for entry in json.loads(data)["manifests"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemFault(f"the list of referrers cannot be read: {error!r}") from error


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
