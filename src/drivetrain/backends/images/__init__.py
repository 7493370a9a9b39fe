"""Images: a bundle made into an OCI image without a daemon, and the registries that images are pushed to.

Words are those of the OCI specifications: a *blob* is bytes named by their digest, a *manifest* names the config blob and the layer
blobs of an image, a *referrer* is a manifest that names another one as its subject (signature, SBOM, provenance).
A *reference* is written as Docker writes it: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY = "application/vnd.oci.empty.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""A signature with what it is of; model-signing and cosign write and read it too."""

PIECE = 1 << 20
"""Bytes that are read, digested and sent at a time: no blob is ever held in memory whole."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by digest (`sha256:` and 64 hexadecimal digits). `size` is in bytes; `path` is where they lie here, None where they
    are known to lie in a registry alone (a base image's layers)."""

    digest: str
    size: int
    media_type: str
    path: Path | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    def descriptor(self) -> dict[str, object]:
        """How a manifest names it."""
        told: dict[str, object] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return told | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its manifest as the bytes that `digest` is of, and every blob that the manifest names."""

    manifest: bytes
    digest: str
    config: Blob
    layers: Sequence[Blob]
    annotations: Mapping[str, str]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Layers, least likely to change first, and the config."""
        return (*self.layers, self.config)

    @property
    def size(self) -> int:
        """Bytes of all blobs, as they are stored and sent."""
        return sum(blob.size for blob in self.blobs)

    @property
    def media_type(self) -> str:
        """The manifest's own media type."""
        return str(json.loads(self.manifest).get("mediaType", MANIFEST))


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that is in a registry now. `ref` ends with `@DIGEST`; `bytes_sent` went over the wire, `bytes_mounted` were there in
    another repository; `seconds` from the first request to the moved tag."""

    ref: str
    digest: str
    bytes_sent: int
    bytes_mounted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that names another one as its subject."""

    digest: str
    artifact_type: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob of an image's file system. `diff_id` is the digest of the uncompressed tar; `made` says in a line what it holds."""

    blob: Blob
    diff_id: str
    made: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A Python package's wheel. `sha256` are the hexadecimal digits of the file's digest; `size` is the file's, in bytes. `source` are
    those of the digest of the source that it was built from here; empty where it came as a wheel."""

    name: str
    version: str
    file: str
    sha256: str
    size: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is to be made of.

    `bundle` is a directory with `cog.yaml`, the runner, `.cog/openapi_schema.json` and `model/`; `name` the model's in KServe's routes.
    `base` is a path relative to `folder`, or a reference; None: chosen from `cog.yaml`. `pins` is the text of a lock file; `weights` the
    digest of the files in `model/`, where it is known. `arguments` are further ones of the replica; `grpc` whether they have it speak
    gRPC.
    """

    bundle: Path
    name: str
    folder: Path
    platform: str = "linux/amd64"
    base: str | None = None
    pins: str = ""
    weights: str = ""
    uid: int = 10001
    grpc: bool = False
    arguments: Sequence[str] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StagesRecipe:
    """What the image is to be made of in which a pipeline's steps run.

    `folder` is the project's; `leave_out` are paths in it (relative, with `/`) that the image must not have. `name` is the lifecycle's.
    `lock` and `cog` are the names of the lock file and of `cog.yaml` in the project (None: there is no `cog.yaml`). `base` is as in
    `Recipe`.
    """

    folder: Path
    name: str
    lock: str
    cog: str | None = None
    leave_out: Sequence[str] = ()
    platform: str = "linux/amd64"
    base: str | None = None
    uid: int = 10001
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Built:
    """An image, its weights as an image of their own (None where there are none), and what went into it. `base` is the digest of
    what it stands on; `compiled` says whether Python's bytecode is in it."""

    image: Image
    weights: Image | None
    packages: Sequence[Wheel]
    base: str
    layers: Sequence[Layer]
    compiled: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image comes from, for its provenance. `run` is the run's id (empty where none made it), `definition`, `code` and `lock` are
    digests as the journal has them (hexadecimal, without `sha256:`), `commit` and `source` the project's in git (empty where there is
    none), `materials` the digests of what the run made it of, by name."""

    run: str
    definition: str
    code: str
    lock: str
    commit: str = ""
    source: str = ""
    materials: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Advisory:
    """A known vulnerability of a package in the version that is used. `fixed` are the versions that end it, earliest first."""

    package: str
    version: str
    id: str
    aliases: Sequence[str]
    fixed: Sequence[str]
    told: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What was looked up: in which `source`, for how many packages, and what was found. `unknown` are packages that the source does not
    have, so that nothing can be said of them."""

    source: str
    packages: int
    found: Sequence[Advisory]
    unknown: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Keys:
    """Who signs, and whose signatures count. `key` and `public_key` are PEM files; `identity` and `issuer` are whom a certificate of
    sigstore has to name, where nobody has a key."""

    key: Path | None = None
    public_key: Path | None = None
    password: str | None = None
    identity: str = ""
    issuer: str = ""


