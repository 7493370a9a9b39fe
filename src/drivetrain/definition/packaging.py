"""The part of `drivetrain.yaml` about the image that the model is packaged into."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from drivetrain.definition.values import Part

_REFERENCE = re.compile(
    r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?/)?"  # host and port
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"  # repository
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"  # tag, digest
)
_WANTED = "an image's reference such as localhost:5000/flights is wanted, in lower case"


class Sign(Part):
    """Whose signatures of models and images count, and who signs them."""

    key: str | None = Field(
        None,
        description="PEM file with the private key (an elliptic curve) that models and images are signed with. None: nothing is signed, "
        "only checked.",
    )
    public_key: str | None = Field(
        None, description="PEM file with the public key whose signatures count. None: that of `package.sign.key`."
    )
    password_variable: str | None = Field(
        None, description="Environment variable with the private key's password. None: the key has none."
    )
    identity: str | None = Field(
        None,
        description="Without keys: whom a certificate of sigstore has to name, such as the address of a workflow. Who signs is then what "
        "the platform's identity provider says.",
    )
    issuer: str | None = Field(
        None, description="Address of the identity provider that vouches for `package.sign.identity`."
    )
    check: Literal["layers", "manifest", "nothing"] = Field(
        "layers",
        description="What is checked before a version is deployed: the model, and the image with every byte of its `layers`; or of the "
        "image its signed `manifest` alone, since whoever pulls it compares the layers with that; or `nothing`.",
    )

    @model_validator(mode="after")
    def _somebody(self) -> Sign:
        by_key = self.key is not None or self.public_key is not None
        if by_key == (self.identity is not None):
            raise ValueError(
                "either a key or an identity is wanted: `key` or `public_key`, or else `identity` and `issuer`"
            )
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("an identity and its issuer are named together")
        return self


class Package(Part):
    """The image: what it stands on, and where it goes."""

    base: str | None = Field(
        None,
        description="What the image stands on: an image in a registry, an OCI layout folder (`FOLDER` or `FOLDER:TAG`), or a root file "
        "system as a tar archive. None: chosen from `cog.yaml`.",
    )
    push: str | None = Field(
        None,
        description="Where the image is pushed, as `HOST[:PORT]/REPOSITORY[:TAG]`; without a tag, under the model version. None: nowhere; "
        "`drivetrain package` can still push or write it.",
    )
    image: str | None = Field(
        None,
        description="An image that `cog build` made of the same project, by its reference: taken in place of ours.",
    )
    platform: Literal["linux/amd64", "linux/arm64"] = Field("linux/amd64", description="What the image runs on.")
    user: int = Field(10001, ge=0, le=2**31 - 1, description="Number of the user that the service runs as. 0: root.")
    source: str | None = Field(None, description="Address of the project's source code, for the image's annotations.")
    sign: Sign | None = Field(
        None,
        description="Signatures of model and image. None: nothing is signed, and deployments ask for no signature.",
    )
    advisories: str | None = Field(
        None,
        description="Folder or zip file of advisories in OSV's form (an export of osv.dev, a copy of PyPA's advisory database), which "
        "`drivetrain package --audit` looks packages up in. None: it asks PyPI.",
    )

    @field_validator("push", "image")
    @classmethod
    def _is_a_reference(cls, value: str | None) -> str | None:
        if value is not None and not _REFERENCE.fullmatch(value):
            raise ValueError(_WANTED)
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> Package:
        if self.image is not None and (self.base or self.push):
            raise ValueError("an image that is there already is neither given a base nor pushed")
        if self.push is not None and "@" in self.push:
            raise ValueError("an image is pushed to a tag; its digest follows from it")
        return self
