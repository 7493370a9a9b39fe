"""Signatures by a key file: of models as model-signing makes them, of images as in-toto statements in a DSSE envelope.

Both come as bundles of sigstore's kind, which cosign and model-signing read too. Keys are PEM files with an elliptic curve key, as
`openssl ecparam -name prime256v1 -genkey -noout` writes them.
"""

from __future__ import annotations

import ast
import binascii
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import model_signing
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from drivetrain.backends.images import BUNDLE, Keys
from drivetrain.errors import StageError, Untrusted

IN_TOTO = "application/vnd.in-toto+json"
_NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out signing.key; openssl ec -in signing.key -pubout -out signing.pub"


class KeyFile:
    """See `Signing`. Without a private key it can only check."""

    def __init__(self, private: Path | None, public: Path | None, password: str | None = None) -> None:
        self._password = password.encode() if password else None
        self._path = private
        if private is None and public is None:
            raise StageError("neither a private nor a public key is named", hint="package.sign.key or .public_key")
        self._public = _public(public) if public is not None else self._private.public_key()
        self._name = _name(self._public)

    @cached_property
    def _private(self) -> ec.EllipticCurvePrivateKey:
        """Read when something is signed: whoever only checks needs not have it."""
        assert self._path is not None
        return _private(self._path, self._password)

    @property
    def can_sign(self) -> bool:
        """Whether a private key is named."""
        return self._path is not None

    def sign(self, statement: bytes) -> bytes:
        """See `Signing`."""
        # Named for the key itself, not for the one that deployments are checked with: those two may be no pair.
        name = _name(self._private.public_key())
        envelope = Envelope(statement, IN_TOTO, {})
        envelope.sign(CryptoSigner(self._private, SSlibKey.from_crypto(self._private.public_key(), keyid=name)))
        bundle = {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": name}, "tlogEntries": []},
            "dsseEnvelope": envelope.to_dict(),
        }
        return json.dumps(bundle, sort_keys=True, separators=(",", ":")).encode()

    def check(self, bundle: bytes, digest: str) -> bytes:
        """See `Signing`."""
        told = self._of_our_key(bundle, digest)
        try:
            envelope = Envelope.from_dict(told["dsseEnvelope"])
            envelope.verify([SSlibKey.from_crypto(self._public, keyid=self._name)], 1)
        except VerificationError as error:
            raise Untrusted(f"{digest}: its signature was altered", digest=digest) from error
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise Untrusted(f"{digest}: its signature cannot be read", digest=digest) from error
        if envelope.payload_type != IN_TOTO:
            raise Untrusted(f"{digest}: what is signed is no statement, but {envelope.payload_type}", digest=digest)
        return bytes(envelope.payload)

    def sign_model(self, folder: Path, target: Path) -> None:
        """See `Signing`."""
        assert self._private is not None  # with an error of ours for a key that is none
        # The library hands the password on as it is, to one that wants bytes.
        signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=self._path, password=self._password)
        signer.sign(folder, target)

    def check_model(self, folder: Path, signature: Path, digest: str) -> None:
        """See `Signing`."""
        self._of_our_key(signature.read_bytes(), digest)
        with _PublicKeyFile(self._public) as public:
            verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
            try:
                verifier.verify(folder, signature)
            except InvalidSignature as error:
                raise Untrusted(f"the signature of the model {digest} was altered", digest=digest) from error
            except ValueError as error:
                raise Untrusted(
                    f"the model {digest} is not what was signed: {_changed(error)}", digest=digest
                ) from error
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise Untrusted(f"the signature of the model {digest} cannot be read", digest=digest) from error

    def _of_our_key(self, bundle: bytes, digest: str) -> Mapping[str, Any]:
        """The bundle, if it says that it was signed with our key; whether that is so the signature has to show."""
        try:
            told = json.loads(bundle)
            hint = told["verificationMaterial"]["publicKey"]["hint"]
        except (ValueError, KeyError, TypeError) as error:
            raise Untrusted(f"{digest}: its signature cannot be read, or is not one by a key", digest=digest) from error
        if hint != self._name:
            raise Untrusted(
                f"{digest} is signed with another key ({str(hint)[:12]}) than the one that is trusted ({self._name[:12]})",
                digest=digest,
            )
        return told  # type: ignore[no-any-return]


def open_keys(keys: Keys) -> KeyFile:
    """Signatures by the key files."""
    return KeyFile(keys.key, keys.public_key, keys.password)


class _PublicKeyFile:
    """A public key as a file, since model-signing reads no other."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="drivetrain-")
        self._path = Path(self._directory.name) / "key.pub"
        self._path.write_bytes(_pem(key))

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


def _private(path: Path, password: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password)
    except TypeError as error:
        raise StageError(
            f"{path} has a password, or has none although one is given", hint="package.sign.password_variable"
        ) from error
    except ValueError as error:
        raise StageError(
            f"{path} is no private key in PEM form, or its password is another one", hint=_NEW_KEY
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StageError(f"{path} is no key on an elliptic curve", hint=_NEW_KEY)
    return key


def _public(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(_read(path))
    except ValueError as error:
        raise StageError(f"{path} is no public key in PEM form", hint=_NEW_KEY) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise StageError(f"{path} is no key on an elliptic curve", hint=_NEW_KEY)
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageError(f"the key {path} cannot be read: {error.strerror}", hint=_NEW_KEY) from error


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _name(key: ec.EllipticCurvePublicKey) -> str:
    """The digest that model-signing names keys by in its bundles."""
    return hashlib.sha256(_pem(key)).hexdigest()


def _changed(error: ValueError) -> str:
    """Which files differ, without the bytes of their digests."""
    told = str(error)
    try:
        entries = [str(entry) for entry in ast.literal_eval(told.partition(": ")[2])]
    except (ValueError, SyntaxError, TypeError):
        return told
    return ", ".join(_in_words(entry) for entry in entries)


def _in_words(difference: str) -> str:
    changed = re.match(r"Hash mismatch for '(.*?)': Expected", difference)
    if changed:
        return f"{changed[1]} was changed"
    names = difference.rpartition("': ")[2]
    return f"{names} missing" if difference.startswith("Missing") else f"{names} too many"
