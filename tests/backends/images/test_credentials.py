"""Credentials from helpers, and identity tokens: which are found, and what is said of those that are not."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import credentials, uploads
from drivetrain.backends.images.credentials import Credentials
from drivetrain.backends.images.registry import open_registry
from drivetrain.errors import SystemFault, Unavailable
from tests.backends.images.registries import PASSWORD, USER, RegistryServer, docker_config
from tests.backends.images.test_registry import image
from tests.backends.images.test_registry_access import IDENTITY, TokenServer, tokens

__all__ = ["tokens"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path_factory.mktemp("registry") / "data", password=True)
    yield found
    found.kill()


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the helper `docker-credential-test` is, once it is written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "docker-credential-test"


def write(helper: Path, script: str) -> None:
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)


def knows(helper: Path, host: str, user: str = USER, secret: str = PASSWORD) -> None:
    """Has the helper know one host, and answer for others as those of Docker do."""
    told = json.dumps({"ServerURL": host, "Username": user, "Secret": secret})
    missing = "echo 'credentials not found in native keychain'; exit 1"
    write(helper, f'read name\n[ "$1" = get ] && [ "$name" = "{host}" ] && echo \'{told}\' && exit\n{missing}')


def config(path: Path, **told: Any) -> Path:
    path.write_text(json.dumps(told))
    return path


@pytest.mark.parametrize("form", ["credHelpers", "credsStore"])
def test_a_helper_is_asked_for_the_registry(guarded: RegistryServer, tmp_path: Path, helper: Path, form: str) -> None:
    knows(helper, guarded.host)
    named: Any = {guarded.host: "test"} if form == "credHelpers" else "test"
    file = config(tmp_path / "config.json", auths={guarded.host: {}}, **{form: named})
    made = image(tmp_path, form.encode())
    registry = open_registry([file])
    registry.push(made, f"{guarded.host}/{form.lower()}:1")
    assert registry.resolve(f"{guarded.host}/{form.lower()}:1") == made.digest


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "is not on the PATH"),
        ("echo 'key ring is locked' >&2; exit 1", "fails: key ring is locked"),
        ("exit 3", "fails: exit code 3"),
        ("echo hello", "answers with something else than credentials"),
    ],
)
def test_a_helper_that_gives_nothing_is_named_when_the_registry_refuses(
    guarded: RegistryServer, tmp_path: Path, helper: Path, script: str | None, said: str
) -> None:
    if script:
        write(helper, script)
    file = config(tmp_path / "config.json", credsStore="test")
    with pytest.raises(SystemFault, match="wants credentials, and docker-credential-test, which") as caught:
        open_registry([file]).push(image(tmp_path, b"x"), f"{guarded.host}/a:1")
    assert f"{file} names for them, {said}" in str(caught.value)
    assert f"`echo {guarded.host} | docker-credential-test get`" in caught.value.hint


def test_a_helper_that_has_none_leaves_it_at_the_login(guarded: RegistryServer, tmp_path: Path, helper: Path) -> None:
    knows(helper, "elsewhere.example.com")
    file = config(tmp_path / "config.json", credsStore="test")
    with pytest.raises(SystemFault, match=r"docker-credential-test, which .* has none") as caught:
        open_registry([file]).push(image(tmp_path, b"x"), f"{guarded.host}/a:1")
    assert "docker login" in caught.value.hint


def test_a_helper_that_is_missing_does_not_stand_in_the_way_of_the_next_file(
    guarded: RegistryServer, tmp_path: Path
) -> None:
    files = [config(tmp_path / "a.json", credsStore="nothere"), docker_config(tmp_path / "b.json", guarded.host)]
    assert open_registry(files).push(image(tmp_path, b"next"), f"{guarded.host}/next:1").bytes_sent


def test_what_is_public_is_read_without_the_helper_and_what_is_not_is_refused_with_its_name(
    tokens: tuple[RegistryServer, TokenServer], tmp_path: Path
) -> None:
    server, _ = tokens
    made = image(tmp_path, b"x")
    open_registry([docker_config(tmp_path / "good.json", server.host)]).push(made, f"{server.host}/a:1")
    file = config(tmp_path / "config.json", credHelpers={server.host: "nothere"})
    registry = open_registry([file])
    assert registry.resolve(f"{server.host}/a:1") == made.digest
    with pytest.raises(
        SystemFault, match=f"docker-credential-nothere, which {file} names for them, is not on the PATH"
    ):
        registry.push(image(tmp_path, b"y"), f"{server.host}/a:2")


def test_an_identity_token_is_exchanged_for_one_of_the_registry(
    tokens: tuple[RegistryServer, TokenServer], tmp_path: Path, helper: Path
) -> None:
    server, giver = tokens
    made = image(tmp_path, b"x")
    # As `az acr login` leaves it: a user of zeros without a password, beside the token.
    nobody = base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode()
    file = config(tmp_path / "a.json", auths={server.host: {"auth": nobody, "identitytoken": IDENTITY}})
    open_registry([file]).push(made, f"{server.host}/a:1")
    assert "repository:a:pull,push" in giver.asked
    knows(helper, server.host, "<token>", IDENTITY)
    stored = open_registry([config(tmp_path / "b.json", credsStore="test")])
    stored.push(made, f"{server.host}/b:1", mount_from=[f"{server.host}/a"])
    assert stored.resolve(f"{server.host}/b:1") == made.digest


def test_an_identity_token_that_does_not_count_is_said_to_be_one(
    tokens: tuple[RegistryServer, TokenServer],
    guarded: RegistryServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "WAITS", (0.01,))
    server, giver = tokens
    made = image(tmp_path, b"x")
    old = config(tmp_path / "old.json", auths={server.host: {"identitytoken": "expired"}})
    with pytest.raises(SystemFault, match=r"identity token is refused \(401\)") as refused:
        open_registry([old]).push(made, f"{server.host}/a:1")
    assert "docker login" in refused.value.hint
    assert "expired" not in str(refused.value)
    giver.fails = 503
    with pytest.raises(Unavailable, match="answers 503"):
        open_registry([old]).push(made, f"{server.host}/a:1")
    file = config(tmp_path / "basic.json", auths={guarded.host: {"identitytoken": IDENTITY}})
    with pytest.raises(SystemFault, match="an identity token, which it does not take"):
        open_registry([file]).push(made, f"{guarded.host}/a:1")


def test_each_registry_is_found_under_the_names_that_it_has_in_the_file(tmp_path: Path) -> None:
    auths = {
        "https://index.docker.io/v1/": {"auth": "hub"},
        "https://a.example.com": {"auth": "address"},
        "127.0.0.1:5000": {"auth": "loopback"},
    }
    file = config(tmp_path / "config.json", auths=auths)
    for host, found in (("docker.io", "hub"), ("a.example.com", "address"), ("localhost:5000", "loopback")):
        assert credentials.find(host, [tmp_path / "absent", file]) == Credentials(basic=found)
    assert credentials.find("b.example.com", [file]) == Credentials()


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": ["x"]}', '{"auths": {"a.example.com": "x"}}'])
def test_a_file_of_another_form_is_said_to_be_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemFault, match="cannot be read"):
        credentials.find("a.example.com", [tmp_path / "config.json"])


def test_a_helper_has_its_time(tmp_path: Path, helper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_PATIENCE", 0.2)
    write(helper, "exec sleep 30")
    found = credentials.find("a.example.com", [config(tmp_path / "config.json", credsStore="test")])
    assert "has not answered in" in found.lacking
