"""Signatures without a key: an identity provider says who is signing, sigstore's authority gives a certificate for minutes, and its public
log keeps when that was. This needs the provider that a pipeline's platform has (GitHub, GitLab, Google's) and the internet."""

from __future__ import annotations

from pathlib import Path

import model_signing
from sigstore import dsse
from sigstore.errors import Error as SigstoreError
from sigstore.models import Bundle, ClientTrustConfig
from sigstore.oidc import IdentityToken, detect_credential
from sigstore.sign import SigningContext
from sigstore.verify import Verifier, policy

from drivetrain.backends.images import Keys
from drivetrain.errors import SystemFault, Untrusted


class Keyless:
    """See `Signing`. `identity` and `issuer` are whom a certificate has to name."""

    def __init__(self, identity: str, issuer: str) -> None:
        self._identity = identity
        self._issuer = issuer

    @property
    def can_sign(self) -> bool:
        """Whether an identity provider is here."""
        return _token() is not None

    def sign(self, statement: bytes) -> bytes:
        """See `Signing`."""
        token = _needed()
        try:
            context = SigningContext.from_trust_config(ClientTrustConfig.production())
            with context.signer(IdentityToken(token)) as signer:
                return signer.sign_dsse(dsse.Statement(statement)).to_json().encode()
        except SigstoreError as error:
            raise SystemFault(f"sigstore gives no signature: {error}") from error

    def check(self, bundle: bytes, digest: str) -> bytes:
        """See `Signing`."""
        wanted = policy.Identity(identity=self._identity, issuer=self._issuer)
        try:
            _, statement = Verifier.production().verify_dsse(Bundle.from_json(bundle), wanted)
        except (SigstoreError, ValueError) as error:
            raise Untrusted(f"{digest} is not signed by {self._identity}: {error}", digest=digest) from error
        return statement

    def sign_model(self, folder: Path, target: Path) -> None:
        """See `Signing`."""
        token = _needed()
        try:
            model_signing.signing.Config().use_sigstore_signer(identity_token=token).sign(folder, target)
        except SigstoreError as error:
            raise SystemFault(f"sigstore gives no signature: {error}") from error

    def check_model(self, folder: Path, signature: Path, digest: str) -> None:
        """See `Signing`."""
        verifier = model_signing.verifying.Config()
        try:
            verifier.use_sigstore_verifier(identity=self._identity, oidc_issuer=self._issuer).verify(folder, signature)
        except (SigstoreError, ValueError, KeyError) as error:
            raise Untrusted(f"the model {digest} is not signed by {self._identity}: {error}", digest=digest) from error


def open_keyless(keys: Keys) -> Keyless:
    """Signatures by whom the identity provider names."""
    return Keyless(keys.identity, keys.issuer)


def _token() -> str | None:
    try:
        return detect_credential()
    except SigstoreError as error:
        raise SystemFault(f"the identity provider of this machine gives no token: {error}") from error


def _needed() -> str:
    found = _token()
    if found is None:
        raise SystemFault(
            "nobody says here who is signing: this machine has no identity provider",
            hint="package.sign.key is for where there is none",
        )
    return found