class Signing(Protocol):
    """Makes signatures and checks them. `digest` is only for what an error says.

    What checks raises `Untrusted`; `StageError` for keys that are none, `SystemFault` where nobody can sign here.
    """

    @property
    def can_sign(self) -> bool:
        """Whether signatures can be made, or only checked."""
        ...

    def sign(self, statement: bytes) -> bytes:
        """The in-toto statement as a signed bundle."""
        ...

    def check(self, bundle: bytes, digest: str) -> bytes:
        """The statement that the bundle holds, if it was signed by whom it should be."""
        ...

    def sign_model(self, folder: Path, target: Path) -> None:
        """Writes a signature of every file below `folder` to the file `target`."""
        ...

    def check_model(self, folder: Path, signature: Path, digest: str) -> None:
        """Raises `Untrusted` unless the files below `folder` are those that were signed."""
        ...


class Trust(Protocol):
    """What an image has with it in its registry (what is inside, where it comes from, who signed it), and whether that holds."""

    def attest(self, ref: str, built: Built | None, origin: Origin, model_signature: Path | None) -> Sequence[str]:
        """Attaches the SBOM and the provenance to the image of that reference (with a digest), and where there is a key the signatures;
        what is there already is not attached again. Without `built` (an image made elsewhere) there is no SBOM. Returns what was
        attached, in words. Raises what `Registry` and `Signing` raise."""
        ...

    def check_image(self, ref: str, layers: bool) -> None:
        """Raises `Untrusted` unless the image of that reference (with a digest) has a signature that counts, and its manifest and
        config the digests that were signed; with `layers` every byte of its layers is read too."""
        ...

    def sign_model(self, folder: Path, target: Path) -> Path | None:
        """Signs the model's files into `target` and returns it; None where there is no key to sign with."""
        ...

    def check_model(self, folder: Path, signature: Path | None, digest: str) -> None:
        """Raises `Untrusted` unless the signature is there, and one that counts of these very files."""
        ...


class Images(Protocol):
    """What makes images of bundles and of projects, and knows where they go."""

    def build(self, recipe: Recipe, say: Callable[[str], None]) -> Built:
        """The image; what was made before is found again.

        Raises `StageError` for a bundle, `cog.yaml`, base or requirements that no image can be made of, `Unavailable` if a package index
        or registry does not answer, `SystemFault` if the disk is full.
        """
        ...

    def build_stages(self, recipe: StagesRecipe, say: Callable[[str], None]) -> Built:
        """The image with the project, all of Drivetrain and the lock file's packages, in which a pipeline's steps run.

        Raises what `build` raises; `StageError` also for a lock file that is missing, is not whole, or lacks what Drivetrain needs.
        """
        ...

    def write(self, image: Image, folder: Path, tag: str) -> Path:
        """Adds the image to the OCI image layout at `folder`. Raises `StageError` if the folder holds something else."""
        ...

    def push(self, built: Built, ref: str) -> Pushed:
        """Sends the image, and its weights as the image `TAG-weights` beside it; raises what `Registry.push` raises."""
        ...

    def config(self, ref: str) -> tuple[str, Mapping[str, Any]]:
        """The digest and the config of an image in a registry. Raises `StageError` if there is none of that reference."""
        ...


class Registry(Protocol):
    """Registries that speak OCI's distribution API.

    Every verb raises `Unavailable` when the registry does not answer, `SystemFault` when it refuses (credentials, names), and
    `CorruptArtifact` when bytes do not have the digest that names them.
    """

    def push(self, image: Image, ref: str, *, mount_from: Sequence[str] = ()) -> Pushed:
        """Sends the blobs that the registry lacks, then the manifest, and moves the tag last: a push that fails has published
        nothing. `mount_from` are repositories of the same registry that may hold blobs already."""
        ...

    def resolve(self, ref: str) -> str | None:
        """The digest that the reference stands for now; None if there is no such tag or manifest."""
        ...

    def manifest(self, ref: str) -> bytes:
        """The manifest's bytes, verified where the reference has a digest. Raises `KeyError` if there is none."""
        ...

    def blob(self, ref: str, digest: str, target: Path) -> Path:
        """Writes the blob of the reference's repository to the file `target`, verified, and returns it."""
        ...

    def check(self, ref: str, digest: str) -> None:
        """Reads the blob of the reference's repository and keeps nothing. Raises `CorruptArtifact` if it has another digest."""
        ...

    def attach(
        self,
        ref: str,
        subject: str,
        artifact_type: str,
        blobs: Sequence[Blob],
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """Publishes the blobs as a referrer of the manifest whose digest is `subject`; returns the referrer's digest."""
        ...

    def referrers(self, ref: str, digest: str) -> Sequence[Referrer]:
        """What names the manifest of that digest as its subject."""
        ...
