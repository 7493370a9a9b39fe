"""Ports for servers that have to be told theirs."""

from __future__ import annotations

import contextlib
import secrets
import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, below those that the system gives away by itself: nobody is given it before its server has it,
    or while that is down, as happens to those of other tests that ask the system for a port."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
