"""HTTP connections to addresses that callers name (file inputs, webhooks): not to link-local ones, where clouds hand out credentials.

The address is looked at when it has been connected to and before anything is sent, so that neither a redirect nor a name that changes its
address gets around it. Other private addresses are allowed: files and webhooks inside of a cluster are what they are for.
"""

from __future__ import annotations

import ipaddress
import socket
from http.client import HTTPConnection, HTTPSConnection


class LinkLocal(OSError):
    """The address is one that no caller may name."""


def check(connected: socket.socket) -> None:
    """Raises `LinkLocal` if the other end is at a link-local address; the socket is closed then."""
    address = ipaddress.ip_address(connected.getpeername()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if (mapped or address).is_link_local:
        connected.close()
        raise LinkLocal(f"{address} is a link-local address, which may not be asked for")


class GuardedHttp(HTTPConnection):
    """Plain HTTP."""

    def connect(self) -> None:
        """Connects. Raises `LinkLocal`."""
        super().connect()
        check(self.sock)


class GuardedHttps(HTTPSConnection):
    """HTTP over TLS."""

    def connect(self) -> None:
        """Connects. Raises `LinkLocal`."""
        super().connect()
        check(self.sock)
