"""Who is measured: how each server is started with each model, and what it is asked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.environments import HERE as BENCHMARKS
from benchmarks.environments import Peer, install
from benchmarks.serving.servers import Address, Running, free_port, running

HERE = Path(__file__).resolve().parent
OURS = "Drivetrain"

COG = Peer("Cog", "serving-cog", "0.23.1")
KSERVE = Peer("KServe", "serving-kserve", "0.21.0")
BENTOML = Peer("BentoML", "serving-bentoml", "1.4.39", {"BENTOML_DO_NOT_TRACK": "1"})
LITSERVE = Peer("LitServe", "serving-litserve", "0.2.19")
MLFLOW = Peer("MLflow", "serving-mlflow", "3.17.2", {"MLFLOW_DISABLE_TELEMETRY": "true"})
RAY = Peer("Ray Serve", "serving-ray", "2.60.0", {"RAY_USAGE_STATS_ENABLED": "0"})
TORCH = Peer("PyTorch", "serving-torch", "2.13.0", by_pip=True)
PEERS = (COG, KSERVE, BENTOML, LITSERVE, MLFLOW, RAY)


@dataclass(frozen=True, slots=True)
class Model:
    """A model with the row that it is asked about."""

    name: str
    row: Mapping[str, Any]


def bin_of(peer: Peer) -> Path:
    """The `bin` directory of the peer's environment; PyTorch is seen from there, behind the peer's own packages."""
    place = install(peer)
    (_site(place) / "bench-torch.pth").write_text(f"{_site(install(TORCH))}\n")
    return place


def _site(place: Path) -> Path:
    return next((place.parent / "lib").glob("python3*")) / "site-packages"


@contextmanager
def peer_server(peer: Peer, model: Model, files: Path, scratch: Path) -> Iterator[Running]:
    """The peer's server with the model. Raises `InstallFailed` or `NotUp`."""
    place, port = bin_of(peer), free_port()
    directory = scratch / f"{peer.folder}-{model.name}"
    shutil.copytree(peer.home, directory, dirs_exist_ok=True)
    variables = {
        **peer.variables, "PATH": f"{place}:/usr/bin:/bin", "PYTHONPATH": str(HERE), "BENCH_MODELS": str(files),
        "BENCH_MODEL": model.name, "HOME": str(scratch), "OMP_NUM_THREADS": "1", "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": f"run_{model.name}.py:Runner",
    }  # fmt: skip
    python = str(place / "python")
    commands = {
        COG.name: [python, "-m", "cog.server.http", "--host", "127.0.0.1"],
        KSERVE.name: [python, "server.py", model.name, str(port)],
        LITSERVE.name: [python, "server.py", model.name, str(port)],
        RAY.name: [python, "server.py", model.name, str(port)],
        BENTOML.name: [str(place / "bentoml"), "serve", "service:Service", "--host", "127.0.0.1", "--port", str(port)],
        MLFLOW.name: ["/bin/sh", "-c", f"{python} save.py {model.name} saved && exec {place / 'mlflow'} models serve "
                      f"-m saved --env-manager local -h 127.0.0.1 -p {port} -w 1"],
    }  # fmt: skip
    with running(commands[peer.name], directory, variables, _address(peer, model, port)) as server:
        yield server


def _address(peer: Peer, model: Model, port: int) -> Address:
    root = f"http://127.0.0.1:{port}"
    path, body = {
        COG.name: ("/predictions", {"input": cog_input(model)}),
        KSERVE.name: ("/v1/models/model:predict", {"instances": [model.row]}),
        BENTOML.name: ("/predict", {"rows": [model.row]}),
        LITSERVE.name: ("/predict", model.row),
        MLFLOW.name: ("/invocations", {"dataframe_records": [model.row]}),
        RAY.name: ("/", model.row),
    }[peer.name]
    return Address(root + path, json.dumps(body).encode())


def cog_input(model: Model) -> Mapping[str, Any]:
    """The row as the runners of Cog and of ours take it."""
    return {"row": model.row} if model.name == "flights" else model.row


@contextmanager
def replica(model: Model, files: Path, scratch: Path, options: Sequence[str] = ()) -> Iterator[Running]:
    """Our replica alone, one worker; `options` are further words of its command."""
    port, place = free_port(), bundle(model, scratch)
    command = [
        sys.executable, "-m", "drivetrain.backends.serving.replica", "--bundle", str(place), "--runner", "run.py:Runner",
        "--name", "model", "--host", "127.0.0.1", "--port", str(port),
        *options,
    ]  # fmt: skip
    address = Address(f"http://127.0.0.1:{port}/predictions", json.dumps({"input": cog_input(model)}).encode())
    with running(command, place, own_variables(files), address) as server:
        yield server


def bundle(model: Model, scratch: Path) -> Path:
    """A bundle with the model's runner."""
    place = scratch / f"bundle-{model.name}"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "runners" / f"run_{model.name}.py", place / "run.py")
    return place


def own_variables(files: Path) -> Mapping[str, str]:
    """What our own processes are given beside their environment; they see PyTorch as the peers do, behind their own packages."""
    paths = [HERE, BENCHMARKS.parent]
    if find_spec("torch") is None:
        behind = files / "pytorch"
        behind.mkdir(parents=True, exist_ok=True)
        (behind / "sitecustomize.py").write_text(f"import sys\n\nsys.path.append({str(_site(install(TORCH)))!r})\n")
        paths.append(behind)
    return {"PYTHONPATH": ":".join(map(str, paths)), "BENCH_MODELS": str(files), "OMP_NUM_THREADS": "1"}
