"""A Dockerfile as somebody writes it who knows how layers are cached: packages first, then weights, then code. It serves with Cog's own
server, is built by buildah and pushed by it, as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packaging.world import World, requirements, run, storage

DOCKERFILE = """\
FROM {base}
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /src
COPY {packages} .
RUN --mount=type=bind,from=wheels,target=/wheels \\
    pip install --no-cache-dir --no-index --find-links /wheels -r {packages}
COPY model/ model/
COPY . .
EXPOSE 5000
CMD ["python", "-m", "cog.server.http"]
"""
_PACKAGES = "packages.txt"
"""Beside `requirements.txt`, which `cog.yaml` may name and which has no Cog in it."""
_COG = "cog=="


@dataclass(frozen=True, slots=True)
class Buildah:
    """buildah with storage of its own, below `home`."""

    world: World
    home: Path

    def pull(self, base: str) -> None:
        """Fetches the base."""
        self._run("pull", "--quiet", "--tls-verify=false", base)

    def build(self, bundle: Path, base: str, ref: str) -> None:
        """`buildah build` and `buildah push`."""
        self.describe(bundle, base)
        self._run(
            "build", "--quiet", "--layers", "--pull=never", "--network", "none", "--build-context", f"wheels={self.world.wheels}",
            "--tag", ref, str(bundle),
        )  # fmt: skip
        self._run("push", "--quiet", "--tls-verify=false", ref)

    def describe(self, bundle: Path, base: str) -> None:
        """Writes the Dockerfile and its list of packages, where they are not there as they should be."""
        lines = "\n".join([*requirements(bundle), cog_requirement(self.world.wheels)]) + "\n"
        for name, text in ((_PACKAGES, lines), ("Dockerfile", DOCKERFILE.format(base=base, packages=_PACKAGES))):
            path = bundle / name
            if not path.is_file() or path.read_text() != text:
                path.write_text(text)

    def _run(self, *words: str) -> str:
        return run(["buildah", *storage(self.home), *words], variables=self.world.containers)


def cog_requirement(wheels: Path) -> str:
    """Cog in the version that lies among the wheels."""
    found: Sequence[Path] = sorted(wheels.glob("cog-*.whl"))
    return f"{_COG}{found[0].name.split('-')[1]}"
