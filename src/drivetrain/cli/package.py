"""`drivetrain package`: the champion as an image."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from drivetrain import deployment, packaging, project, wiring
from drivetrain.backends.images import Audit, Built, Images, Layer, Pushed
from drivetrain.cli import output
from drivetrain.deployment import Deployed
from drivetrain.errors import UsageError
from drivetrain.project import Project


@click.command()
@click.argument("project_path", metavar="[PROJECT]", required=False, type=click.Path(exists=True))
@click.option(
    "--push", metavar="REF", help="Push it: HOST[:PORT]/REPOSITORY[:TAG]. Default: package.push, if there is one."
)
@click.option(
    "--output", "folder", metavar="DIR", type=click.Path(file_okay=False), help="Write it as an OCI image layout."
)
@click.option(
    "--target", default="local", show_default=True, help="Whose registry and objects: a target of the definition."
)
@click.option(
    "--audit",
    "audited",
    is_flag=True,
    help="Look its packages up in advisories first, and go no further if one is known to be vulnerable (exit 1).",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def package(
    where: str, project_path: str | None, push: str | None, folder: str | None, target: str, audited: bool, as_json: bool
) -> None:  # fmt: skip
    """Make an image of the champion: of this project, or of the one at PROJECT.

    No daemon, no container and no root is needed. What was made before is used again: a new model adds its weights, a change of the code
    a few kilobytes.
    """
    opened = project.open_project(Path(project_path or where), target=target)
    part = opened.definition.package
    if part is not None and part.image is not None:
        raise UsageError(
            f"package.image names an image that is there already: {part.image}",
            hint="without that key the image is made here",
        )
    began = time.monotonic()
    images, deployed = wiring.images(opened.state), deployment.leading(opened)
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        recipe = deployment.recipe(opened, deployed, Path(directory) / "bundle")
        built = images.build(recipe, _say)
        seconds, version = time.monotonic() - began, str(deployed.outputs.bundle.metadata["version"])
        found = _look_up(opened, built) if audited else None
        pushed = None
        if found is None or not found.found:
            if folder is not None:
                images.write(built.image, Path(folder), version)
            # Asked for a folder alone, it goes to no registry.
            ref = push or (None if folder else wiring.image_goes_to(opened.definition, opened.target))
            if ref is not None:
                pushed = _push(opened, deployed, images, built, recipe.bundle, packaging.tagged(ref, version))
    _tell(built, pushed, folder, seconds, found, as_json)
    if found is not None and found.found:
        raise SystemExit(1)


def _push(opened: Project, deployed: Deployed, images: Images, built: Built, bundle: Path, ref: str) -> Pushed:
    signature = deployment.signature(opened, deployed, bundle / "model", bundle.parent / "signature")
    trust, origin = deployment.trust(opened), deployment.origin(opened, deployed)
    return packaging.publish(images, trust, built, ref, origin, signature, _say)


def _look_up(opened: Project, built: Built) -> Audit:
    part = opened.definition.package
    local = opened.root / part.advisories if part and part.advisories else None
    return wiring.audit(opened.state, built.packages, local)


def _say(text: str) -> None:
    click.echo(f"package … {text}", err=True)


def _tell(
    built: Built, pushed: Pushed | None, folder: str | None, seconds: float, found: Audit | None, as_json: bool
) -> None:
    if as_json:
        output.as_json(_document(built, pushed, folder, seconds, found))
        return
    output.table(["layer", "size", "digest"], [[*_row(layer)] for layer in built.layers])
    click.echo(f"\nimage {built.image.digest}  {output.size(built.image.size)}, built in {output.seconds(seconds)}")
    if found is not None:
        _tell_audit(found)
        if found.found:
            return
    if folder is not None:
        click.echo(f"written to {folder}: skopeo, podman and buildah know it as oci:{folder}")
    if pushed is not None:
        click.echo(f"pushed to {pushed.ref}: {output.size(pushed.bytes_sent)} in {output.seconds(pushed.seconds)}")
    if folder is None and pushed is None:
        click.echo("  it is kept in the builder's store alone; --push REF or --output DIR takes it somewhere", err=True)


def _tell_audit(found: Audit) -> None:
    click.echo(
        f"{found.packages} packages looked up in {found.source}: {len(found.found) or 'no'} known vulnerabilities"
    )
    if found.unknown:
        click.echo(f"  nothing is known there of {', '.join(found.unknown)}")
    if found.found:
        rows = [
            [f"{each.package} {each.version}", each.id, ", ".join(each.fixed) or "nowhere", output.cut(each.told, 60)]
            for each in found.found
        ]
        output.table(["package", "advisory", "fixed in", ""], rows)
        click.echo("  the image is neither written nor pushed", err=True)


def _row(layer: Layer) -> tuple[str, str, str]:
    return (
        output.cut(layer.made, 60),
        output.size(layer.blob.size),
        output.short(layer.blob.digest.removeprefix("sha256:")),
    )


def _document(
    built: Built, pushed: Pushed | None, folder: str | None, seconds: float, found: Audit | None
) -> dict[str, Any]:
    return {
        "digest": built.image.digest,
        "size": built.image.size,
        "base": built.base,
        "weights": built.weights.digest if built.weights else None,
        "seconds": round(seconds, 3),
        "layers": [
            {"made": layer.made, "size": layer.blob.size, "digest": layer.blob.digest} for layer in built.layers
        ],
        "packages": [f"{wheel.name}=={wheel.version}" for wheel in built.packages],
        "output": None if found and found.found else folder,
        "audit": None if found is None else asdict(found),
        "pushed": None if pushed is None else {
            "ref": pushed.ref, "bytes_sent": pushed.bytes_sent, "bytes_mounted": pushed.bytes_mounted,
            "seconds": round(pushed.seconds, 3),
        },
    }  # fmt: skip
