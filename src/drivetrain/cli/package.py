"""`drivetrain package`: the champion as an image, or the project as the image that a pipeline's steps run in."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from drivetrain import deployment, packaging, project, wiring
from drivetrain.backends.images import Audit, Built, Images, Layer, Pushed
from drivetrain.cli import output
from drivetrain.errors import UsageError
from drivetrain.project import Project


@click.command()
@click.argument("project_path", metavar="[PROJECT]", required=False, type=click.Path(exists=True))
@click.option(
    "--push",
    metavar="REF",
    help="Push it: HOST[:PORT]/REPOSITORY[:TAG]. Default: package.push, if there is one; with --stages the target's image.",
)
@click.option(
    "--output", "folder", metavar="DIR", type=click.Path(file_okay=False), help="Write it as an OCI image layout."
)
@click.option("--stages", is_flag=True, help="The image that a pipeline's steps run in, in place of the champion's.")
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
    where: str, project_path: str | None, push: str | None, folder: str | None, stages: bool, target: str, audited: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make an image of the champion: of this project, or of the one at PROJECT.

    No daemon, no container and no root is needed. What was made before is used again: a new model adds its weights, a change of the code
    a few kilobytes.

    With --stages it is the image in which the steps of `drivetrain render kubeflow` run: the project, all of Drivetrain, and the packages
    of the lock file. It needs no champion.
    """
    opened = project.open_project(Path(project_path or where), target=target)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        made = _of_stages(opened) if stages else _of_champion(opened, Path(directory))
        seconds = time.monotonic() - began
        found = _look_up(opened, made.built) if audited else None
        pushed = None
        if found is None or not found.found:
            if folder is not None:
                made.images.write(made.built.image, Path(folder), made.tag)
            # Asked for a folder alone, it goes to no registry.
            ref = push or (None if folder else made.goes_to)
            if ref is not None:
                pushed = made.push(packaging.tagged(ref, made.tag))
    _tell(made.built, pushed, folder, seconds, found, as_json)
    if found is not None and found.found:
        raise SystemExit(1)


@dataclass(frozen=True, slots=True)
class _Made:
    """An image, the tag that it has where none is given, where it goes if nothing is said, and how it gets there."""

    images: Images
    built: Built
    tag: str
    goes_to: str | None
    push: Callable[[str], Pushed]


def _of_champion(opened: Project, scratch: Path) -> _Made:
    part = opened.definition.package
    if part is not None and part.image is not None:
        raise UsageError(
            f"package.image names an image that is there already: {part.image}",
            hint="without that key the image is made here",
        )
    images, deployed = wiring.images(opened.state), deployment.leading(opened)
    recipe = deployment.recipe(opened, deployed, scratch / "bundle")
    built = images.build(recipe, _say)

    def push(ref: str) -> Pushed:
        signature = deployment.signature(opened, deployed, recipe.bundle / "model", scratch / "signature")
        trust, origin = deployment.trust(opened), deployment.origin(opened, deployed)
        return packaging.publish(images, trust, built, ref, origin, signature, _say)

    version = str(deployed.outputs.bundle.metadata["version"])
    return _Made(images, built, version, wiring.image_goes_to(opened.definition, opened.target), push)


def _of_stages(opened: Project) -> _Made:
    images = wiring.images(opened.state)
    built = images.build_stages(packaging.stages_recipe(opened.definition, opened.root, opened.commit), _say)

    def push(ref: str) -> Pushed:
        if "@" in ref:
            raise UsageError(f"{ref} names a digest, and an image is pushed to a tag", hint="give one with --push")
        origin = deployment.origin_of_stages(opened)
        return packaging.publish(images, deployment.trust(opened), built, ref, origin, None, _say)

    return _Made(images, built, "latest", opened.target.image, push)


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
