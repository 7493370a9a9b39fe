"""A real redis-server for tests: with a password, on a port that it keeps when it is started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.ports import free_port

PASSWORD = "4711e08"


class Server:
    """A redis-server of our own, at a port that stays its own."""

    def __init__(self, home: Path, *options: str) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("redis-server is not installed")
        self.port = free_port()
        self._command = [
            str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(home), "--dbfilename", "kept.rdb",
            "--save", "", "--requirepass", PASSWORD, *options,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server did not come up"
            assert self.process.poll() is None, "redis-server ended"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.command(b"PING") == b"+PONG\r\n"
        except ConnectionError:
            return False

    def command(self, *words: bytes) -> bytes:
        """The answer to one command in database 1, as it comes off the wire."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line, line.makefile("rb") as answers:
            for each in ((b"AUTH", PASSWORD.encode()), (b"SELECT", b"1"), words):
                line.sendall(b"*%d\r\n" % len(each) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in each))
                answer = answers.readline()
                if not answer:
                    raise ConnectionResetError
                if answer.startswith(b"$"):
                    answer = answers.read(int(answer[1:]) + 2)
            return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def connection(self) -> str:
        return f"127.0.0.1:{self.port},password={PASSWORD},db=1"
