"""TLS, and tokens: a registry that sends its users to somebody else for them."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from drivetrain.backends.images import uploads
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.errors import SystemFault, Unavailable
from tests.backends.images.registries import PASSWORD, USER, RegistryServer, docker_config
from tests.backends.images.test_registry import image

_SERVICE, _ISSUER = "the registry", "who gives tokens"


class Certificate:
    """A self-signed certificate for localhost, with its key."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.path, self.key_path = folder / "tls.crt", folder / "tls.key"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.key_path.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def token(self, access: list[dict[str, Any]]) -> str:
        """A token of Docker's kind: a JWT with the certificate in it."""
        der = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        now = int(time.time())
        claims = {
            "iss": _ISSUER, "sub": USER, "aud": _SERVICE, "exp": now + 60, "nbf": now - 5, "iat": now,
            "jti": hashlib.sha256(str(time.time_ns()).encode()).hexdigest(), "access": access,
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
        signed = ".".join(_plain(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_plain(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


IDENTITY = "an identity token"


class TokenServer:
    """Gives whoever has the password or the identity token a token for what is asked, and anybody one to read."""

    def __init__(self, certificate: Certificate, *, tls: bool = False) -> None:
        self.asked: list[str] = []
        self.fails = 0
        """The status with which it answers who has an identity token; 0: it gives tokens."""
        owner, wanted = self, "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                pass

            def do_GET(self) -> None:
                told = self.headers.get("Authorization")
                if told not in (None, wanted):
                    self.send_error(401)
                    return
                query = parse_qs(urlsplit(self.path).query)
                self._give(query, "token", told is not None)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                granted = form["grant_type"] == ["refresh_token"] and form["service"] == [_SERVICE]
                if owner.fails or not granted or form["refresh_token"] != [IDENTITY] or not form["client_id"]:
                    self.send_error(owner.fails or 401)
                    return
                self._give(form, "access_token", True)

            def _give(self, told: dict[str, list[str]], key: str, known: bool) -> None:
                scopes = [part for text in told.get("scope", []) for part in text.split()]
                owner.asked += scopes
                access = []
                for scope in scopes:
                    kind, name, actions = scope.split(":")
                    allowed = [action for action in actions.split(",") if known or action == "pull"]
                    access.append({"type": kind, "name": name, "actions": allowed})
                data = json.dumps({key: certificate.token(access)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"localhost:{self._server.server_address[1]}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.path, certificate.key_path)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.realm = f"{'https' if tls else 'http'}://{self.host}/token"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def served(tmp_path: Path, *, tls: bool) -> Iterator[tuple[RegistryServer, TokenServer]]:
    certificate = Certificate(tmp_path / "issuer")
    giver = TokenServer(certificate, tls=tls)
    auth = {"realm": giver.realm, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": str(certificate.path)}
    server = RegistryServer(tmp_path / "registry" / "data", auth={"token": auth})
    yield server, giver
    server.kill()
    giver.close()


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[tuple[RegistryServer, TokenServer]]:
    with served(tmp_path, tls=False) as found:
        yield found


@pytest.mark.parametrize(
    "entry", [{"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}, {"identitytoken": IDENTITY}]
)
def test_who_gives_tokens_is_known_by_an_authority_of_its_own(tmp_path: Path, entry: dict[str, str]) -> None:
    with served(tmp_path, tls=True) as (server, giver):
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: entry}}))
        made, ref = image(tmp_path, b"x"), f"{server.host}/a:1"
        with pytest.raises(SystemFault, match=r"who gives tokens for .* not trusted") as refused:
            open_registry([tmp_path / "config.json"]).push(made, ref)
        assert f"{giver.host}/ca.crt" in refused.value.hint
        known = tmp_path / "certs.d" / giver.host
        known.mkdir(parents=True)
        (known / "ca.crt").write_bytes((tmp_path / "issuer" / "tls.crt").read_bytes())
        registry = OciRegistry([tmp_path / "config.json"], certificates=[tmp_path / "certs.d"])
        registry.push(made, ref)
        assert registry.resolve(ref) == made.digest


def test_a_token_is_fetched_for_each_repository_and_for_those_that_are_mounted_from(
    tokens: tuple[RegistryServer, TokenServer], tmp_path: Path
) -> None:
    server, giver = tokens
    registry = open_registry([docker_config(tmp_path / "config.json", server.host)])
    registry.push(image(tmp_path, b"base" * 1000), f"{server.host}/base:1")
    made = image(tmp_path, b"base" * 1000, b"mine")
    pushed = registry.push(made, f"{server.host}/mine:1", mount_from=[f"{server.host}/base"])
    assert pushed.bytes_mounted == 4000
    assert "repository:base:pull" in giver.asked
    # Whoever has no password may read.
    assert open_registry().resolve(f"{server.host}/mine:1") == made.digest


def test_who_may_not_write_or_has_the_wrong_password_is_told_so(
    tokens: tuple[RegistryServer, TokenServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WAITS", (0.01,))
    server, giver = tokens
    made = image(tmp_path, b"x")
    with pytest.raises(SystemFault, match="refuses the credentials"):
        open_registry().push(made, f"{server.host}/a:1")
    wrong = docker_config(tmp_path / "wrong.json", server.host, "another")
    with pytest.raises(SystemFault, match="credentials are refused"):
        open_registry([wrong]).push(made, f"{server.host}/a:1")
    giver.close()
    with pytest.raises(Unavailable, match="gives tokens"):
        open_registry([wrong]).push(made, f"{server.host}/a:1")


def test_neither_a_proxy_nor_netrc_comes_between(
    tokens: tuple[RegistryServer, TokenServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = tokens
    (tmp_path / "netrc").write_text("machine localhost login somebody password another\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    registry = open_registry([docker_config(tmp_path / "config.json", server.host)])
    assert registry.push(image(tmp_path, b"x"), f"{server.host}/a:1").bytes_sent


def test_tls_is_spoken_with_an_authority_that_is_known_and_no_other(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path / "tls")
    server = RegistryServer(
        tmp_path / "registry" / "data",
        tls={"certificate": str(certificate.path), "key": str(certificate.key_path)},
    )
    try:
        made = image(tmp_path, b"x")
        with pytest.raises(SystemFault, match="not trusted") as refused:
            open_registry().push(made, f"{server.host}/a:1")
        assert f"{server.host}/ca.crt" in refused.value.hint
        known = tmp_path / "certs.d" / server.host
        known.mkdir(parents=True)
        (known / "ca.crt").write_bytes(certificate.path.read_bytes())
        registry = OciRegistry(certificates=[tmp_path / "certs.d"])
        registry.push(made, f"{server.host}/a:1")
        assert registry.resolve(f"{server.host}/a:1") == made.digest
    finally:
        server.kill()
