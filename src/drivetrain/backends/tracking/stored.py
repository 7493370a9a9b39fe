"""A stored model's directory: the user's code beside it, nothing in it that differs between equal models, and the
model in use. Nothing of MLflow is in here but the names of its files."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from drivetrain.backends.tracking import flavors
from drivetrain.errors import DrivetrainError, StageError
from drivetrain.records import Scalar

_UNSTABLE = ("run_id", "model_id", "model_uuid", "utc_time_created", "artifact_path", "model_size_bytes")
"""Keys of `MLmodel` that differ from run to run; the size is that of files which have not been made stable yet."""


@dataclass(frozen=True, slots=True)
class Note:
    """`drivetrain.json`: what MLflow's `MLmodel` has no place for."""

    flavor: str
    classes: Sequence[Scalar] | None
    features: Sequence[str]


def read_note(directory: Path) -> Note:
    """The note in a model's directory."""
    return Note(**json.loads((directory / "drivetrain.json").read_bytes()))


def write_note(directory: Path, note: Note) -> None:
    """Puts the note into a model's directory."""
    values = {"classes": note.classes, "features": note.features, "flavor": note.flavor}
    (directory / "drivetrain.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def copy_code(code: Mapping[str, Path], directory: Path) -> list[str]:
    """The modules' files laid out by their names, so that `import a.b` finds them; what lies at the top of that."""
    for name, file in code.items():
        place = directory.joinpath(*name.split("."))
        place = place / "__init__.py" if file.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return sorted(str(path) for path in directory.iterdir())


def forget_other_code(code: Path) -> None:
    """Drops modules that stand where a module of this model belongs: those of the project as it is now, or of the
    model loaded before, which may be another version of the same file."""
    if not code.is_dir():
        return
    tops = {path.stem for path in code.iterdir()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in tops and not (file and Path(file).is_relative_to(code)):
            del sys.modules[name]


def make_stable(directory: Path) -> None:
    """Takes out of a model's directory what differs between equal models: ids, times, orders, and which Python, pip and setuptools the
    machine happens to have."""
    with _edited(directory / "MLmodel") as document:
        for key in _UNSTABLE:
            document.pop(key, None)
        for flavor in document.get("flavors", {}).values():
            if "python_version" in flavor:
                flavor["python_version"] = _short(flavor["python_version"])
    for name in ("conda.yaml", "python_env.yaml"):
        if (directory / name).is_file():
            with _edited(directory / name) as document:
                _forget_machine(document)
    for archive in directory.glob("data/*.keras"):
        make_archive_stable(archive)


@contextmanager
def _edited(file: Path) -> Iterator[dict[str, Any]]:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    yield document
    file.write_text(yaml.safe_dump(document, sort_keys=True, allow_unicode=True), encoding="utf-8")


def _forget_machine(document: dict[str, Any]) -> None:
    """Of the two files that describe an environment: Python as `MAJOR.MINOR`, and the tools that install packages without versions."""
    if "python" in document:
        document["python"] = _short(document["python"])
    for key in {"dependencies", "build_dependencies"} & set(document):
        document[key] = [_without_version(entry) for entry in document[key]]


def _without_version(entry: Any) -> Any:
    name, equals, version = str(entry).partition("=")
    if isinstance(entry, str) and name == "python" and equals:
        return f"python={_short(version)}"
    tool = re.match(r"(pip|setuptools|wheel)\b", entry) if isinstance(entry, str) else None
    return tool[1] if tool else entry


def _short(version: str) -> str:
    """`3.11.7` as `3.11`: a patch release changes nothing that a model depends on."""
    return ".".join(str(version).split(".")[:2])


_SHARED = re.compile(rb'("shared_object_id": )(\d+)')


class _Numbering:
    """Replaces every id by its number in the order in which they first occur."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def __call__(self, found: re.Match[bytes]) -> bytes:
        number = self._seen.setdefault(found[2], len(self._seen) + 1)
        return found[1] + str(number).encode()


def make_archive_stable(archive: Path) -> None:
    """Takes out of a `.keras` file what differs between equal models: the times of its members, `date_saved` in its
    metadata, and the memory addresses by which its configuration names shared objects."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in sorted(old.namelist())}
    metadata = json.loads(members["metadata.json"])
    metadata.pop("date_saved", None)
    members["metadata.json"] = json.dumps(metadata, sort_keys=True).encode()
    members["config.json"] = _SHARED.sub(_Numbering(), members["config.json"])
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in members.items():
            new.writestr(zipfile.ZipInfo(name), content)


def in_memory(model: Any, example: pd.DataFrame, labels: Sequence[Scalar] | None) -> StoredModel:
    """A fitted model as it would be once it is stored, tried on the example; `labels` as in `TrackedRun.save_model`.

    Raises `StageError` if it is no model that can be stored, or does not answer the example.
    """
    flavor = flavors.recognise(model)
    output = flavor.raw(model, example, False).shape if flavor.tensors else None
    classification = flavors.is_classifier(model, flavor, output, labels)
    flavors.check(model, flavor, classification)
    classes = flavors.classes_of(model, labels if classification else None)
    found = StoredModel(model, flavor, classes, list(example.columns))
    found.predict(example)
    return found


@dataclass(frozen=True, slots=True)
class StoredModel:
    """`Predictor` by a model in memory."""

    model: Any
    flavor: flavors.Flavor
    classes: Sequence[Scalar] | None
    features: Sequence[str]

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """See `Predictor.predict`."""
        missing = [name for name in self.features if name not in features.columns]
        if missing:
            raise StageError(f"the model takes columns that are not there: {', '.join(missing)}")
        rows = features[list(self.features)]
        try:
            output = self.flavor.raw(self.model, rows, self.classes is not None)
        except (DrivetrainError, MemoryError):
            raise
        except Exception as error:
            raise StageError(f"the model raised {type(error).__name__} on {len(rows)} rows: {error}") from error
        if self.classes is not None:
            return flavors.probabilities(output, self.classes)
        values = np.asarray(output, dtype=np.float64)
        if values.size != len(rows):
            raise StageError(f"the model gives an output of shape {output.shape} for {len(rows)} rows of one label")
        return values.reshape(len(rows))
