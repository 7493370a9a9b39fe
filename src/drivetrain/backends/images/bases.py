"""Bases: which image a model's image stands on, and how its layers come here.

| `cog.yaml` | Base | Python | CUDA |
|---|---|---|---|
| no GPU | Docker's official Python image | of `python_version` | none |
| GPU, and the wheels bring CUDA along (PyTorch, TensorFlow, JAX: `nvidia-*`) | the same | of `python_version` | the wheels', as is cuDNN |
| GPU otherwise | NVIDIA's image for `cuda` | Ubuntu's, installed | the image's, as is cuDNN |

The tags are those of https://hub.docker.com/_/python and https://hub.docker.com/r/nvidia/cuda. A tag with `cudnn` and no number has
cuDNN 9, as the Dockerfiles say (https://gitlab.com/nvidia/container-images/cuda: 12.4.1 has 9.1, 12.8.1 has 9.8). The Pythons are those
of https://packages.ubuntu.com/python3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivetrain.backends.images.cog import CogFile
from drivetrain.errors import StageError

PYTHON = "docker.io/library/python:{python}-slim-bookworm"


@dataclass(frozen=True, slots=True)
class Nvidia:
    """An image of NVIDIA's. `cudnn` is the first number of cuDNN's version; those with the same one can stand for each other."""

    reference: str
    cudnn: str


CUDA: Mapping[str, Nvidia] = {
    "11.8": Nvidia("docker.io/nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu22.04", cudnn="8"),
    "12.1": Nvidia("docker.io/nvidia/cuda:12.1.1-cudnn8-runtime-ubuntu22.04", cudnn="8"),
    "12.4": Nvidia("docker.io/nvidia/cuda:12.4.1-cudnn-runtime-ubuntu22.04", cudnn="9"),
    "12.6": Nvidia("docker.io/nvidia/cuda:12.6.3-cudnn-runtime-ubuntu24.04", cudnn="9"),
    "12.8": Nvidia("docker.io/nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04", cudnn="9"),
    "12.9": Nvidia("docker.io/nvidia/cuda:12.9.1-cudnn-runtime-ubuntu24.04", cudnn="9"),
    "13.0": Nvidia("docker.io/nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04", cudnn="9"),
}
"""CUDA's MAJOR.MINOR -> NVIDIA's image with the runtime libraries and cuDNN."""
_UBUNTU_PYTHON = {"22.04": "3.10", "24.04": "3.12"}
_CUDA_WHEEL = "nvidia-cuda-runtime"


@dataclass(frozen=True, slots=True)
class Choice:
    """A base's reference, and the system packages that it lacks."""

    reference: str
    system_packages: Sequence[str] = ()


def choose(cog: CogFile, packages: Sequence[str]) -> Choice:
    """The base for a `cog.yaml` and the packages (by name) that its requirements came to.

    Raises `StageError` where the table has none: no image for that CUDA, or none with both that CUDA and that Python or cuDNN.
    """
    if not cog.gpu or any(name.startswith(_CUDA_WHEEL) for name in packages):
        return Choice(PYTHON.format(python=cog.python))
    own = "name a base with all of it as package.base"
    if cog.cuda is None:
        raise StageError(
            "cog.yaml asks for a GPU and names no build.cuda, and none of its packages brings CUDA along",
            hint=f"name build.cuda; or {own}",
        )
    version = ".".join(cog.cuda.split(".")[:2])
    if version not in CUDA:
        raise StageError(f"there is no base for CUDA {cog.cuda}", hint=f"known: {', '.join(CUDA)}; or {own}")
    nvidia = CUDA[version]
    reference = nvidia.reference
    python = _UBUNTU_PYTHON[reference.rpartition("ubuntu")[2]]
    if python != cog.python:
        raise StageError(f"{reference} has Python {python}, and cog.yaml asks for {cog.python}", hint=own)
    if cog.cudnn is not None and cog.cudnn.partition(".")[0] != nvidia.cudnn:
        others = ", ".join(f"{cuda} has {base.cudnn}" for cuda, base in CUDA.items())
        raise StageError(
            f"{reference} has cuDNN {nvidia.cudnn}, and cog.yaml asks for {cog.cudnn}",
            hint=f"leave build.cudnn out; or name another build.cuda ({others}); or {own}",
        )
    return Choice(reference, (f"python{python}",))
