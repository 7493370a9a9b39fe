"""References: which registry, which repository of it, and which manifest there, read as Docker reads them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from drivetrain.errors import StageError

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_HUB = ("docker.io", "index.docker.io")
_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference taken apart. `host` has the port with it; `tag` and `digest` are empty where there is none."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository with its host."""
        return f"{self.host}/{self.repository}"

    @property
    def wanted(self) -> str:
        """By what the manifest is asked for: the digest where there is one."""
        return self.digest or self.tag or "latest"

    @property
    def api(self) -> str:
        """The host that is spoken to; Docker Hub's has another name than its references."""
        return _HUB_API if self.host in _HUB else self.host

    @property
    def is_local(self) -> bool:
        """Whether the host is this machine, where a registry may do without TLS."""
        bare = self.host.rpartition(":")[0] if re.search(r":[0-9]+$", self.host) else self.host
        if bare == "localhost":
            return True
        try:
            return ipaddress.ip_address(bare.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Ref:
    """The reference `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`; without a host it is one of Docker Hub. Raises `StageError` if it is
    none."""
    bare, at, digest = text.partition("@")
    head, slash, last = bare.rpartition("/")
    last, colon, tag = last.partition(":")
    path = f"{head}{slash}{last}"
    first, _, rest = path.partition("/")
    host, repository = (first, rest) if rest and _is_host(first) else (_HUB[0], path)
    if host in _HUB and "/" not in repository:
        repository = f"library/{repository}"
    if (
        not (_HOST.fullmatch(host) and _REPOSITORY.fullmatch(repository))
        or (colon and not _TAG.fullmatch(tag))
        or (at and not _DIGEST.fullmatch(digest))
    ):
        raise StageError(
            f"{text!r} is no reference of an image",
            hint="HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST], the repository in lower case",
        )
    return Ref(host, repository, tag, digest)


def _is_host(component: str) -> bool:
    return component == "localhost" or "." in component or ":" in component
