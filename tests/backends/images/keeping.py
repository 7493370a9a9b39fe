"""A registry that keeps what had arrived of a request when the line broke, as the distribution specification wants it.

Docker's registry of version 2 forgets such an upload. In front of it, this passes on the part that did arrive as a request of its own, and
knows afterwards how far the upload is.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_UPLOAD = re.compile(r"/blobs/uploads/([0-9a-f-]{36})")


class KeepingProxy:
    """Listens on `port`; `resumed` counts the uploads of which the state was asked after a cut."""

    def __init__(self, registry: int) -> None:
        self.resumed = 0
        self.newest: dict[str, str] = {}
        """Where an upload goes on, by its id; the state in that address is the registry's secret."""
        self.cut: set[str] = set()
        self.locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: Any) -> None:
                pass

            def _pass(self) -> None:
                upload = _UPLOAD.search(self.path)
                # Who asks for the state of an upload waits until what arrives for it has been passed on.
                with owner.locks[upload[1] if upload else str(threading.get_ident())]:
                    self._pass_on(upload)

            def _pass_on(self, upload: re.Match[str] | None) -> None:
                path = self.path
                if upload and upload[1] in owner.newest and self.command in ("GET", "PATCH"):
                    path = owner.newest[upload[1]]
                body, is_whole = self._body()
                if not is_whole and (self.command != "PATCH" or not upload):
                    self.close_connection = True
                    return
                answer, data = owner.ask(registry, self.command, path, dict(self.headers), body)
                location = answer.getheader("Location")
                if upload and location:
                    parts = urlsplit(location)
                    owner.newest[upload[1]] = f"{parts.path}?{parts.query}"
                if not is_whole:
                    owner.cut.add(str(upload and upload[1]))
                    self.close_connection = True
                    return
                if upload and self.command == "GET" and upload[1] in owner.cut:
                    owner.resumed += 1
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("date", "transfer-encoding", "content-length"):
                        self.send_header(key, value)
                self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def _body(self) -> tuple[bytes, bool]:
                wanted = int(self.headers.get("Content-Length") or 0)
                pieces: list[bytes] = []
                try:
                    while wanted and (piece := self.rfile.read1(min(wanted, 1 << 16))):
                        pieces.append(piece)
                        wanted -= len(piece)
                except OSError:
                    pass
                return b"".join(pieces), wanted == 0

            do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def ask(
        self, port: int, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        kept = {key: value for key, value in headers.items() if key.lower() not in ("content-length", "connection")}
        line.request(method, path, body or None, {**kept, "Content-Length": str(len(body))})
        answer = line.getresponse()
        data = answer.read()
        line.close()
        return answer, data

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
