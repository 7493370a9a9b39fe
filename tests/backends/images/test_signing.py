"""Models and statements signed by key files, and whatever may be wrong with a signature."""

from __future__ import annotations

import base64
import json
import subprocess
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.images import Keys
from drivetrain.backends.images.keyless import open_keyless
from drivetrain.backends.images.signing import KeyFile, open_keys
from drivetrain.errors import StageError, SystemFault, Untrusted
from tests.backends.images.keys import new_key, openssl

STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("keys") / "signing.key")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "data" / "weights.bin").write_bytes(bytes(range(256)) * 100)
    return folder


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "secp521r1"])
def test_what_a_key_signed_its_public_key_confirms(curve: str, tmp_path: Path, model: Path) -> None:
    key = new_key(tmp_path / "k.key", curve)
    signer, checker = KeyFile(key, None), KeyFile(None, key.with_suffix(".pub"))
    assert (signer.can_sign, checker.can_sign) == (True, False)
    assert checker.check(signer.sign(STATEMENT), "sha256:1") == STATEMENT
    signer.sign_model(model, tmp_path / "model.sig")
    checker.check_model(model, tmp_path / "model.sig", "1")


def test_model_signing_confirms_what_was_signed_here(key: Path, tmp_path: Path, model: Path) -> None:
    KeyFile(key, None).sign_model(model, tmp_path / "model.sig")
    program = Path(sysconfig.get_path("scripts")) / "model_signing"
    words = [str(program), "verify", "key", str(model), "--signature", str(tmp_path / "model.sig"),
             "--public_key", str(key.with_suffix(".pub"))]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_signature_is_one_that_openssl_confirms(key: Path, tmp_path: Path) -> None:
    envelope = json.loads(KeyFile(key, None).sign(STATEMENT))["dsseEnvelope"]
    kind = envelope["payloadType"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(STATEMENT)} ".encode() + STATEMENT
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    openssl(
        "dgst", "-sha256", "-verify", str(key.with_suffix(".pub")), "-signature", str(tmp_path / "signature"),
        str(tmp_path / "signed"),
    )  # fmt: skip


def test_another_key_an_altered_text_and_an_altered_signature_are_told_apart(key: Path, tmp_path: Path) -> None:
    bundle = KeyFile(key, None).sign(STATEMENT)
    checker = KeyFile(None, key.with_suffix(".pub"))
    other = KeyFile(new_key(tmp_path / "other.key"), None)
    with pytest.raises(Untrusted, match="sha256:1 is signed with another key"):
        checker.check(other.sign(STATEMENT), "sha256:1")
    told = json.loads(bundle)
    # Whoever has no key can still write our key's name into his bundle.
    forged = json.loads(other.sign(STATEMENT))
    forged["verificationMaterial"] = told["verificationMaterial"]
    forged["dsseEnvelope"]["signatures"][0]["keyid"] = told["dsseEnvelope"]["signatures"][0]["keyid"]
    with pytest.raises(Untrusted, match="was altered"):
        checker.check(json.dumps(forged).encode(), "sha256:1")
    told["dsseEnvelope"]["payload"] = base64.b64encode(STATEMENT + b" ").decode()
    with pytest.raises(Untrusted, match="was altered"):
        checker.check(json.dumps(told).encode(), "sha256:1")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_change_of_a_bundle_passes(key: Path, data: st.DataObject) -> None:
    checker = KeyFile(key, None)
    bundle = bytearray(checker.sign(STATEMENT))
    position = data.draw(st.integers(0, len(bundle) - 1))
    bundle[position] ^= data.draw(st.integers(1, 255))
    try:
        found = checker.check(bytes(bundle), "sha256:1")
    except Untrusted:
        return
    assert found == STATEMENT  # what surrounds the envelope may change


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) |
       st.dictionaries(st.sampled_from(["dsseEnvelope", "verificationMaterial", "publicKey", "hint", "payload"]), inner))
       .map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_is_no_bundle_is_refused_as_one_that_cannot_be_read(key: Path, rubbish: bytes) -> None:
    with pytest.raises(Untrusted):
        KeyFile(key, None).check(rubbish, "sha256:1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: (folder / "data" / "weights.bin").write_bytes(b"other"), "data/weights.bin was changed"),
        (lambda folder: (folder / "MLmodel").unlink(), "MLmodel missing"),
        (lambda folder: (folder / "extra.py").write_text("evil()"), "extra.py too many"),
    ],
)
def test_a_model_that_was_changed_is_refused_with_the_files(
    change: object, why: str, key: Path, tmp_path: Path, model: Path
) -> None:
    KeyFile(key, None).sign_model(model, tmp_path / "model.sig")
    change(model)  # type: ignore[operator]
    with pytest.raises(Untrusted, match=rf"the model abc is not what was signed: {why}$") as refused:
        KeyFile(key, None).check_model(model, tmp_path / "model.sig", "abc")
    assert refused.value.digest == "abc"


