"""What is inside an image, as CycloneDX has it: the Python packages by their wheels, and the base's Debian packages."""

from __future__ import annotations

import json
import uuid

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from drivetrain import __version__
from drivetrain.backends.images import Built, Wheel
from drivetrain.backends.images.debian import Debian, Package

MEDIA_TYPE = "application/vnd.cyclonedx+json"


def document(name: str, built: Built, debian: Debian) -> bytes:
    """The SBOM of the image as JSON, the same for the same image."""
    image = Component(
        name=name, version=built.image.digest, type=ComponentType.CONTAINER, bom_ref=built.image.digest,
        purl=PackageURL("oci", None, name.rpartition("/")[2], built.image.digest, {"repository_url": name}),
    )  # fmt: skip
    tool = Component(name="drivetrain", version=__version__, type=ComponentType.APPLICATION, bom_ref="drivetrain")
    bom = Bom(
        # Named for the image: a random number would make another document each time.
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, built.image.digest),
        metadata=BomMetaData(component=image, properties=_notes(debian)),
        components=[*map(_wheel, built.packages), *(_package(package, debian.release) for package in debian.packages)],
    )
    bom.metadata.tools.components.add(tool)
    bom.register_dependency(image, bom.components)
    told = json.loads(JsonV1Dot6(bom).output_as_string())
    told["metadata"].pop("timestamp", None)
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def _notes(debian: Debian) -> list[Property]:
    """What a reader has to know of a document that does not list everything."""
    left_out = [] if debian.complete else [Property(name="drivetrain:unread", value="a layer of the base")]
    return [Property(name="drivetrain:distribution", value=debian.release or "not known"), *left_out]


def _wheel(wheel: Wheel) -> Component:
    purl = PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.file})
    return Component(
        name=wheel.name, version=wheel.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
    )  # fmt: skip


def _package(package: Package, release: str) -> Component:
    told = {"arch": package.architecture} | ({"distro": release} if release else {})
    purl = PackageURL("deb", release.partition("-")[0] or "debian", package.name, package.version, told)
    return Component(
        name=package.name, version=package.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string()
    )
