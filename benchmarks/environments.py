"""The peers, and an environment of its own for each."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool that Drivetrain is measured against; `folder` holds its pinned requirements and its chain."""

    name: str
    folder: str
    version: str
    variables: Mapping[str, str] = field(default_factory=dict)
    """Set so that it neither phones home nor asks."""
    by_pip: bool = False
    """Installed by pip, which finds builds of PyTorch on the machine that uv does not look for."""

    @property
    def home(self) -> Path:
        return HERE / "peers" / self.folder


FLYTE = Peer("Flyte", "flyte", "2.12.1")
METAFLOW = Peer("Metaflow", "metaflow", "2.19.39")
ZENML = Peer("ZenML", "zenml", "0.98.0", {"ZENML_ANALYTICS_OPT_IN": "false", "AUTO_OPEN_DASHBOARD": "false"})
KFP = Peer("KFP", "kfp", "2.16.1", {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
MLFLOW = Peer("MLflow", "mlflow", "3.17.2", {"MLFLOW_DISABLE_TELEMETRY": "true"})

CHAINS = (FLYTE, METAFLOW, ZENML, KFP)
"""The peers that run steps."""


class InstallFailed(RuntimeError):
    """A peer's environment could not be made; the message holds what the installer said last."""


def install(peer: Peer, root: Path = HERE / ".venvs") -> Path:
    """The `bin` directory of the peer's environment, made anew if its requirements have changed. Raises `InstallFailed`."""
    requirements = peer.home / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    place = root / peer.folder
    stamp = place / "requirements.sha256"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        for command in _commands(place, requirements, peer.by_pip):
            _call(command, peer)
        stamp.write_text(wanted)
    return place / "bin"


def _commands(place: Path, requirements: Path, by_pip: bool) -> list[list[str]]:
    """Compiled while installing, so that the first sample does not pay for it where a later one does not."""
    python = str(place / "bin" / "python")
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv and not by_pip:
        return [
            [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
            [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, "-r", str(requirements)],
        ]
    return [
        [sys.executable, "-m", "venv", str(place)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)],
    ]


def _call(command: list[str], peer: Peer) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = " | ".join(done.stdout.decode(errors="replace").strip().splitlines()[-4:])
        raise InstallFailed(f"{peer.name} {peer.version} cannot be installed: {said[-600:]}")
