"""Credentials for a registry: those that `docker login` and `podman login` keep, in a file or with a credential helper.

A helper is a program `docker-credential-NAME`, which the file names for one registry (`credHelpers`) or for all (`credsStore`):
https://docs.docker.com/reference/cli/docker/login/#credential-helper-protocol.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.errors import SystemFault

_HUB_KEY = "https://index.docker.io/v1/"
"""Under this name Docker keeps the credentials for its own hub."""
_NO_USER = "<token>"
"""The user's name with which a helper marks an identity token."""
_NOT_FOUND = "credentials not found"
"""What a helper says that has nothing under a name, in words that its protocol gives."""
_PATIENCE = 120.0
"""Seconds that a helper has: some ask for another token first, or have the user unlock a key ring."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is known for a registry. `basic` are user and password as the header `Authorization` has them; `identity` is a token that
    takes their place where tokens are given. `lacking` says in words why neither was found, or not `basic`; `hint` what to do about a
    helper that gives none."""

    basic: str = ""
    identity: str = ""
    lacking: str = "there are none here"
    hint: str = ""


def find(host: str, files: Sequence[Path]) -> Credentials:
    """Those of the first file that has some for the registry.

    A helper that is missing or fails is no error: what is public can be had without. Raises `SystemFault` for a file that cannot be read.
    """
    none = Credentials()
    for path in files:
        try:
            told = json.loads(path.read_bytes()) if path.is_file() else {}
            for found in _found(told, host, path):
                if found.basic or found.identity:
                    return found
                none = none if none.hint else found
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            raise SystemFault(f"the credentials in {path} cannot be read: {error}") from error
    return none


def _found(told: Mapping[str, Any], host: str, path: Path) -> Iterator[Credentials]:
    for name in _names(host):
        entry = (told.get("auths") or {}).get(name) or {}
        if entry.get("identitytoken"):
            yield _of_identity(entry["identitytoken"])
        elif entry.get("auth"):
            yield Credentials(basic=entry["auth"])
        for helper in dict.fromkeys([(told.get("credHelpers") or {}).get(name), told.get("credsStore")]):
            if helper:
                yield _asked(f"docker-credential-{helper}", name, path)


def _names(host: str) -> Sequence[str]:
    """Those under which the credentials may be."""
    if host == "docker.io":
        return [_HUB_KEY]
    names = [host, f"https://{host}"]
    for one, other in (("localhost", "127.0.0.1"), ("127.0.0.1", "localhost")):
        names += [host.replace(one, other)] if host.partition(":")[0] == one else []
    return names


def _of_identity(token: str) -> Credentials:
    return Credentials(identity=token, lacking="what is here for it is an identity token, which it does not take")


def _asked(program: str, name: str, path: Path) -> Credentials:
    """What the helper has under the name."""
    found = shutil.which(program)
    if found is None:
        return _nothing(program, name, path, "is not on the PATH")
    try:
        ended = subprocess.run(
            [found, "get"], input=name, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        return _nothing(program, name, path, f"has not answered in {_PATIENCE:.0f} seconds")
    except OSError as error:
        return _nothing(program, name, path, f"cannot be started: {error.strerror}")
    if ended.returncode != 0:
        said = ended.stderr.strip() or ended.stdout.strip()
        if _NOT_FOUND in said:
            return Credentials(lacking=f"{program}, which {path} names for them, has none")
        return _nothing(program, name, path, f"fails: {said[-300:] or f'exit code {ended.returncode}'}")
    try:
        answer = json.loads(ended.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        return _nothing(program, name, path, "answers with something else than credentials")
    if user == _NO_USER:
        return _of_identity(secret)
    return Credentials(basic=base64.b64encode(f"{user}:{secret}".encode()).decode())


def _nothing(program: str, name: str, path: Path, why: str) -> Credentials:
    hint = f"`echo {name} | {program} get` has to print them, started by the same user with the same PATH"
    return Credentials(lacking=f"{program}, which {path} names for them, {why}", hint=hint)