def test_a_models_signature_by_another_key_or_altered_is_refused(key: Path, tmp_path: Path, model: Path) -> None:
    signature = tmp_path / "model.sig"
    KeyFile(new_key(tmp_path / "other.key"), None).sign_model(model, signature)
    with pytest.raises(Untrusted, match="another key"):
        KeyFile(key, None).check_model(model, signature, "abc")
    KeyFile(key, None).sign_model(model, signature)
    told = json.loads(signature.read_text())
    raw = bytearray(base64.b64decode(told["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    told["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    signature.write_text(json.dumps(told))
    with pytest.raises(Untrusted, match="signature of the model abc was altered"):
        KeyFile(key, None).check_model(model, signature, "abc")
    signature.write_text("{}")
    with pytest.raises(Untrusted, match="cannot be read"):
        KeyFile(key, None).check_model(model, signature, "abc")


def test_whoever_only_checks_needs_no_private_key(key: Path, tmp_path: Path, model: Path) -> None:
    open_keys(Keys(key=key)).sign_model(model, tmp_path / "model.sig")
    elsewhere = open_keys(Keys(key=tmp_path / "absent.key", public_key=key.with_suffix(".pub")))
    elsewhere.check_model(model, tmp_path / "model.sig", "abc")
    with pytest.raises(StageError, match=r"absent\.key cannot be read"):
        elsewhere.sign(STATEMENT)


def test_keys_that_are_none_are_said_to_be_so_with_how_to_make_one(key: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    openssl("genrsa", "-out", str(tmp_path / "rsa"), "2048")
    for keys, why in (
        (Keys(key=tmp_path / "absent"), "cannot be read"),
        (Keys(key=tmp_path / "text"), "no private key"),
        (Keys(public_key=tmp_path / "text"), "no public key"),
        (Keys(key=tmp_path / "rsa"), "elliptic curve"),
        (Keys(key=key, password="needless"), "a password"),
    ):
        with pytest.raises(StageError, match=why):
            open_keys(keys)
    with pytest.raises(StageError, match="neither"):
        open_keys(Keys())


def test_a_key_with_a_password_signs_with_it_and_not_with_another(key: Path, tmp_path: Path, model: Path) -> None:
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked))
    open_keys(Keys(key=locked, password="secret")).sign_model(model, tmp_path / "model.sig")
    open_keys(Keys(public_key=key.with_suffix(".pub"))).check_model(model, tmp_path / "model.sig", "abc")
    for password in ("wrong", None):
        with pytest.raises(StageError) as refused:
            open_keys(Keys(key=locked, password=password))
        assert "wrong" not in str(refused.value)


def test_without_an_identity_provider_nobody_signs_without_a_key(model: Path, tmp_path: Path, key: Path) -> None:
    keyless = open_keyless(Keys(identity="somebody@example.org", issuer="https://example.org"))
    assert not keyless.can_sign
    with pytest.raises(SystemFault, match="no identity provider"):
        keyless.sign_model(model, tmp_path / "model.sig")
    with pytest.raises(SystemFault, match="no identity provider"):
        keyless.sign(STATEMENT)
