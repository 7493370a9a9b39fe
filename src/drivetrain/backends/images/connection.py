"""A registry spoken to: the requests of OCI's distribution API with credentials, and what can go wrong as errors of ours.

The session, Docker's credentials and the exchange for tokens are those of the oras client library. Its own verbs are not used: they
begin a blob that was cut off from the start or not at all, mount none from another repository, need two minutes of retries before they
say that a password is wrong, and answer a registry that asks for a password as if it had asked for a token.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import oras.logger
import requests
from oras.container import Container
from oras.provider import Registry as OrasClient

from drivetrain.backends.images.references import Ref
from drivetrain.errors import SystemFault, Unavailable

CERTIFICATES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
"""Where Docker and podman look for the certificate authority of a host, as `HOST[:PORT]/*.crt`."""
_TIMEOUT = (10.0, 300.0)
"""Seconds to connect, and between two bytes: a registry may digest a blob of many gigabytes before it says that it has it."""
_HUB_KEY = "https://index.docker.io/v1/"
"""Under this name Docker keeps the credentials for its own hub."""
_SPACE = re.compile(r"no space left|disk quota|disk full", re.I)


Answer = requests.Response


class Body(Protocol):
    """What is sent: pieces of bytes, from the start whenever it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class Connection:
    """A registry. Several threads may use it at once."""

    def __init__(self, ref: Ref, credentials: Sequence[Path], certificates: Sequence[Path] = CERTIFICATES) -> None:
        oras.logger.logger.set_level(logging.CRITICAL)  # what it would say is in our errors
        self.host = ref.host
        self._client = OrasClient(hostname=ref.api)
        self._authority = _authority(ref.host, certificates)
        self._client.session.headers["User-Agent"] = "drivetrain"
        # This machine is behind no proxy of its own; and a password in ~/.netrc would replace the token that is sent.
        self._client.session.trust_env = not ref.is_local
        self._client.session.auth = _as_it_is
        self._credentials = credentials
        self._loaded = False
        self._headers: dict[str, str] = {}
        """The header `Authorization` by repository: tokens are for one each."""
        self.address = f"{self._scheme(ref)}://{ref.api}"

    def send(
        self,
        method: str,
        where: str,
        repository: str,
        expected: Collection[int],
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | bytes | None = None,
        stream: bool = False,
    ) -> Answer:
        """The answer to a request at the path or address `where`, with credentials where the registry wants them.

        Raises `Unavailable` if the connection breaks or the registry fails, `SystemFault` if it refuses, or if it answers with a
        status that is not `expected`.
        """
        url = where if "://" in where else f"{self.address}{where}"
        answer = self._once(method, url, repository, headers, body, stream)
        if answer.status_code == 401:
            self._headers[repository] = self._authorization(answer)
            answer = self._once(method, url, repository, headers, body, stream)
        if answer.status_code in expected:
            return answer
        raise self.refusal(answer, method)

    def _once(
        self,
        method: str,
        url: str,
        repository: str,
        headers: Mapping[str, str] | None,
        body: Body | bytes | None,
        stream: bool,
    ) -> Answer:
        told = dict(headers or {})
        # An upload may be sent elsewhere (a store of objects with signed addresses), which has no business with the password.
        if repository in self._headers and url.startswith(f"{self.address}/"):
            told["Authorization"] = self._headers[repository]
        with self.broken():
            answer: Answer = self._client.session.request(
                method, url, headers=told, data=body, stream=stream, timeout=_TIMEOUT,
                allow_redirects=method in ("GET", "HEAD"), verify=self._authority,
            )  # fmt: skip
            return answer

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Turns what the HTTP library raises into errors of ours; also for an answer that is still being read."""
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise SystemFault(
                f"the registry {self.host} has a certificate that is not trusted: {_innermost(error)}",
                hint=f"put its authority's certificate to {CERTIFICATES[0]}/{self.host}/ca.crt",
            ) from error
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise SystemFault(f"the registry {self.host} answers with an address that is none: {error}") from error
        except requests.exceptions.RequestException as error:
            raise Unavailable(
                f"the registry {self.host} does not answer: {_innermost(error)}",
                hint="is it up, and is that its address?",
            ) from error

    # Which protocol

    def _scheme(self, ref: Ref) -> str:
        """TLS, but for a registry on this machine that speaks without."""
        if not ref.is_local:
            return "https"
        try:
            answer = self._client.session.get(f"http://{ref.api}/v2/", timeout=_TIMEOUT, allow_redirects=False)
        except requests.exceptions.RequestException:
            return "http"  # not there, or not yet: the first request will tell
        return "https" if answer.status_code in (301, 308, 400, 426) else "http"

    # Who we are

    def _authorization(self, answer: Answer) -> str:
        """What the registry wants as the header `Authorization`. Raises `SystemFault` if there are no credentials, or if who gives
        tokens refuses them."""
        challenge = answer.headers.get("Www-Authenticate", "")
        self._load()
        known = getattr(self._client.auth, "_basic_auth", None)
        found: str | None = f"Basic {known}" if known else None
        if not challenge.lower().startswith("basic"):
            found = self._token(answer, bool(known))
        if found is None:
            raise SystemFault(f"the registry {self.host} wants credentials, and there are none here", hint=self._login)
        return found

    def _token(self, answer: Answer, is_known: bool) -> str | None:
        auth = self._client.auth
        auth.token = None  # the one from before is for another repository, or has expired
        try:
            headers, has_one = auth.authenticate_request(answer, {})
        except requests.exceptions.RequestException as error:
            raise Unavailable(f"who gives tokens for {self.host} does not answer: {_innermost(error)}") from error
        except (ValueError, AttributeError) as error:
            raise SystemFault(f"the registry {self.host} asks for credentials in a way that is not known") from error
        if has_one:
            return str(headers["Authorization"])
        if is_known:
            raise SystemFault(f"no token for {self.host}: the credentials are refused", hint=self._login)
        return None

    def _load(self) -> None:
        """Has the client know the credentials: those of the first file that has some for this registry."""
        auth, names = self._client.auth, [_HUB_KEY] if self.host == "docker.io" else [self.host, f"https://{self.host}"]
        for path in () if self._loaded else self._credentials:
            try:
                told = json.loads(path.read_bytes()) if path.is_file() else {}
                # The library would mix all files, and Docker's own among them, in an order of chance.
                auth._auth_config = {name: told.get(name) or {} for name in ("auths", "credHelpers", "credsStore")}
                for name in names:
                    auth.load_configs(Container("any", registry=name))
            except (ValueError, KeyError, AttributeError, OSError) as error:
                raise SystemFault(f"the credentials in {path} cannot be read: {error}") from error
            if getattr(auth, "_basic_auth", None):
                break
        self._loaded = True

    @property
    def _login(self) -> str:
        return f"`docker login {self.host}` or `podman login {self.host}`, as a user who may push there"

    # What went wrong

    def refusal(self, answer: Answer, method: str) -> SystemFault:
        """The error that an answer stands for."""
        status, told = answer.status_code, _told(answer)
        what = f"the registry {self.host} answers {status} to {method} {_path(answer)}: {told or answer.reason}"
        if _SPACE.search(told):
            return SystemFault(f"the registry {self.host} has no space left", hint="make room there, then push again")
        if status == 401:
            return SystemFault(f"the registry {self.host} refuses the credentials", hint=self._login)
        if status == 403:
            return SystemFault(f"the registry {self.host} refuses: {told or answer.reason}", hint=self._login)
        if status in (408, 429) or status >= 500:
            return Unavailable(what)
        return SystemFault(what)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _authority(host: str, certificates: Sequence[Path]) -> bool | str:
    for directory in certificates:
        for path in sorted((directory / host).glob("*.crt")) if (directory / host).is_dir() else ():
            return str(path)
    return True


def _told(answer: Answer) -> str:
    """The errors in an answer's body, in words."""
    try:
        entries = json.loads(answer.content).get("errors") or []
        return "; ".join(" ".join(str(part) for part in _parts(entry) if part) for entry in entries)
    except (ValueError, AttributeError, requests.exceptions.RequestException):
        return ""


def _parts(entry: Mapping[str, Any]) -> tuple[object, ...]:
    detail = entry.get("detail")
    # A Go program writes an error of the operating system as its number.
    if isinstance(detail, dict) and detail.get("Enclosed", {}).get("Err") in (errno.ENOSPC, errno.EDQUOT):
        detail = "no space left"
    return entry.get("code", ""), entry.get("message", ""), detail or ""


def _path(answer: Answer) -> str:
    return str(answer.request.path_url).partition("?")[0]


def _innermost(error: BaseException) -> str:
    """The cause at the bottom, which is the one that says something."""
    cause = error.args[0] if error.args and isinstance(error.args[0], BaseException) else error
    reason = getattr(cause, "reason", None) or cause
    return str(reason).rpartition(">: ")[2] or str(reason)
