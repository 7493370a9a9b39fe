"""What an image is made of, as the definition and the project say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivetrain import packaging, wiring
from drivetrain.definition.definition import Definition, Target


def definition(**parts: Any) -> Definition:
    told = {
        "name": "small", "data": {"source": "rows.csv", "label": "late"}, "train": {"function": "train.py:train"},
        "evaluate": {"metric": "roc_auc"},
    }  # fmt: skip
    return Definition.model_validate(told | parts)


@pytest.mark.parametrize(
    ("link", "target", "key"),
    [("keys", "secrets", "keys/signing.key"), ("signing.key", "secrets/signing.key", "signing.key")],
)
def test_a_private_key_behind_a_link_is_in_no_image_by_either_name(
    tmp_path: Path, link: str, target: str, key: str
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "signing.key").write_text("private")
    (tmp_path / link).symlink_to(target)
    recipe = packaging.stages_recipe(definition(package={"sign": {"key": key}}), tmp_path, "")
    assert {key, "secrets/signing.key"} <= set(recipe.leave_out)


@pytest.mark.parametrize(
    ("part", "platform", "expected"),
    [
        (None, "local", None),
        (None, "microk8s", "localhost:32000/small"),
        ({}, "microk8s", "localhost:32000/small"),
        ({"push": "registry.example.com/other"}, "microk8s", "registry.example.com/other"),
        ({"image": "registry.example.com/of-cog:1"}, "microk8s", None),
    ],
)
def test_images_go_where_the_definition_says_or_into_the_targets_own_registry(
    part: dict[str, str] | None, platform: str, expected: str | None
) -> None:
    found = definition(**({} if part is None else {"package": part}))
    assert wiring.image_goes_to(found, Target(platform=platform)) == expected
