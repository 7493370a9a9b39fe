"""What goes with an image into its registry, and what a deployment makes of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import BUNDLE, Built, Image, Keys, Layer, Origin, Registry, Wheel
from drivetrain.backends.images.registry import OciRegistry, open_registry
from drivetrain.backends.images.signing import open_keys
from drivetrain.backends.images.trust import OciTrust, open_trust
from drivetrain.errors import CorruptArtifact, DrivetrainError, StageError, Untrusted
from tests.backends.images.keys import new_key
from tests.backends.images.registries import RegistryServer
from tests.backends.images.test_registry import blob, image

WHEEL = Wheel("wanted", "1.0", "wanted-1.0-py3-none-any.whl", "ab" * 32, 1234)
ORIGIN = Origin("20130101-run", "d" * 64, "c" * 64, "e" * 64, "f" * 40 + "+", "https://example.org/flights",
                {"model": "1" * 64, "snapshot": "2" * 64})  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path_factory.mktemp("registry") / "data")
    yield found
    found.kill()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("keys") / "signing.key")


class Signed:
    """An image in a registry with all its papers, signed."""

    def __init__(self, server: RegistryServer, folder: Path, key: Path, repository: str) -> None:
        self.server, self.folder, self.key = server, folder, key
        self.registry: OciRegistry = open_registry()
        self.image = image(folder, b"base" * 500, str(folder).encode() * 50)
        self.ref = self.registry.push(self.image, f"{server.host}/{repository}@{self.image.digest}").ref
        self.built = built(self.image)
        self.said = self.trust(key).attest(self.ref, self.built, ORIGIN, None)

    def trust(self, key: Path | None, public: Path | None = None) -> OciTrust:
        keys = Keys(key=key, public_key=public)
        return open_trust(self.folder / "store", lambda: self.registry, lambda: open_keys(keys))

    def papers(self, kind: str) -> list[Any]:
        """The documents whose media type or predicate is of the kind."""
        found = []
        for entry in self.registry.referrers(self.ref, self.image.digest):
            if kind in (entry.artifact_type, entry.annotations.get("dev.sigstore.bundle.predicateType")):
                told = json.loads(self.registry.manifest(f"{self.ref.partition('@')[0]}@{entry.digest}"))
                path = self.registry.blob(self.ref, told["layers"][0]["digest"], self.folder / "paper")
                found.append(json.loads(path.read_bytes()))
        return found


def built(made: Image) -> Built:
    layers = [Layer(blob, blob.digest, "base") for blob in made.layers]
    return Built(made, None, [WHEEL], f"sha256:{'9' * 64}", layers, True)


@pytest.fixture
def signed(server: RegistryServer, tmp_path: Path, key: Path) -> Signed:
    return Signed(server, tmp_path, key, f"r{abs(hash(str(tmp_path))) % 10**9}")


def test_an_image_with_a_signature_that_counts_may_be_deployed(signed: Signed, key: Path) -> None:
    assert signed.said == ["SBOM of 1 wheels and 0 Debian packages", "provenance", "signature"]
    signed.trust(None, key.with_suffix(".pub")).check_image(signed.ref, layers=True)


def test_attaching_again_adds_nothing(signed: Signed, key: Path) -> None:
    before = signed.registry.referrers(signed.ref, signed.image.digest)
    signed.trust(key).attest(signed.ref, signed.built, ORIGIN, None)
    assert signed.registry.referrers(signed.ref, signed.image.digest) == before


def test_the_provenance_tells_run_commit_lock_base_wheels_and_what_it_was_made_of(signed: Signed) -> None:
    (bundle,) = signed.papers("https://slsa.dev/provenance/v1")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["subject"][0]["digest"] == {"sha256": signed.image.digest.removeprefix("sha256:")}
    build, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert build["externalParameters"]["definition"] == "d" * 64
    assert details["metadata"]["invocationId"] == "20130101-run"
    found = {entry["name"]: entry for entry in build["resolvedDependencies"]}
    assert found["source"] == {
        "name": "source", "uri": f"git+https://example.org/flights@{'f' * 40}", "digest": {"gitCommit": "f" * 40},
        "annotations": {"changed": True},
    }  # fmt: skip
    assert found["lock"]["digest"] == {"sha256": "e" * 64}
    assert found["model"]["digest"] == {"sha256": "1" * 64}
    assert found["base"]["digest"] == {"sha256": "9" * 64}
    assert found[WHEEL.file]["uri"] == "pkg:pypi/wanted@1.0"


def test_without_a_key_the_papers_are_attached_unsigned(server: RegistryServer, tmp_path: Path) -> None:
    registry = open_registry()
    made = image(tmp_path, b"unsigned")
    ref = registry.push(made, f"{server.host}/unsigned:1").ref
    said = open_trust(tmp_path / "store", lambda: registry, None).attest(ref, built(made), ORIGIN, None)
    assert said == ["SBOM of 1 wheels and 0 Debian packages", "provenance"]
    kinds = {entry.artifact_type for entry in registry.referrers(ref, made.digest)}
    assert kinds == {"application/vnd.cyclonedx+json", "application/vnd.in-toto+json"}


def test_an_unsigned_image_is_refused_with_its_digest(server: RegistryServer, tmp_path: Path, key: Path) -> None:
    registry = open_registry()
    made = image(tmp_path, b"nobody signed this")
    ref = registry.push(made, f"{server.host}/nobody:1").ref
    trust = open_trust(tmp_path / "store", lambda: registry, lambda: open_keys(Keys(key=key)))
    with pytest.raises(Untrusted, match="is not signed") as refused:
        trust.check_image(ref, layers=False)
    assert refused.value.digest == made.digest
    assert made.digest in str(refused.value)


def test_a_signature_by_another_key_is_refused_until_one_that_counts_is_added(
    signed: Signed, key: Path, tmp_path: Path
) -> None:
    other = new_key(tmp_path / "other" / "other.key")
    with pytest.raises(Untrusted, match=f"{signed.image.digest}.*another key"):
        signed.trust(None, other.with_suffix(".pub")).check_image(signed.ref, layers=False)
    signed.trust(other).attest(signed.ref, signed.built, ORIGIN, None)
    signed.trust(None, other.with_suffix(".pub")).check_image(signed.ref, layers=False)
    signed.trust(None, key.with_suffix(".pub")).check_image(signed.ref, layers=False)


def test_a_signature_of_another_image_does_not_count_for_this_one(
    signed: Signed, server: RegistryServer, tmp_path: Path, key: Path
) -> None:
    bundle = json.dumps(signed.papers("https://sigstore.dev/cosign/sign/v1")[0]).encode()
    evil = image(tmp_path, b"evil")
    ref = signed.registry.push(evil, f"{server.host}/evil:1").ref
    signed.registry.attach(ref, evil.digest, BUNDLE, [blob(tmp_path, bundle, BUNDLE)])
    with pytest.raises(Untrusted, match=f"its signature is of {signed.image.digest}"):
        signed.trust(key).check_image(ref, layers=False)


def _data(signed: Signed, what: str) -> Path:
    """The file in which the registry keeps it."""
    if what == "layer":
        return signed.server.data(signed.image.layers[1].digest)
    if what == "config":
        return signed.server.data(signed.image.config.digest)
    if what == "manifest":
        return signed.server.data(signed.image.digest)
    entry = next(
        entry for entry in signed.registry.referrers(signed.ref, signed.image.digest)
        if entry.annotations.get("dev.sigstore.bundle.predicateType") == "https://sigstore.dev/cosign/sign/v1"
    )  # fmt: skip
    told = json.loads(signed.registry.manifest(f"{signed.ref.partition('@')[0]}@{entry.digest}"))
    return signed.server.data(entry.digest if what == "referrer" else told["layers"][0]["digest"])


@pytest.mark.parametrize("what", ["layer", "config", "manifest", "referrer", "signature"])
def test_a_byte_changed_in_the_registry_is_refused_with_a_digest(what: str, signed: Signed, key: Path) -> None:
    path = _data(signed, what)
    before = bytearray(path.read_bytes())
    before[len(before) // 2] ^= 1
    path.write_bytes(before)
    with pytest.raises(DrivetrainError, match=r"sha256:[0-9a-f]{64}") as refused:
        signed.trust(key).check_image(signed.ref, layers=True)
    assert refused.value.exit_code == 1
    if what == "layer":
        assert isinstance(refused.value, CorruptArtifact)
        assert refused.value.digest == signed.image.layers[1].digest
        # Whoever pulls the image compares its layers with the manifest, which was signed: that may be enough.
        signed.trust(key).check_image(signed.ref, layers=False)


def test_an_image_that_is_gone_and_a_reference_without_digest_are_errors(signed: Signed, key: Path) -> None:
    with pytest.raises(StageError, match="not there any more"):
        signed.trust(key).check_image(f"{signed.server.host}/gone@{signed.image.digest}", layers=False)
    with pytest.raises(StageError, match="has no digest"):
        signed.trust(key).check_image(f"{signed.server.host}/gone:1", layers=False)


def test_nobody_named_in_the_definition_is_an_error_not_a_pass(signed: Signed, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not say whose"):
        open_trust(tmp_path, lambda: signed.registry, None).check_image(signed.ref, layers=False)


def test_rubbish_among_the_referrers_does_not_hide_the_signature(signed: Signed, key: Path) -> None:
    for number in range(3):
        rubbish = blob(signed.folder, b"rubbish %d" % number, BUNDLE)
        signed.registry.attach(signed.ref, signed.image.digest, BUNDLE, [rubbish])
    signed.trust(None, key.with_suffix(".pub")).check_image(signed.ref, layers=True)


def test_a_models_signature_goes_with_the_image(server: RegistryServer, tmp_path: Path, key: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"weights")
    registry: Registry = open_registry()
    made = image(tmp_path, b"with model")
    ref = registry.push(made, f"{server.host}/model:1").ref
    trust = open_trust(tmp_path / "store", lambda: registry, lambda: open_keys(Keys(key=key)))
    signature = trust.sign_model(tmp_path / "model", tmp_path / "model.sig")
    assert signature is not None
    assert "signature of the model" in trust.attest(ref, replace(built(made), packages=[]), ORIGIN, signature)
    trust.check_model(tmp_path / "model", signature, "abc")
    with pytest.raises(Untrusted, match="the model abc is not signed"):
        trust.check_model(tmp_path / "model", None, "abc")
