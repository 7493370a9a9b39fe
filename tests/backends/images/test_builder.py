"""The builder: bundles become images, and only what has changed is made anew."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.images import Built, Recipe, layout
from drivetrain.backends.images.oci import OciImages
from drivetrain.errors import CorruptArtifact, StageError, SystemFault
from tests.backends.images import made
from tests.backends.images.conftest import no_registry

Build = Callable[..., Built]


def digests(built: Built) -> dict[str, str]:
    return {layer.made: layer.blob.digest for layer in built.layers}


def changed(before: Built, after: Built) -> set[str]:
    first, second = digests(before), digests(after)
    return {name.partition(" ")[0] for name in first | second if first.get(name) != second.get(name)}


def config(built: Built) -> dict[str, Any]:
    assert built.image.config.path is not None
    found: dict[str, Any] = json.loads(built.image.config.path.read_bytes())
    return found


def test_the_layers_go_from_what_changes_least_to_what_changes_most(tmp_path: Path, build: Build) -> None:
    built = build(made.bundle(tmp_path / "bundle"))
    assert [layer.made.partition(" ")[0] for layer in built.layers] == [
        "base",
        "packages",
        "replica",
        "code",
        "weights",
    ]
    base, packages, replica, code, weights = [layer.blob.path for layer in built.layers]
    assert base is not None
    assert packages is not None
    assert replica is not None
    assert code is not None
    assert weights is not None
    assert base.read_bytes() == (tmp_path / "base.tar").read_bytes()
    assert "opt/venv/lib/python3.11/site-packages/wanted.py" in made.names(packages)
    assert {"opt/venv/bin/python", "opt/venv/pyvenv.cfg"} <= set(made.names(replica))
    assert "opt/venv/lib/python3.11/site-packages/drivetrain/backends/serving/replica/worker.py" in made.names(replica)
    assert not any("mlflow" in name or "/cli/" in name for name in made.names(replica))
    assert made.names(weights) == ["src/model/model.bin"]
    assert {"src/run.py", "src/cog.yaml", "src/.cog/openapi_schema.json"} <= set(made.names(code))
    assert not any(name.startswith("src/model") for name in made.names(code))


def test_two_folders_and_two_stores_give_one_digest(tmp_path: Path, build: Build) -> None:
    first = build(made.bundle(tmp_path / "one" / "bundle"), store="first")
    second = made.bundle(tmp_path / "two" / "elsewhere")
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
    assert build(second, store="second").image == built_in(first, tmp_path / "second")


def built_in(built: Built, store: Path) -> Any:
    """The image with its blobs in another store."""

    def there(blob: Any) -> Any:
        return replace(blob, path=store / "blobs" / "sha256" / blob.digest[7:])

    return replace(built.image, config=there(built.image.config), layers=[there(blob) for blob in built.image.layers])


def test_a_change_of_the_code_changes_the_layer_of_the_code(tmp_path: Path, build: Build) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    before = build(bundle)
    (bundle / "run.py").write_text((bundle / "run.py").read_text() + "# more\n")
    after = build(bundle)
    assert changed(before, after) == {"code"}
    assert after.layers[-2].blob.size < 100_000


def test_new_weights_change_the_layer_of_the_weights(tmp_path: Path, build: Build) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    before = build(bundle)
    (bundle / "model" / "model.bin").write_bytes(b"others")
    assert changed(before, build(bundle)) == {"weights"}


def test_weights_whose_digest_is_known_are_not_read_again(tmp_path: Path, build: Build) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    before = build(bundle, weights="d1")
    (bundle / "model" / "model.bin").unlink()
    assert build(bundle, weights="d1").image.digest == before.image.digest


def test_a_new_dependency_leaves_the_big_wheels_alone(tmp_path: Path, build: Build, packages: Path) -> None:
    made.wheel(packages, "big", files={"big.bin": os.urandom(5 * 2**20)})
    before = build(made.bundle(tmp_path / "bundle", "wanted==1.0\nbig\n"))
    made.wheel(packages, "new")
    after = build(made.bundle(tmp_path / "other", "wanted==1.0\nbig\nnew\n"))
    assert digests(before)["package big 1.0"] == digests(after)["package big 1.0"]
    # The code has the requirements file in it.
    assert changed(before, after) == {"packages", "code"}


def test_the_weights_are_an_image_of_their_own_with_the_same_layer(tmp_path: Path, build: Build) -> None:
    built = build(made.bundle(tmp_path / "bundle"))
    assert built.weights is not None
    assert list(built.weights.layers) == [built.layers[-1].blob]
    assert built.weights.digest != built.image.digest


def test_the_config_says_how_the_service_starts(tmp_path: Path, build: Build) -> None:
    cog = "  gpu: true\nenvironment: [MODE=fast]\nconcurrency: {max: 3}\n"
    bundle = made.bundle(tmp_path / "bundle", cog=cog)
    annotations = {"org.opencontainers.image.version": "7"}
    built = build(bundle, annotations=annotations, arguments=["--queue", "8"], uid=777)
    found = config(built)
    run = found["config"]
    assert (found["os"], found["architecture"]) == ("linux", "amd64")
    assert run["Entrypoint"] == ["/opt/venv/bin/python", "-m", "drivetrain.backends.serving.replica"]
    assert run["Cmd"] == [
        *["--bundle", "/src", "--runner", "run.py:Runner", "--name", "small", "--host", "0.0.0.0", "--queue", "8"]
    ]
    assert (run["User"], run["WorkingDir"], run["ExposedPorts"]) == ("777", "/src", {"5000/tcp": {}})
    assert {"MODE=fast", "COG_MAX_CONCURRENCY=3", "HOME=/tmp", "NVIDIA_VISIBLE_DEVICES=all"} <= set(run["Env"])
    assert run["Labels"]["run.cog.version"]
    assert json.loads(run["Labels"]["run.cog.openapi_schema"]) == {"openapi": "3.0.2"}
    assert json.loads(run["Labels"]["run.cog.config"])["run"] == "run.py:Runner"
    assert "wanted==1.0" in run["Labels"]["run.cog.pip_freeze"].splitlines()
    assert run["Healthcheck"]["Test"][0] == "CMD"
    assert built.image.annotations["org.opencontainers.image.version"] == "7"
    assert str(tmp_path) not in built.image.manifest.decode() + json.dumps(found)
    assert len(found["rootfs"]["diff_ids"]) == len(found["history"]) == len(built.layers)


def test_an_image_without_a_python_of_its_own_is_refused(tmp_path: Path, build: Build) -> None:
    made.base(tmp_path / "base.tar", pythons=("3.9", "3.12"))
    with pytest.raises(StageError, match=r"has no Python 3\.11, which cog\.yaml asks for: it has 3\.12, 3\.9"):
        build(made.bundle(tmp_path / "bundle"))


def test_a_wheel_that_is_missing_is_said_before_anything_is_written(tmp_path: Path, build: Build) -> None:
    with pytest.raises(StageError, match="missing-one has no wheel"):
        build(made.bundle(tmp_path / "bundle", "missing-one\n"), store="new")
    assert list((tmp_path / "new" / "blobs" / "sha256").iterdir()) == []


def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path, build: Build) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    (bundle / "secret").symlink_to("/etc/passwd")
    with pytest.raises(StageError, match="lies outside of what the image is made of"):
        build(bundle)


@pytest.mark.parametrize(
    ("line", "message"),
    [("", "it has no `run:`"), ('run: "predict.py:Predictor"\n', r"predict\.py is not in the bundle")],
)
def test_a_bundle_without_the_runner_that_is_to_start_is_refused(
    tmp_path: Path, build: Build, line: str, message: str
) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    told = (bundle / "cog.yaml").read_text()
    (bundle / "cog.yaml").write_text(told.replace('run: "run.py:Runner"\n', line))
    with pytest.raises(StageError, match=message) as caught:
        build(bundle)
    assert caught.value.where == "cog.yaml"


def test_a_disk_that_is_full_is_one_clear_error(tmp_path: Path, packages: Path) -> None:
    bundle = made.bundle(tmp_path / "bundle", "", weights=bytes(4 * 1024**2))
    made.base(tmp_path / "base.tar")
    recipe = Recipe(bundle=bundle, name="small", folder=tmp_path, base="base.tar")
    images = OciImages(tmp_path / "store", no_registry)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 1024**2, before[1]))
    try:
        with pytest.raises(SystemFault, match="there is no room for the image") as caught:
            images.build(recipe, lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / "store") in caught.value.hint
    assert images.build(recipe, lambda text: None).weights is not None


def test_commands_without_buildah_are_refused_with_what_to_do(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StageError, match="buildah is not installed") as caught:
        build(made.bundle(tmp_path / "bundle", cog="  run: [echo hello]\n"))
    assert "package.base" in caught.value.hint


def test_a_folder_of_wheels_is_the_projects_wherever_the_command_is_typed(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "project"
    made.wheel(place / "wheels", "own")
    # Modules of the project are none of pip's.
    (place / "logging.py").write_text("raise RuntimeError('imported')\n")
    bundle = made.bundle(tmp_path / "bundle", "--find-links wheels\nwanted==1.0\nown==1.0\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    built = build(bundle, folder=place, base="../base.tar")
    own = next(wheel for wheel in built.packages if wheel.name == "own")
    other = tmp_path / "other"
    made.wheel(other / "wheels", "own", files={"own.py": b"VERSION = 'another'\n"})
    again = build(bundle, folder=other, base="../base.tar")
    assert own not in again.packages
    assert build(bundle, folder=place, base="../base.tar").image == built.image


# as a layout


def skopeo(*arguments: object) -> str:
    if shutil.which("skopeo") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("skopeo is not installed")
    return subprocess.run(["skopeo", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_skopeo_inspects_and_copies_what_is_written(tmp_path: Path, build: Build) -> None:
    built = build(made.bundle(tmp_path / "bundle"))
    layout.write(built.image, tmp_path / "out", "7")
    found = json.loads(skopeo("inspect", f"oci:{tmp_path / 'out'}:7"))
    assert (found["Digest"], found["Os"]) == (built.image.digest, "linux")
    assert found["Layers"] == [layer.blob.digest for layer in built.layers]
    skopeo("copy", "--preserve-digests", f"oci:{tmp_path / 'out'}:7", f"oci:{tmp_path / 'copy'}:7")
    copied = layout.read(tmp_path / "copy", "linux/amd64")
    assert copied.digest == built.image.digest
    layout.verify(copied)


def test_a_layout_keeps_its_other_images(tmp_path: Path, build: Build) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    first = build(bundle)
    (bundle / "run.py").write_text("changed = True\n")
    second = build(bundle)
    for tag, built in (("1", first), ("2", second), ("2", second)):
        layout.write(built.image, tmp_path / "out", tag)
    for tag, built in (("1", first), ("2", second)):
        assert layout.read(tmp_path / "out", "linux/amd64", tag).digest == built.image.digest
    with pytest.raises(StageError, match="has 2 images"):
        layout.read(tmp_path / "out", "linux/amd64")
    with pytest.raises(StageError, match="has no image"):
        layout.read(tmp_path / "out", "linux/amd64", "3")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, build: Build) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(StageError, match="no OCI image layout"):
        layout.write(build(made.bundle(tmp_path / "bundle")).image, tmp_path / "out")


@pytest.mark.parametrize("what", ["manifest", "config", "layer", "cut"])
def test_a_tampered_layout_is_noticed(tmp_path: Path, build: Build, what: str) -> None:
    built = build(made.bundle(tmp_path / "bundle"))
    layout.write(built.image, tmp_path / "out")
    layer = built.image.layers[-1].digest
    digest = {"manifest": built.image.digest, "config": built.image.config.digest}.get(what, layer)
    path = tmp_path / "out" / "blobs" / "sha256" / digest[7:]
    data = path.read_bytes()
    path.unlink()  # it is a link into the store
    path.write_bytes(data[:-1] if what == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptArtifact):
        layout.verify(layout.read(tmp_path / "out", "linux/amd64"))


# bases


def test_an_image_stands_on_another_image(tmp_path: Path, build: Build) -> None:
    first = build(made.bundle(tmp_path / "bundle"))
    layout.write(first.image, tmp_path / "out", "base")
    second = build(made.bundle(tmp_path / "other"), base="out:base")
    assert second.base == first.image.digest
    assert [layer.blob.digest for layer in second.layers[:5]] == [layer.blob.digest for layer in first.layers]
    assert "HOME=/tmp" in config(second)["config"]["Env"]


def test_a_base_of_dockers_own_form_is_taken_with_its_bytes(tmp_path: Path, build: Build) -> None:
    first = build(made.bundle(tmp_path / "bundle"))
    layout.write(first.image, tmp_path / "out")
    # Docker's manifest, in a layout.
    skopeo("copy", f"oci:{tmp_path / 'out'}:latest", f"dir:{tmp_path / 'docker'}", "--format", "v2s2")
    manifest = (tmp_path / "docker" / "manifest.json").read_bytes()
    parsed = layout.parsed(manifest, lambda blob: blob)
    assert {blob.media_type.partition(".v1.tar")[0] for blob in parsed.layers} == {"application/vnd.oci.image.layer"}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_packed_archive_is_a_base(tmp_path: Path, build: Build, mode: str) -> None:
    made.base(tmp_path / "packed.tar", mode=mode)
    built = build(made.bundle(tmp_path / "bundle"), base="packed.tar")
    plain = build(made.bundle(tmp_path / "other"))
    assert built.layers[0].diff_id.startswith("sha256:")
    if mode == "w:gz":
        assert built.layers[0].blob.media_type.endswith("+gzip")
        assert built.layers[0].diff_id != built.layers[0].blob.digest
    assert [layer.blob.digest for layer in built.layers[1:]] == [layer.blob.digest for layer in plain.layers[1:]]
    layout.write(built.image, tmp_path / "out")
    assert json.loads(skopeo("inspect", f"oci:{tmp_path / 'out'}:latest"))["Layers"][0] == built.layers[0].blob.digest


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "does not exist"), ("text", "no tar archive"), ("empty", "no OCI image layout")],
)
def test_what_cannot_be_a_base_is_refused(tmp_path: Path, build: Build, name: str, message: str) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=message):
        build(made.bundle(tmp_path / "bundle"), base=name)


def test_a_base_for_another_platform_is_refused(tmp_path: Path, build: Build) -> None:
    layout.write(build(made.bundle(tmp_path / "bundle")).image, tmp_path / "out")
    with pytest.raises(StageError, match="is for amd64, and the image is to be for linux/arm64"):
        build(made.bundle(tmp_path / "other"), base="out", platform="linux/arm64")
