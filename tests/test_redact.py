"""Secrets are masked wherever text is written down."""

from __future__ import annotations

import pytest

from drivetrain.redact import Redactor

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "abc/def+ghi",
    "DB_PASSWORD": "hunter22",
    "MY_TOKEN": "hunter22-long",
    "HOME": "/root",
    "API_KEY": "1",
}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key is abc/def+ghi.", "key is ***."),
        ("hunter22-long and hunter22", "*** and ***"),
        ("redis://user:open@sesame.example:6379/0", "redis://user:***@sesame.example:6379/0"),
        ("host:6379,ssl=true,password=open sesame", "host:6379,ssl=true,password=*** sesame"),
        ("HOME is /root and 1 is 1", "HOME is /root and 1 is 1"),
    ],
)
def test_secret_values_and_passwords_in_urls_are_masked_and_nothing_else(text: str, clean: str) -> None:
    assert Redactor(ENVIRONMENT)(text) == clean


def test_each_line_of_a_secret_of_several_lines_is_masked() -> None:
    clean = Redactor({"TLS_PRIVATE_KEY": "-----BEGIN-----\nMIIEowIBAAKCAQEA\n  c2VjcmV0IQ==\n"})
    assert clean("MIIEowIBAAKCAQEA") == "***"
    assert clean("got '-----BEGIN-----\\nMIIEowIBAAKCAQEA\\n  c2VjcmV0IQ=='") == "got '***\\n***\\n  ***'"
