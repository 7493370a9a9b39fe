"""The errors, named by what happens next rather than by where they came from.

    DrivetrainError
    ├── DefinitionError       the lifecycle file, or what it names, is wrong: exit 2, every mistake listed
    ├── DataError             rows, columns or times are not what the definition says
    ├── StageError            the user's own code raised, hung or died
    ├── ServingError          an endpoint did not come up or did not answer
    ├── Untrusted             a model or image is not signed, or not by whom it should be: nothing is deployed
    └── SystemFault           disk, lock, library: the machine stands in the way
        ├── Unavailable       a retry may help (a store or server that does not answer)
        ├── CorruptArtifact   stored bytes are not those that were written
        └── MissingLibrary    an optional extra is not installed

A caller writes:

    try:
        result = lifecycle.run(...)
    except DefinitionError as error:
        for problem in error.problems: ...
    except DrivetrainError as error:
        print(error, error.hint)

Refusals are no errors: a gate that refuses a model, or a suite that refuses the data, is a `Verdict` in a stage's
outputs, and ends the run with exit code 3 or 4.
"""

from __future__ import annotations

from dataclasses import dataclass


class DrivetrainError(Exception):
    """What happened, where, and what to do; shown to a user without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from worker processes; pickle would otherwise drop the keyword-only parts.
        return (_rebuild, (type(self), self.message, self.hint, self.where, dict(self.__dict__)))


def _rebuild(
    kind: type[DrivetrainError], message: str, hint: str, where: str, state: dict[str, object]
) -> DrivetrainError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.message, error.hint, error.where = message, hint, where
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the definition: `file` relative to the project, `line` counted from 1 (0: the whole file),
    `key` dotted (`train.function`)."""

    file: str
    line: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}:{key} {self.message}{hint}"


class DefinitionError(DrivetrainError):
    """Every mistake found in the definition, not the first alone."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
        super().__init__(f"{count} in the definition", hint="`drivetrain doctor` checks the definition without a run")
        self.problems = problems


class UsageError(DrivetrainError):
    """The command cannot mean anything here: no project, no such run, options that exclude each other."""

    exit_code = 2


class DataError(DrivetrainError):
    """Rows, columns, times or files are not what the definition says they are."""


class StageError(DrivetrainError):
    """A stage failed in a way that only its author can mend: user code raised, ran out of time, or died."""


class ServingError(DrivetrainError):
    """An endpoint did not come up, or did not answer as its protocol says."""


class Untrusted(DrivetrainError):
    """A model or image is not signed, is signed by another key, or is not what was signed. `digest` names it."""

    def __init__(self, message: str, *, digest: str, hint: str = "", where: str = "") -> None:
        super().__init__(message, hint=hint, where=where)
        self.digest = digest


class SystemFault(DrivetrainError):
    """The machine stands in the way: disk full, directory read-only, another run holds the project."""


class Unavailable(SystemFault):
    """Something that may answer later did not answer now; the runner retries it with backoff."""


class CorruptArtifact(SystemFault):
    """Stored bytes differ from those that were written, or are gone. `digest` names the artifact."""

    def __init__(self, message: str, *, digest: str, hint: str = "", where: str = "") -> None:
        super().__init__(message, hint=hint, where=where)
        self.digest = digest


class MissingLibrary(SystemFault):
    """An optional library is needed and not installed; the hint is the exact command."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed", hint=f"pip install 'drivetrain[{extra}]'")
