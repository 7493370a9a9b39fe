"""What an image has with it in its registry as referrers: SBOM, provenance, signatures; and whether a deployment may rely on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drivetrain.backends.images import (
    BUNDLE,
    Blob,
    Built,
    Image,
    Origin,
    Referrer,
    Registry,
    Signing,
    debian,
    layout,
    references,
    sbom,
    statements,
)
from drivetrain.backends.images.references import Ref
from drivetrain.backends.images.store import Store
from drivetrain.errors import CorruptArtifact, StageError, Untrusted

_KIND = "dev.sigstore.bundle.predicateType"
"""The annotation by which cosign tells bundles apart without reading them."""
_CONTENT = {"dev.sigstore.bundle.content": "dsse-envelope"}
_MODEL = "https://model_signing/signature/v1.0"
_STATEMENT_TYPE = "application/vnd.in-toto+json"
_MOST_SIGNATURES = 50
"""Referrers that are looked at: anybody who may push can add some, and looking takes time."""


class OciTrust:
    """See `Trust`. Registry and signing are opened when they are needed, since their libraries take a while to load; `signing` is None
    where the definition says nothing of keys."""

    def __init__(self, store: Path, registry: Callable[[], Registry], signing: Callable[[], Signing] | None) -> None:
        self._store = store
        self._registry = registry
        self._signing = signing

    def sign_model(self, folder: Path, target: Path) -> Path | None:
        """See `Trust`."""
        if self._signing is None or not (signing := self._signing()).can_sign:
            return None
        signing.sign_model(folder, target)
        return target

    def check_model(self, folder: Path, signature: Path | None, digest: str) -> None:
        """See `Trust`."""
        if signature is None:
            raise Untrusted(f"the model {digest} is not signed", digest=digest, hint=_HOW_TO_SIGN)
        self._checking().check_model(folder, signature, digest)

    def attest(self, ref: str, built: Built | None, origin: Origin, model_signature: Path | None) -> Sequence[str]:
        """See `Trust`."""
        target = _pinned(ref)
        registry = self._registry()
        there = list(registry.referrers(ref, target.digest))
        signing = self._signing() if self._signing is not None else None
        signer = signing if signing is not None and signing.can_sign else None
        said = []
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
            put = _Attaching(registry, ref, target.digest, Path(directory))
            if built is not None:
                installed = debian.installed(built.layers, Store(self._store))
                put(sbom.MEDIA_TYPE, sbom.document(target.name, built, installed))
                said.append(f"SBOM of {len(built.packages)} wheels and {len(installed.packages)} Debian packages")
            provenance = statements.provenance(target, built, origin)
            if signer is None:
                put(_STATEMENT_TYPE, provenance, {_KIND: statements.PROVENANCE})
            elif not self._has(target, there, statements.PROVENANCE, provenance):
                put.bundle(signer.sign(provenance), statements.PROVENANCE)
            said.append("provenance")
            if model_signature is not None and not _of_kind(there, _MODEL):
                put.bundle(model_signature.read_bytes(), _MODEL)
                said.append("signature of the model")
            # The signature comes last: whoever sees it finds all the rest.
            if signer is not None:
                if not self._has(target, there, statements.SIGNED, statements.signature(target)):
                    put.bundle(signer.sign(statements.signature(target)), statements.SIGNED)
                said.append("signature")
        return said

    def check_image(self, ref: str, layers: bool) -> None:
        """See `Trust`."""
        target, registry = _pinned(ref), self._registry()
        try:
            image = layout.parsed(registry.manifest(f"{target.name}@{target.digest}"), lambda blob: blob)
        except KeyError as error:
            raise StageError(f"the image {ref} is not there any more") from error
        self._check_signature(target)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda blob: registry.check(ref, blob.digest), _checked(image, layers)))

    def _check_signature(self, target: Ref) -> None:
        """Raises `Untrusted` with the reasons against each signature, if there is none that counts."""
        reasons = []
        for bundle in self._bundles(target, self._registry().referrers(str(target), target.digest), statements.SIGNED):
            try:
                self._check_bundle(bundle, target)
                return
            except Untrusted as error:
                reasons.append(str(error))
        if not reasons:
            raise Untrusted(
                f"the image {target.name}@{target.digest} is not signed", digest=target.digest, hint=_HOW_TO_SIGN
            )
        raise Untrusted(
            f"the image {target.name}@{target.digest} is not to be trusted: {'; '.join(dict.fromkeys(reasons))}",
            digest=target.digest, hint="package.sign names whose signature counts",
        )  # fmt: skip

    def _check_bundle(self, bundle: bytes, target: Ref) -> None:
        statement = self._checking().check(bundle, target.digest)
        try:
            kind, subjects = statements.subjects(statement)
        except ValueError as error:
            raise Untrusted(f"{target.digest}: what is signed is no statement", digest=target.digest) from error
        if kind != statements.SIGNED or target.digest not in subjects:
            raise Untrusted(f"{target.digest}: its signature is of {', '.join(subjects)}", digest=target.digest)

    def _bundles(self, target: Ref, there: Sequence[Referrer], kind: str) -> Iterator[bytes]:
        """The bundles of that kind; those that cannot be read count as altered ones."""
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
            for entry in _of_kind(there, kind)[:_MOST_SIGNATURES]:
                try:
                    manifest = self._registry().manifest(f"{target.name}@{entry.digest}")
                    blob = layout.parsed(manifest, lambda found: found).layers[0]
                    yield self._registry().blob(str(target), blob.digest, Path(directory) / "bundle").read_bytes()
                except (CorruptArtifact, KeyError, IndexError, StageError):
                    yield b""

    def _has(self, target: Ref, there: Sequence[Referrer], kind: str, statement: bytes) -> bool:
        """Whether a bundle that counts says so already."""
        for bundle in self._bundles(target, there, kind):
            try:
                if self._checking().check(bundle, target.digest) == statement:
                    return True
            except Untrusted:
                continue
        return False

    def _checking(self) -> Signing:
        if self._signing is None:
            raise StageError("the definition does not say whose signatures count", hint="package.sign")
        return self._signing()


_HOW_TO_SIGN = "package.sign.key signs what a run packages; `package.sign.check: nothing` has it deployed without"


class _Attaching:
    """Attaches documents to one image."""

    def __init__(self, registry: Registry, ref: str, digest: str, folder: Path) -> None:
        self._registry = registry
        self._ref = ref
        self._digest = digest
        self._folder = folder

    def __call__(self, media_type: str, content: bytes, annotations: Mapping[str, str] | None = None) -> None:
        blob = Store(self._folder).put(media_type, content)
        self._registry.attach(self._ref, self._digest, media_type, [blob], annotations)

    def bundle(self, content: bytes, kind: str) -> None:
        self(BUNDLE, content, {**_CONTENT, _KIND: kind})


def open_trust(store: Path, registry: Callable[[], Registry], signing: Callable[[], Signing] | None) -> OciTrust:
    """Trust in the images of a registry."""
    return OciTrust(store, registry, signing)


def _pinned(ref: str) -> Ref:
    target = references.parse(ref)
    if not target.digest:
        raise StageError(f"{ref} has no digest: only what cannot change can be signed")
    return Ref(target.host, target.repository, digest=target.digest)


def _of_kind(there: Sequence[Referrer], kind: str) -> list[Referrer]:
    """Bundles of that kind; others may have attached theirs without saying which it is."""
    return [entry for entry in there if entry.artifact_type == BUNDLE and entry.annotations.get(_KIND, kind) == kind]


def _checked(image: Image, layers: bool) -> Sequence[Blob]:
    return image.blobs if layers else [image.config]
