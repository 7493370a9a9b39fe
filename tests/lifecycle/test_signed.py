"""A run that packages, pushes and signs; and deployments that refuse what somebody changed or another signed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import CONFIG, config
from drivetrain.backends.images.registry import open_registry
from drivetrain.backends.images.store import Store
from tests.backends.images import containers, made
from tests.backends.images.keys import new_key
from tests.backends.images.registries import PASSWORD, RegistryServer, docker_config
from tests.lifecycle.conftest import write_wine

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


class Signed:
    """A wine project with a registry that wants a password, and what its run said."""

    def __init__(self, root: Path, drivetrain: Command) -> None:
        self.server = RegistryServer(root / "registry" / "data", password=True)
        (root / "docker").mkdir()
        self.credentials = docker_config(root / "docker" / "config.json", self.server.host)
        self.variables = {"DOCKER_CONFIG": str(root / "docker"), "XDG_CACHE_HOME": str(root / "cache")}
        self.key = new_key(root / "secrets" / "signing.key")
        self.project = write_wine(root / "wine")
        (self.project / "signing.pub").write_bytes(self.key.with_suffix(".pub").read_bytes())
        made.base(self.project / "base.tar")
        self.before = (self.project / "drivetrain.yaml").read_text()
        self.define({"key": str(self.key), "public_key": "signing.pub"})
        self.drivetrain = drivetrain
        self.ran = self("run", "--json")
        assert self.ran.returncode == 0, self.ran.stderr
        self.stages = {entry["stage"]: entry["outputs"] for entry in json.loads(self.ran.stdout)["stages"]}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.drivetrain(*arguments, directory=self.project, env=self.variables)

    def define(self, sign: dict[str, str]) -> None:
        part = {"base": "./base.tar", "push": f"{self.server.host}/wine", "sign": sign}
        (self.project / "drivetrain.yaml").write_text(f"{self.before}package: {json.dumps(part)}\n")

    @property
    def image(self) -> dict[str, Any]:
        found: dict[str, Any] = self.stages["package"]["image"]
        return found

    def refused(self, *arguments: str) -> str:
        """What the command says that must end with 1."""
        done = self(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, drivetrain: Command) -> Iterator[Signed]:
    containers.needed("podman", "docker-registry")
    found = Signed(tmp_path_factory.mktemp("signed"), drivetrain)
    yield found
    found("deploy", "--stop")
    found.server.kill()


def test_a_run_publishes_a_signed_image_with_its_papers(signed: Signed) -> None:
    registry = open_registry([signed.credentials])
    ref, digest = signed.image["id"], signed.image["detail"]["digest"]
    assert ref == f"{signed.server.host}/wine@{digest}"
    assert registry.resolve(f"{signed.server.host}/wine:1") == digest
    kinds = sorted(
        entry.annotations.get("dev.sigstore.bundle.predicateType", entry.artifact_type)
        for entry in registry.referrers(ref, digest)
    )
    assert kinds == [
        "application/vnd.cyclonedx+json", "https://model_signing/signature/v1.0", "https://sigstore.dev/cosign/sign/v1",
        "https://slsa.dev/provenance/v1",
    ]  # fmt: skip
    assert PASSWORD not in signed.ran.stderr
    again = json.loads(signed("package", "--json").stdout)
    assert (again["digest"], again["pushed"]["bytes_sent"] < 20_000) == (digest, True)
    assert len(registry.referrers(ref, digest)) == 4


def test_the_image_of_the_weights_is_signed_too(signed: Signed) -> None:
    registry, ref = open_registry([signed.credentials]), f"{signed.server.host}/wine:1-weights"
    digest = registry.resolve(ref)
    assert digest is not None
    kinds = {entry.annotations["dev.sigstore.bundle.predicateType"] for entry in registry.referrers(ref, digest)}
    assert kinds == {
        "https://model_signing/signature/v1.0", "https://sigstore.dev/cosign/sign/v1", "https://slsa.dev/provenance/v1",
    }  # fmt: skip


def test_an_image_that_nobody_signed_is_not_started(signed: Signed, tmp_path: Path) -> None:
    """Somebody who may push moves the tag."""
    registry, ref = open_registry([signed.credentials]), f"{signed.server.host}/wine:1"
    digest = registry.resolve(ref)
    other = config.assembled(Store(tmp_path).put(CONFIG, b"{}"), [], {}, Store(tmp_path))
    registry.push(other, ref)
    try:
        told = signed.refused("serve", "--from-image", ref).replace("\n", "")
        assert other.digest in told
        assert "is not signed" in told
    finally:
        assert signed("package").returncode == 0
    assert registry.resolve(ref) == digest


def test_it_is_deployed_again_while_everything_is_as_it_was_signed(signed: Signed) -> None:
    done = signed("run", "--from", "deploy", "--json")
    assert done.returncode == 0, done.stderr
    assert signed("deploy", "--json").returncode == 0


def test_another_key_is_refused_with_the_models_digest(signed: Signed) -> None:
    trusted = signed.project / "signing.pub"
    before = trusted.read_bytes()
    trusted.write_bytes(new_key(signed.key.parent / "other.key").with_suffix(".pub").read_bytes())
    try:
        for command in (("run", "--from", "deploy"), ("run",), ("deploy",), ("serve", "--from-image")):
            told = signed.refused(*command)
            assert "another key" in told
            assert signed.stages["train"]["model"]["digest"] in told.replace("\n", "")
    finally:
        trusted.write_bytes(before)


def test_who_deploys_needs_the_public_key_alone(signed: Signed) -> None:
    kept = signed.key.rename(signed.key.with_suffix(".elsewhere"))
    try:
        assert signed("run", "--from", "deploy").returncode == 0
    finally:
        kept.rename(signed.key)


@pytest.mark.parametrize("what", ["layer", "manifest"])
def test_an_image_changed_in_the_registry_is_refused_with_a_digest(what: str, signed: Signed) -> None:
    digest = signed.image["detail"]["digest" if what == "manifest" else "weights"]
    path = signed.server.data(digest)
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        assert digest in signed.refused("run", "--from", "deploy").replace("\n", "")
        assert digest in signed.refused("deploy").replace("\n", "")
    finally:
        path.write_bytes(before)
    assert signed("deploy").returncode == 0
