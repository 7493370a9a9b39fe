"""A Dockerfile as somebody writes it who knows how layers are cached: packages first, then weights, then code. It serves with Cog's own
server, is built by buildah and pushed by it, as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packaging.containers import Storage
from benchmarks.packaging.world import World, requirements
from drivetrain.backends.images import cog

DOCKERFILE = """\
FROM {base}
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 COG_PREDICT_TYPE_STUB={runner}
WORKDIR /src
COPY {packages} .
RUN --mount=type=bind,from=wheels,target=/wheels \\
    pip install --no-cache-dir --no-index --find-links /wheels -r {packages}
COPY --from=model . model/
COPY . .
EXPOSE 5000
CMD ["python", "-m", "cog.server.http"]
"""
_IGNORED = "Dockerfile\n.dockerignore\nmodel\n"
"""The model has a layer to itself: it is given as a context of its own, so that a change of code does not bring it along."""
_PACKAGES = "packages.txt"
"""Beside `requirements.txt`, which `cog.yaml` may name and which has no Cog in it."""


@dataclass(frozen=True, slots=True)
class Buildah:
    """buildah, in a storage of its own."""

    world: World
    storage: Storage

    def pull(self, base: str) -> None:
        """Fetches the base."""
        self.storage.buildah("pull", "--quiet", "--tls-verify=false", base)

    def build(self, bundle: Path, base: str, ref: str) -> None:
        """`buildah build` and `buildah push`."""
        self.describe(bundle, base)
        contexts = (f"--build-context=wheels={self.world.wheels}", f"--build-context=model={bundle / 'model'}")
        options = ("--quiet", "--layers", "--pull=never", "--network=none", *contexts)
        self.storage.buildah("build", *options, "--tag", ref, str(bundle))
        self.storage.buildah("push", "--quiet", "--tls-verify=false", ref)

    def describe(self, bundle: Path, base: str) -> None:
        """Writes the Dockerfile and what goes with it, where they are not there as they should be."""
        files = {
            _PACKAGES: "\n".join([*requirements(bundle), cog_requirement(self.world.wheels)]) + "\n",
            ".dockerignore": _IGNORED,
            "Dockerfile": DOCKERFILE.format(base=base, packages=_PACKAGES, runner=cog.read(bundle).runner),
        }
        for name, text in files.items():
            path = bundle / name
            if not path.is_file() or path.read_text() != text:
                path.write_text(text)


def cog_requirement(wheels: Path) -> str:
    """Cog in the version that lies among the wheels."""
    found: Sequence[Path] = sorted(wheels.glob("cog-*.whl"))
    return f"cog=={found[0].name.split('-')[1]}"
