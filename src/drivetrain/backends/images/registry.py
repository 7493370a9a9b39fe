"""Registries that speak OCI's distribution API, Docker's among them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from drivetrain.backends.images import INDEX, MANIFEST, PIECE, Blob, Image, Pushed, Referrer, references, referring
from drivetrain.backends.images.connection import CERTIFICATES, Answer, Connection
from drivetrain.backends.images.references import Ref
from drivetrain.backends.images.uploads import Moved, Stopped, patiently, send
from drivetrain.errors import CorruptArtifact, StageError, SystemFault, Unavailable

_AT_ONCE = 4
"""Blobs that are sent at the same time: enough to keep one line busy while another waits for the registry's disk."""
_MOST_MANIFEST = 4 << 20
"""Bytes of a manifest; the specification has registries refuse larger ones."""
_AGAIN = "push the image again from where it was built"
_DOCKER = "application/vnd.docker.distribution.manifest"
_ACCEPT = ", ".join((MANIFEST, INDEX, f"{_DOCKER}.v2+json", f"{_DOCKER}.list.v2+json"))


class OciRegistry:
    """See `Registry`. `credentials` are files as `docker login` writes them."""

    def __init__(self, credentials: Sequence[Path] = (), certificates: Sequence[Path] = CERTIFICATES) -> None:
        self._credentials = credentials
        self._certificates = certificates
        self._connections: dict[str, Connection] = {}
        self._listing = threading.Lock()

    def push(self, image: Image, ref: str, *, mount_from: Sequence[str] = ()) -> Pushed:
        """See `Registry`. Of `mount_from` those count that lie in the registry that is pushed to. A `ref` with a digest in place of a tag
        publishes the image under its digest alone."""
        began = time.monotonic()
        target = references.parse(ref)
        if target.digest and target.digest != image.digest:
            raise StageError(f"{ref} names another image than {image.digest}")
        connection = self._connection(target)
        moved = Moved()
        if not self._has(target, image.digest):
            moved = _send_all(connection, target.repository, image.blobs, _repositories(mount_from, target))
        if target.digest and not target.tag:
            self._put(target, target.digest, image.manifest, image.media_type)
        else:
            self._put(target, target.tag or "latest", image.manifest, image.media_type)
        seconds = time.monotonic() - began
        sent = moved.sent + len(image.manifest)
        return Pushed(f"{target.name}@{image.digest}", image.digest, sent, moved.mounted, seconds)

    def resolve(self, ref: str) -> str | None:
        """See `Registry`."""
        wanted = references.parse(ref)
        where = f"/v2/{wanted.repository}/manifests/{wanted.wanted}"
        answer = self._ask("HEAD", wanted, where, (200, 404))
        if answer.status_code == 404:
            return None
        told = answer.headers.get("Docker-Content-Digest")
        return told or _digest(self.manifest(ref))

    def manifest(self, ref: str) -> bytes:
        """See `Registry`."""
        return self._get(references.parse(ref)).content

    def blob(self, ref: str, digest: str, target: Path) -> Path:
        """See `Registry`. Goes on where the connection broke; `target` is written when all of it is there and right."""
        wanted = references.parse(ref)
        beside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            beside.write_bytes(b"")
            patiently(lambda: self._download(wanted, digest, beside))
            found = _digest_of_file(beside)
            if found != digest:
                raise _altered(wanted, digest, found)
            os.replace(beside, target)
        except OSError as error:
            raise SystemFault(f"{target} cannot be written: {error.strerror}") from error
        finally:
            beside.unlink(missing_ok=True)
        return target

    def check(self, ref: str, digest: str) -> None:
        """See `Registry`."""
        wanted = references.parse(ref)

        def read() -> str:
            found = hashlib.sha256()
            with self._blob(wanted, digest, 0) as answer, self._connection(wanted).broken():
                for piece in answer.iter_content(PIECE):
                    found.update(piece)
            return f"sha256:{found.hexdigest()}"

        found = patiently(read)
        if found != digest:
            raise _altered(wanted, digest, found)

    def attach(
        self,
        ref: str,
        subject: str,
        artifact_type: str,
        blobs: Sequence[Blob],
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """See `Registry`. Where the registry has no referrers API the tag is kept that the specification gives in its place."""
        target = references.parse(ref)
        about = self._get(Ref(target.host, target.repository, digest=subject))
        kind = about.headers.get("Content-Type", MANIFEST)
        told = referring.manifest(artifact_type, blobs, Blob(subject, len(about.content), kind), annotations or {})
        digest = _digest(told)
        with referring.empty() as nothing:
            _send_all(self._connection(target), target.repository, (*blobs, nothing), ())
        answer = self._put(target, digest, told, MANIFEST)
        if "OCI-Subject" not in answer.headers:
            self._list(target, subject, Referrer(digest, artifact_type, len(told), annotations or {}))
        return digest

    def referrers(self, ref: str, digest: str) -> Sequence[Referrer]:
        """See `Registry`."""
        target = references.parse(ref)
        where: str | None = f"/v2/{target.repository}/referrers/{digest}"
        found: list[Referrer] = []
        while where is not None:
            answer = self._ask("GET", target, where, (200, 404))
            if answer.status_code == 404 or not answer.headers.get("Content-Type", "").startswith(INDEX):
                return self._listed(target, digest)
            found += referring.parse(answer.content)
            where = answer.links.get("next", {}).get("url")
        return found

    # The tag in place of the referrers API

    def _list(self, target: Ref, subject: str, new: Referrer) -> None:
        """Adds to the list behind the tag, and looks whether it is there. Another process that adds at the very same time may still
        overwrite it: registries have no way to prevent that."""

        def add() -> None:
            known = self._listed(target, subject)
            if new.digest in {entry.digest for entry in known}:
                return
            self._put(target, _fallback(subject), referring.index([*known, new]), INDEX)
            if new.digest not in {entry.digest for entry in self._listed(target, subject)}:
                raise Unavailable(f"{new.digest} was taken from the referrers of {subject} while it was added")

        with self._listing:
            patiently(add)

    def _listed(self, target: Ref, subject: str) -> list[Referrer]:
        where = f"/v2/{target.repository}/manifests/{_fallback(subject)}"
        answer = self._ask("GET", target, where, (200, 404))
        return referring.parse(answer.content) if answer.status_code == 200 else []

    # Requests

    def _connection(self, ref: Ref) -> Connection:
        if ref.host not in self._connections:
            self._connections[ref.host] = Connection(ref, self._credentials, self._certificates)
        return self._connections[ref.host]

    def _ask(self, method: str, ref: Ref, where: str, expected: tuple[int, ...]) -> Answer:
        connection, accept = self._connection(ref), {"Accept": _ACCEPT}
        return patiently(lambda: connection.send(method, where, ref.repository, expected, headers=accept))

    def _has(self, ref: Ref, digest: str) -> bool:
        return self._ask("HEAD", ref, f"/v2/{ref.repository}/manifests/{digest}", (200, 404)).status_code == 200

    def _put(self, ref: Ref, name: str, manifest: bytes, media_type: str) -> Answer:
        connection, where = self._connection(ref), f"/v2/{ref.repository}/manifests/{name}"
        headers = {"Content-Type": media_type}

        def put() -> Answer:
            answer = connection.send("PUT", where, ref.repository, (200, 201, 202, 400), headers=headers, body=manifest)
            if answer.status_code != 400:
                return answer
            refusal = connection.refusal(answer, "PUT")
            # Blobs that were there a moment ago: another push of the same ones is writing them over, which some registries do in place.
            raise Unavailable(str(refusal)) if b"MANIFEST_BLOB_UNKNOWN" in answer.content else refusal

        answer = patiently(put)
        told, digest = answer.headers.get("Docker-Content-Digest"), _digest(manifest)
        if told not in (None, digest):
            raise CorruptArtifact(
                f"the registry {ref.host} has another manifest now than was sent: {told}", digest=digest
            )
        return answer

    def _get(self, ref: Ref) -> Answer:
        answer = self._ask("GET", ref, f"/v2/{ref.repository}/manifests/{ref.wanted}", (200, 404))
        if answer.status_code == 404:
            raise KeyError(f"there is no {ref}")
        if len(answer.content) > _MOST_MANIFEST:
            raise SystemFault(f"the manifest of {ref} has over {_MOST_MANIFEST >> 20} MiB")
        wanted = ref.digest or answer.headers.get("Docker-Content-Digest") or ""
        found = _digest(answer.content)
        if wanted.startswith("sha256:") and found != wanted:
            raise _altered(ref, wanted, found)
        return answer

    def _download(self, ref: Ref, digest: str, beside: Path) -> None:
        have = beside.stat().st_size
        with self._blob(ref, digest, have) as answer, beside.open("ab") as file:
            if answer.status_code == 416:  # all of it was there already
                return
            if answer.status_code == 200:
                file.truncate(0)
            with self._connection(ref).broken():
                for piece in answer.iter_content(PIECE):
                    file.write(piece)

    def _blob(self, ref: Ref, digest: str, start: int) -> Answer:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        where, expected = f"/v2/{ref.repository}/blobs/{digest}", (200, 206, 404, 416)
        answer = self._connection(ref).send("GET", where, ref.repository, expected, headers=headers, stream=True)
        if answer.status_code == 404:
            answer.close()
            raise CorruptArtifact(f"{ref.name} has no blob {digest}", digest=digest, hint=_AGAIN)
        return answer


def open_registry(credentials: Sequence[Path] = ()) -> OciRegistry:
    """Registries, with the credentials in the files."""
    return OciRegistry(credentials)


def _send_all(connection: Connection, repository: str, blobs: Sequence[Blob], mount_from: Sequence[str]) -> Moved:
    """Sends what is lacking, several at a time; the first that fails stops the others."""
    stop = threading.Event()
    each = {blob.digest: blob for blob in blobs}.values()
    # The largest first: it is what the others would have to wait for.
    ordered = sorted(each, key=lambda blob: -blob.size)
    with ThreadPoolExecutor(_AT_ONCE, "push") as pool:
        tasks = [pool.submit(send, connection, repository, blob, mount_from, stop) for blob in ordered]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            errors = [error for task in done if (error := task.exception())]
        finally:
            stop.set()
    failed = [error for error in errors if not isinstance(error, Stopped)]
    if failed:
        raise failed[0]
    moved = [task.result() for task in tasks]
    return Moved(sum(part.sent for part in moved), sum(part.mounted for part in moved))


def _repositories(names: Sequence[str], target: Ref) -> list[str]:
    """Those that lie in the target's registry and are not the target."""
    found = [references.parse(name) for name in names]
    return list(
        dict.fromkeys(
            ref.repository for ref in found if ref.host == target.host and ref.repository != target.repository
        )
    )


def _altered(ref: Ref, digest: str, found: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"the registry {ref.host} gives other bytes for {digest}: they have the digest {found}",
        digest=digest,
        hint=_AGAIN,
    )


def _fallback(subject: str) -> str:
    return subject.replace(":", "-")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
