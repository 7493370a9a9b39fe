"""Keys as a user makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path


def new_key(path: Path, curve: str = "prime256v1") -> Path:
    """A private key, with its public key beside it under the suffix `.pub`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    openssl("ecparam", "-name", curve, "-genkey", "-noout", "-out", str(path))
    openssl("ec", "-in", str(path), "-pubout", "-out", str(path.with_suffix(".pub")))
    return path


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
