"""TLS by certificate and key files."""

from __future__ import annotations

import ssl

from drivetrain.errors import SystemFault


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """What a server proves itself with: PEM files, the certificate with its chain. Raises `SystemFault` for files that do not do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password function OpenSSL would ask at the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise SystemFault(
            f"cannot use the certificate {certificate} with the key {key}: {error}",
            hint="both have to be PEM files that can be read, the key without a password and made for this certificate",
        ) from error
    return context


def client_context(authority: str | None = None) -> ssl.SSLContext:
    """What a client checks servers with: the system's authorities, or those of a PEM file. Raises `SystemFault` for a bad file."""
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise SystemFault(
            f"cannot read certificate authorities from {authority}: {error}", hint="name a PEM file of certificates"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
