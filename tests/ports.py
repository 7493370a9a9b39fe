"""Ports for servers that have to be told theirs."""

from __future__ import annotations

import itertools
import os
import re
import socket
from contextlib import suppress

_WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % 8
_TRIED = itertools.count(os.getpid() * 7)


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, and that nobody takes until the server that is to listen there has started, or while that
    is down.

    The system gives those from 32768 on to clients and to whoever asks for any; of those below, each worker of pytest has its own.
    """
    while True:
        port = 10_000 + 2_500 * _WORKER + next(_TRIED) % 2_500
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
