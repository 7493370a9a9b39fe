"""A registry spoken to: the requests of OCI's distribution API with credentials, and what can go wrong as errors of ours.

The session and the exchange of a password for tokens are those of the oras client library. Its own verbs are not used: they
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
from urllib.parse import urlsplit

import oras.logger
import requests
from oras.auth.utils import parse_auth_header
from oras.provider import Registry as OrasClient

from drivetrain.backends.images import credentials as kept
from drivetrain.backends.images.credentials import Credentials
from drivetrain.backends.images.references import Ref
from drivetrain.errors import SystemFault, Unavailable

CERTIFICATES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
"""Where Docker and podman look for the certificate authority of a host, as `HOST[:PORT]/*.crt`."""
_TIMEOUT = (10.0, 300.0)
"""Seconds to connect, and between two bytes: a registry may digest a blob of many gigabytes before it says that it has it."""
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
        self._certificates = certificates
        self._authority = _authority(ref.host, certificates)
        self._client.session.headers["User-Agent"] = "drivetrain"
        # This machine is behind no proxy of its own; and a password in ~/.netrc would replace the token that is sent.
        self._client.session.trust_env = not ref.is_local
        self._client.session.auth = _as_it_is
        self._files = credentials
        self._known: Credentials | None = None
        """Found when the registry first wants some: to look costs a process where there is a credential helper."""
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
        known = self._load()
        if challenge.lower().startswith("basic"):
            found = f"Basic {known.basic}" if known.basic else None
        elif known.identity:
            found = self._exchanged(challenge, known.identity)
        else:
            found = self._token(answer, challenge, bool(known.basic))
        if found is None:
            raise SystemFault(
                f"the registry {self.host} wants credentials, and {known.lacking}", hint=known.hint or self._login
            )
        return found

    def _token(self, answer: Answer, challenge: str, is_known: bool) -> str | None:
        auth = self._client.auth
        host = _host(parse_auth_header(challenge).realm)
        auth._tls_verify = _authority(host, self._certificates)
        auth.token = None  # the one from before is for another repository, or has expired
        with self._gives_tokens(host):
            headers, has_one = auth.authenticate_request(answer, {})
        if has_one:
            return str(headers["Authorization"])
        if is_known:
            raise SystemFault(f"no token for {self.host}: the credentials are refused", hint=self._login)
        return None

    def _exchanged(self, challenge: str, identity: str) -> str:
        """A token for an identity token: the OAuth2 grant of https://distribution.github.io/distribution/spec/auth/oauth/."""
        asked = parse_auth_header(challenge)
        form = {"grant_type": "refresh_token", "client_id": "drivetrain", "refresh_token": identity}
        form |= {name: value for name, value in (("service", asked.service), ("scope", asked.scope)) if value}
        host = _host(asked.realm)
        with self._gives_tokens(host):
            answer = self._client.session.post(
                asked.realm,
                data=form,
                timeout=_TIMEOUT,
                verify=_authority(host, self._certificates),
                allow_redirects=False,
            )
            token = answer.json().get("access_token") if answer.status_code == 200 else None
        if answer.status_code >= 500:
            raise Unavailable(f"who gives tokens for {self.host} answers {answer.status_code}")
        if not token:
            raise SystemFault(
                f"no token for {self.host}: the identity token is refused ({answer.status_code})", hint=self._login
            )
        return f"Bearer {token}"

    @contextlib.contextmanager
    def _gives_tokens(self, host: str) -> Iterator[None]:
        """Turns what goes wrong with who gives tokens, who may be the registry itself or another `host`, into errors of ours."""
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise SystemFault(
                f"who gives tokens for {self.host} has a certificate that is not trusted: {_innermost(error)}",
                hint=f"put its authority's certificate to {CERTIFICATES[0]}/{host}/ca.crt",
            ) from error
        except (ValueError, AttributeError) as error:  # an address that is none, or an answer that is no JSON
            raise SystemFault(f"the registry {self.host} asks for credentials in a way that is not known") from error
        except requests.exceptions.RequestException as error:
            raise Unavailable(f"who gives tokens for {self.host} does not answer: {_innermost(error)}") from error

    def _load(self) -> Credentials:
        if self._known is None:
            self._known = kept.find(self.host, self._files)
            if self._known.basic:
                # The library would look for them in all files, Docker's own among them, in an order of chance.
                self._client.auth._basic_auth = self._known.basic
        return self._known

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
        if status in (401, 403):
            said = f"refuses: {told or answer.reason}" if status == 403 else "refuses the credentials"
            if self._known is not None and self._known.hint:  # there are none, and there should be
                said = f"refuses: {told or answer.reason}; {self._known.lacking}"
            hint = self._known.hint if self._known is not None else ""
            return SystemFault(f"the registry {self.host} {said}", hint=hint or self._login)
        if status in (408, 429) or status >= 500:
            return Unavailable(what)
        return SystemFault(what)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _host(realm: str | None) -> str:
    """Of who gives tokens."""
    return urlsplit(realm or "").netloc


def _authority(host: str, certificates: Sequence[Path]) -> bool | str:
    for directory in certificates if host else ():
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
