"""In-toto statements: what is said of an image by its digest, as JSON that is signed or stands for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain import __version__
from drivetrain.backends.images import Built, Origin
from drivetrain.backends.images.references import Ref

STATEMENT = "https://in-toto.io/Statement/v1"
SIGNED = "https://sigstore.dev/cosign/sign/v1"
"""What cosign says of an image that it signs: nothing but that it does."""
PROVENANCE = "https://slsa.dev/provenance/v1"
_BUILDER = f"pkg:pypi/drivetrain@{__version__}"
_BUILD = "pkg:pypi/drivetrain#package"
"""The kind of build, which `docs/packaging.md` describes."""


def signature(ref: Ref) -> bytes:
    """That the image is signed."""
    return _statement(ref, SIGNED, {})


def provenance(ref: Ref, built: Built | None, origin: Origin) -> bytes:
    """SLSA's provenance, version 1: which builder made the image in which run, and of what. `built` is None for an image that was made
    elsewhere, of which the run is all that is known; the origin has no run where none made it."""
    external: dict[str, Any] = {"definition": origin.definition, "image": ref.name}
    predicate = {
        "buildDefinition": {
            "buildType": _BUILD,
            "externalParameters": external,
            "internalParameters": {"code": origin.code},
            "resolvedDependencies": _dependencies(built, origin),
        },
        "runDetails": {
            "builder": {"id": _BUILDER, "version": {"drivetrain": __version__}},
            "metadata": {"invocationId": origin.run} if origin.run else {},
        },
    }
    return _statement(ref, PROVENANCE, predicate)


def _dependencies(built: Built | None, origin: Origin) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if origin.commit:
        commit = origin.commit.removesuffix("+")  # the sign that files differed from it
        source: dict[str, Any] = {"uri": f"git+{origin.source}@{commit}"} if origin.source else {}
        changed = {"annotations": {"changed": True}} if commit != origin.commit else {}
        found.append({"name": "source", **source, "digest": {"gitCommit": commit}, **changed})
    materials = {"lock": origin.lock, **origin.materials}
    found += [{"name": name, "digest": {"sha256": _bare(digest)}} for name, digest in materials.items() if digest]
    if built is not None:
        found.append({"name": "base", "digest": {"sha256": _bare(built.base)}})
        found += [
            {"name": wheel.file, "uri": f"pkg:pypi/{wheel.name}@{wheel.version}", "digest": {"sha256": wheel.sha256}}
            for wheel in built.packages
        ]
    return found


def subjects(statement: bytes) -> tuple[str, Sequence[str]]:
    """The kind of a statement and the digests that it is about. Raises `ValueError` if it is none."""
    try:
        told = json.loads(statement)
        if told["_type"] != STATEMENT:
            raise ValueError(f"a statement of another kind: {told['_type']}")
        return str(told["predicateType"]), [f"sha256:{entry['digest']['sha256']}" for entry in told["subject"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no in-toto statement: {error!r}") from error


def _statement(ref: Ref, kind: str, predicate: Mapping[str, Any]) -> bytes:
    told = {
        "_type": STATEMENT,
        "subject": [{"name": ref.name, "digest": {"sha256": _bare(ref.digest)}}],
        "predicateType": kind,
        "predicate": predicate,
    }
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def _bare(digest: str) -> str:
    return digest.removeprefix("sha256:")
