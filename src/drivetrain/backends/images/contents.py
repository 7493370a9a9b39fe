"""What an image holds above its base, as layers: packages, Drivetrain (the replica or all of it), the user's code, the weights."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from drivetrain import __version__
from drivetrain.backends.images import Layer, Wheel, itself, layers, locks, runtime, unpacked
from drivetrain.backends.images.layers import Entry
from drivetrain.backends.images.store import Sink, Store
from drivetrain.backends.images.wheels import Wheels

_BIG = 4 * 1024 * 1024
"""Bytes of a wheel from which on it is a layer of its own: a new dependency then moves that one alone."""
_MOST_BIG = 32
"""Layers of big wheels; storage drivers stack little more than a hundred layers, and the base has some."""
_MODEL = "model"
_NOT_THE_USERS = ("__pycache__", "node_modules")
_MARKS = ("pyvenv.cfg", "oci-layout")
"""Files that tell a directory for a virtual environment, or for an image."""
_METADATA = f"Metadata-Version: 2.1\nName: drivetrain\nVersion: {__version__}\n"
"""So that the replica finds its own version."""


class Contents:
    """Makes the layers for one version of Python, and keeps them in the store."""

    def __init__(self, store: Store, python: str) -> None:
        self._store = store
        self._python = python
        self._site = unpacked.site_packages(python)
        self._compiled = store.root / "compiled"
        self._compiled.mkdir(exist_ok=True)
        self._compiler = unpacked.interpreter(python)
        self.compiles = self._compiler is not None
        """Whether Python files are compiled beforehand; not where this machine has no Python of that version."""

    def packages(self, found: Sequence[Wheel], kept: Wheels) -> list[Layer]:
        """The wheels: each big one by itself, the others together with the list of all of them."""
        by_size = sorted((wheel for wheel in found if wheel.size >= _BIG), key=lambda wheel: (-wheel.size, wheel.name))
        big = sorted(by_size[:_MOST_BIG], key=lambda wheel: wheel.name)
        rest = [wheel for wheel in found if wheel not in big]
        lock = layers.content(f"{unpacked.HOME}/requirements.lock", locks.as_lock(found).encode())
        self._compile_wheels([wheel for wheel in big if not self._known([wheel])], kept)
        alone = [self._wheels([wheel], [], kept, f"package {wheel.name} {wheel.version}") for wheel in big]
        return [*alone, self._wheels(rest, [lock], kept, f"packages {len(rest)} wheels")]

    def _parts(self, found: Sequence[Wheel], extra: Sequence[Entry]) -> list[object]:
        told = [[entry.name, hashlib.sha256(entry.open().read()).hexdigest()] for entry in extra]
        return [self._python, self._release, [wheel.sha256 for wheel in found], told]

    def _known(self, found: Sequence[Wheel]) -> bool:
        return self._store.known("package", self._parts(found, []))

    def _wheels(self, found: Sequence[Wheel], extra: Sequence[Entry], kept: Wheels, made: str) -> Layer:
        def fill(sink: Sink) -> None:
            self._compile_wheels(found, kept)
            with contextlib.ExitStack() as stack:
                entries: list[Entry] = list(extra)
                for wheel in found:
                    file = stack.enter_context(unpacked.opened(kept.path(wheel)))
                    entries += unpacked.entries(file, wheel.file, self._python, self._compiled_of(wheel.sha256, stack))
                layers.write(sink, entries)

        return self._store.layer(made, self._parts(found, extra), fill)

    @property
    def _release(self) -> str:
        """Of the Python that compiles, on which the bytes of some compiled files depend; empty where none does."""
        return self._compiler.release if self._compiler is not None else ""

    def _compile_wheels(self, found: Iterable[Wheel], kept: Wheels) -> None:
        if self._compiler is None:
            return
        todo = [wheel for wheel in found if not self._compiled_path(wheel.sha256).is_file()]
        with contextlib.ExitStack() as stack:
            targets = [stack.enter_context(self._store.scratch()) for _ in todo]
            pairs = [(kept.path(wheel), target) for wheel, target in zip(todo, targets, strict=True)]
            unpacked.compile_all(pairs, self._compiler, self._site)
            for wheel, target in zip(todo, targets, strict=True):
                os.replace(target, self._compiled_path(wheel.sha256))

    def _compiled_path(self, sha256: str) -> Path:
        return self._compiled / f"{sha256}.{self._release}.zip"

    def _compiled_of(self, sha256: str, stack: contextlib.ExitStack) -> ZipFile | None:
        return stack.enter_context(unpacked.opened(self._compiled_path(sha256))) if self.compiles else None

    # Drivetrain, the code, the weights

    def replica(self, interpreter: str) -> Layer:
        """Drivetrain's files that the replica runs on, and the environment that stands on the base's interpreter."""
        entries = [
            *self._environment(interpreter),
            layers.content(f"{self._site}/drivetrain-{__version__}.dist-info/METADATA", _METADATA.encode()),
            *(layers.file(f"{self._site}/{name}", path) for name, path in runtime.files()),
        ]
        return self._files("replica", entries)

    def drivetrain(self, interpreter: str) -> Layer:
        """All of Drivetrain, with its programs, and the environment that stands on the base's interpreter."""
        return self._files("drivetrain", [*self._environment(interpreter), *itself.entries(self._python)])

    def _environment(self, interpreter: str) -> list[Entry]:
        home = unpacked.HOME
        directory = str(PurePosixPath(interpreter).parent)
        told = f"home = {directory}\ninclude-system-site-packages = false\nversion = {self._python}\n"
        return [
            layers.content(f"{home}/pyvenv.cfg", told.encode()),
            layers.link(f"{home}/bin/python", interpreter),
            layers.link(f"{home}/bin/python3", "python"),
            layers.link(f"{home}/bin/python{self._python}", "python"),
        ]

    def project(self, folder: Path, leave_out: Collection[str]) -> Layer:
        """The project's files, and a place for what its steps keep.

        Left out are `leave_out`, every name that begins with a dot (versions, secrets, caches), virtual environments, and images that
        were written into the project. Raises `StageError` for a link that leads out of the project.
        """

        def skip(path: PurePosixPath) -> bool:
            if path.name.startswith(".") or path.name in _NOT_THE_USERS or str(path) in leave_out:
                return True
            return any((folder / path / mark).is_file() for mark in _MARKS)

        state = layers.shared("src/.drivetrain")
        return self._files("project", [state, *layers.tree(folder, "src", skip)])

    def code(self, bundle: Path) -> Layer:
        """Everything of the bundle but the model."""
        skip = frozenset({PurePosixPath(_MODEL)})
        found = layers.tree(bundle, "src", lambda path: path in skip or path.name == "__pycache__")
        return self._files("code", list(found))

    def weights(self, bundle: Path, digest: str) -> Layer:
        """The bundle's model; that from before where `digest` (of its files, if it is known) is the same."""

        def fill(sink: Sink) -> None:
            layers.write(sink, layers.tree(bundle / _MODEL, f"src/{_MODEL}"))

        return self._store.layer("weights", [digest], fill) if digest else self._store.plain("weights", fill)

    def _files(self, made: str, entries: Sequence[Entry]) -> Layer:
        """A layer of small files, its Python files compiled beside them."""
        digests = {entry.name: entry.link or ("shared" if entry.shared else _digest(entry)) for entry in entries}
        modes = [entry.name for entry in entries if entry.executable]
        parts: list[object] = [self._python, self._release, digests, modes]

        def fill(sink: Sink) -> None:
            with contextlib.ExitStack() as stack:
                layers.write(sink, [*entries, *self._compile_entries(entries, stack)])

        return self._store.layer(made, parts, fill)

    def _compile_entries(self, entries: Sequence[Entry], stack: contextlib.ExitStack) -> Iterator[Entry]:
        sources = [entry for entry in entries if entry.name.endswith(".py") and not entry.link]
        if self._compiler is None or not sources:
            return
        source, target = stack.enter_context(self._store.scratch()), stack.enter_context(self._store.scratch())
        with ZipFile(source, "w", ZIP_STORED) as file:
            for entry in sources:
                with entry.open() as stream:
                    file.writestr(ZipInfo(entry.name), stream.read())
        unpacked.compile_all([(source, target)], self._compiler, "")
        compiled = stack.enter_context(unpacked.opened(target))
        yield from (_member(compiled, info) for info in compiled.infolist())


def _member(file: ZipFile, info: ZipInfo) -> Entry:
    def opened() -> IO[bytes]:
        return file.open(info)

    return Entry(info.filename, info.file_size, opened)


def _digest(entry: Entry) -> str:
    with entry.open() as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
