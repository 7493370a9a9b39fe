"""A `docker` for machines without Docker: podman, which has the same command, held to the verbs and options of Docker's own."""

from __future__ import annotations

import sys
from pathlib import Path

# As https://docs.docker.com/reference/cli/docker/ has them; True: the option takes a value.
_KNOWN = {
    "ps": {"--quiet": False},
    "load": {"--quiet": False},
    "run": {
        "--name": True, "--pull": True, "--network": True, "--user": True, "--workdir": True, "--entrypoint": True,
        "--volume": True,
    },
    "commit": {},
    "save": {"--output": True},
    "rm": {"--force": False, "--volumes": False},
    "image rm": {"--force": False},
}  # fmt: skip
_SCRIPT = """#!{python}
import os, sys

known = {known!r}
words = sys.argv[1:]
verb = " ".join(words[:2]) if words[0] == "image" else words[0]
rest = words[len(verb.split()):]
if verb not in known:
    sys.exit(f"unknown command: docker {{verb}}")
while rest and rest[0].startswith("-"):
    option = rest.pop(0)
    if option not in known[verb]:
        sys.exit(f"unknown flag: {{option}}")
    if known[verb][option]:
        rest.pop(0)
if any(":" in word.partition("/")[0] for word in rest[:1]):
    sys.exit(f"invalid reference format: {{rest[0]}}")
os.environ["PATH"] = {path!r}
os.execvp("podman", ["podman", *words])
"""
_DEAD = "#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n"


def installed(folder: Path, path: str) -> Path:
    """A directory with nothing but such a command, which finds podman on the given search path."""
    return _written(folder, _SCRIPT.format(python=sys.executable, known=_KNOWN, path=path))


def without_daemon(folder: Path) -> Path:
    """A directory with Docker's command as it is where no daemon runs."""
    return _written(folder, _DEAD)


def _written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "docker").write_text(text)
    (folder / "docker").chmod(0o755)
    return folder
