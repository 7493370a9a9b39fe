"""The border to Feast: what it, a store or the user's definitions raise becomes one of our errors, without passwords."""

from __future__ import annotations

import contextlib
import difflib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from drivetrain.backends.features.workplace import place_of, working_in
from drivetrain.errors import DataError, DefinitionError, DrivetrainError, Problem, StageError, SystemFault, Unavailable

NO_TABLE = "the snapshot has a file data/NAME.parquet for each entry of data.tables"


class Border:
    """Around every call of Feast's. `secrets` appear in no message; `unregistered` are the errors that say that nothing has been
    applied yet."""

    def __init__(self, repo: Path, secrets: Sequence[str], unregistered: type[Exception]) -> None:
        self._repo = repo
        self._secrets = secrets
        self._unregistered = unregistered

    @contextlib.contextmanager
    def inside(self, doing: str) -> Iterator[None]:
        """In the repository, as under Feast's own CLI: a source's relative path is read from there."""
        with self.translating(doing), working_in(self._repo):
            yield

    @contextlib.contextmanager
    def translating(self, doing: str) -> Iterator[None]:
        """Whatever Feast or the user's own code raises becomes one of our errors."""
        try:
            yield
        except DrivetrainError:
            raise
        except Exception as error:  # noqa: BLE001
            cause = error if self._redacted(str(error)) == str(error) else None
            raise self._translate(doing, error) from cause

    def _translate(self, doing: str, error: Exception) -> DrivetrainError:
        text = self._redacted(str(error)).strip() or type(error).__name__
        message = f"Feast could not {doing}: {text}"
        fault = connection_fault(error, text)
        if fault is not None:
            return fault
        if isinstance(error, duckdb.IOException | FileNotFoundError):
            return DataError(message, hint=NO_TABLE)
        if isinstance(error, duckdb.Error | pa.ArrowException):
            return DataError(message, hint="compare the types of the join keys in rows and tables")
        if isinstance(error, self._unregistered):
            return DataError(message, hint="apply comes first")
        return StageError(message, where=place_of(self._repo, error))

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def connection_fault(error: Exception, text: str) -> DrivetrainError | None:
    """What an online store's error means to a run, `text` being its message without secrets; None if it is no such error."""
    if isinstance(error, AuthenticationError | AuthorizationError | ResponseError):
        return SystemFault(f"Redis refused: {text}", hint="check the password in features.online.connection")
    if isinstance(error, RedisError):
        return Unavailable(f"Redis does not answer: {text}", hint="is it running? see features.online.connection")
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"the online store cannot be used: {text}", hint="another process may hold it")
    return None


def no_service(wanted: str, names: list[str]) -> DefinitionError:
    """What to say of a service that is not defined, `names` being those that are."""
    close = difflib.get_close_matches(wanted, names, cutoff=0.4) or sorted(names)
    hint = f"did you mean {' or '.join(close)}?" if close else "the Feast repository defines no feature service"
    problem = Problem("drivetrain.yaml", 0, "features.service", f"no feature service is called {wanted}", hint)
    return DefinitionError([problem])
