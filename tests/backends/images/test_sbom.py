"""Lists of what is inside an image."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.images import LAYER, Blob, Built, Image, Layer, Wheel, sbom
from drivetrain.backends.images.debian import Debian, Package, installed, parse
from drivetrain.backends.images.store import Store

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 Version: not a field, but the second line of one
 .

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: tzdata
Status: hold ok installed
Architecture: all
Version: 2025b-0+deb12u1
"""
RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n'


def layer(folder: Path, files: Mapping[str, str], *, packed: bool = False) -> Layer:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    content = gzip.compress(data.getvalue()) if packed else data.getvalue()
    blob = Store(folder / "blobs").put(LAYER, content)
    return Layer(blob, blob.digest, "base")


def image() -> Built:
    digest = f"sha256:{'a' * 64}"
    made = Image(b"{}", digest, Blob(digest, 2, "x"), [], {})
    return Built(made, None, [Wheel("numpy", "2.0", "numpy-2.0-cp311.whl", "b" * 64, 10)], "", [], True)


def test_the_packages_of_a_base_are_those_that_dpkg_has_installed(tmp_path: Path) -> None:
    base = layer(tmp_path, {"./var/lib/dpkg/status": STATUS, "./usr/lib/os-release": RELEASE}, packed=True)
    expected = Debian(
        [Package("libc6", "2.36-9+deb12u10", "amd64"), Package("tzdata", "2025b-0+deb12u1", "all")], "debian-12"
    )
    store = Store(tmp_path / "store")
    assert installed([base], store) == expected
    assert base.blob.path is not None
    base.blob.path.unlink()
    assert installed([base], store) == expected, "read once"


def test_a_later_layer_has_the_last_word_and_images_without_dpkg_have_a_file_a_package(tmp_path: Path) -> None:
    one = layer(tmp_path, {"var/lib/dpkg/status.d/base": STATUS.split("\n\n")[0], "etc/os-release": "ID=debian\n"})
    two = layer(
        tmp_path, {"var/lib/dpkg/status.d/tz": STATUS.split("\n\n")[2], "var/lib/dpkg/status.d/tz.md5sums": "x"}
    )
    found = installed([one, two], Store(tmp_path / "store"))
    assert ([package.name for package in found.packages], found.release) == (["libc6", "tzdata"], "debian")
    old = layer(tmp_path, {"var/lib/dpkg/status": STATUS})
    new = layer(tmp_path, {"var/lib/dpkg/status": STATUS.split("\n\n")[0]})
    assert [package.name for package in installed([old, new], Store(tmp_path / "store")).packages] == ["libc6"]


def test_a_layer_that_cannot_be_read_is_said_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "zstd").write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 600)
    layers = [Layer(Blob("sha256:1", 604, LAYER, tmp_path / "zstd"), "sha256:1", "base")]
    assert not installed(layers, Store(tmp_path / "store")).complete
    afar = Layer(Blob("sha256:2", 1, LAYER), "sha256:2", "base")
    found = installed([afar], Store(tmp_path / "store"))
    assert "drivetrain:unread" in sbom.document("h/r", image(), found).decode()


def test_the_document_is_cyclonedx_and_the_same_each_time() -> None:
    found = Debian([Package("libc6", "2.36", "amd64")], "debian-12")
    document = sbom.document("localhost:5000/flights", image(), found)
    assert document == sbom.document("localhost:5000/flights", image(), found)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode()) is None
    told = json.loads(document)
    assert {entry["purl"] for entry in told["components"]} == {
        "pkg:pypi/numpy@2.0?file_name=numpy-2.0-cp311.whl", "pkg:deb/debian/libc6@2.36?arch=amd64&distro=debian-12",
    }  # fmt: skip
    assert told["components"][1]["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]


@given(st.text(alphabet="aPp: \nVersionckgeStu.-+\t\r\x00é"))
def test_whatever_is_in_dpkgs_records_is_read_without_an_error(text: str) -> None:
    assert all(package.name and package.version for package in parse(text))


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9+.-]{1,8}", fullmatch=True),
                          st.from_regex(r"[0-9][0-9a-z.+~:-]{0,8}", fullmatch=True)), max_size=5))  # fmt: skip
def test_every_installed_package_is_found(packages: list[tuple[str, str]]) -> None:
    text = "\n\n".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: {version}"
        for name, version in packages
    )
    assert [(package.name, package.version) for package in parse(text)] == packages
