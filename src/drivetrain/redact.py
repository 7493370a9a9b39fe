"""Secrets kept out of whatever is written down: log lines, journal entries, messages."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH_?KEY)", re.I
)
_URL_PASSWORD = re.compile(r"(\w[\w+.-]*://[^\s:/@]*:)[^\s@/]+@")
_PASSWORD_OPTION = re.compile(r"(password=)[^\s,;&\"']+", re.I)
_SHORTEST = 6
MASK = "***"


class Redactor:
    """Masks the values of the environment's secrets (by the variables' names), and passwords inside URLs.

    Values under six characters are left: masking `1` or `yes` would hide half of every log.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        secrets = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
        # Logs are masked line by line, so the lines of a key or a JSON document are secrets of their own.
        pieces = {piece for value in secrets for piece in (value, *map(str.strip, value.splitlines()))}
        values = {piece for piece in pieces if len(piece) >= _SHORTEST}
        # Longest first, so that a secret that contains another goes whole.
        self._values = sorted(values, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with secrets masked."""
        for value in self._values:
            text = text.replace(value, MASK)
        text = _URL_PASSWORD.sub(rf"\1{MASK}@", text)
        return _PASSWORD_OPTION.sub(rf"\1{MASK}", text)
