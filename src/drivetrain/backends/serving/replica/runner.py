"""The user's Cog runner: loaded, looked into, set up and called, with Cog's own rules for inputs.

The one file of the replica that imports Cog.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import os
from collections.abc import Callable, Mapping
from opcode import opmap
from typing import Any

import cog
import coglet
from cog import _inspector
from cog._adt import InputField, OutputKind, PredictorInfo, PrimitiveType, Repetition
from cog.predictor import _user_method_owner, extract_setup_weights, has_setup_weights, load_predictor_from_ref

from drivetrain.backends.serving import schema
from drivetrain.backends.serving.replica import downloads, scope
from drivetrain.backends.serving.replica.calls import Signature

Canceled = coglet.CancelationException
"""What a running prediction that is canceled sees raised: Cog's own, no `Exception`."""
_RAISE = opmap["RAISE_VARARGS"]
_LISTS = (Repetition.REPEATED, Repetition.OPTIONAL_REPEATED)


class Runner:
    """A loaded runner. `run` takes keyword arguments as `prepare` gives them; `batch` and `infer` are None where it has none."""

    def __init__(self, reference: str, name: str, max_slots: int | None) -> None:
        """Loads `run.py:Runner` from the current directory. Raises whatever importing it raises, and `ValueError` for a
        signature that Cog does not take."""
        self._object = load_predictor_from_ref(reference)
        file, _, kind = reference.partition(":")
        kind = kind or type(self._object).__name__
        module = os.path.basename(file).removesuffix(".py")
        info = _inspector.create_predictor(module, kind)
        self.run = self._method()
        self.batch = self._optional("batch")
        self.infer = self._optional("infer")
        self._fields = {field.name: _converter(field) for field in info.inputs.values()}
        self.converts = any(self._fields.values())
        """Whether inputs become something else than JSON values, which may take time: files are fetched."""
        self._known = frozenset(info.inputs)
        self._defaults = {field.name: _default(field) for field in info.inputs.values() if _may_be_left_out(field)}
        self.coder = info.output.coder
        self.signature = self._signature(name, info, max_slots)
        sdk: Any = coglet._sdk
        sdk.current_scope = scope.current  # Cog's own knows only predictions of its own server

    @property
    def checks(self) -> bool:
        """Whether it has a `healthcheck` of its own."""
        return hasattr(self._object, "healthcheck")

    async def health(self) -> str:
        """What the runner's own `healthcheck` finds wrong; empty if nothing is."""
        try:
            found = self._object.healthcheck()
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:  # noqa: BLE001 - the user's own code
            return f"Healthcheck failed: {type(error).__name__}: {error}"
        return "" if found else "Healthcheck failed: user-defined healthcheck returned False"

    async def setup(self) -> None:
        """Runs the runner's `setup()`, coroutine or not, with the weights from COG_WEIGHTS where it takes them."""
        if not hasattr(self._object, "setup"):
            return
        weights = (extract_setup_weights(self._object),) if has_setup_weights(self._object) else ()
        found = self._object.setup(*weights)
        if inspect.isawaitable(found):
            await found

    def raised(self, error: BaseException) -> bool:
        """Whether a `raise` in the module of the runner's class, or of one that it is derived from, has raised the error: not a library
        that is called there."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        if place is None:
            return False
        modules = {kind.__module__ for kind in type(self._object).__mro__}
        # What numpy raises in C leaves no frame of its own: its last one is the runner's, at a call and not at a `raise`.
        at_raise = place.tb_frame.f_code.co_code[place.tb_lasti] == _RAISE
        return at_raise and place.tb_frame.f_globals.get("__name__") in modules

    def prepare(self, item: Mapping[str, Any], made: list[str]) -> Mapping[str, Any]:
        """The arguments of one call: defaults filled in, files fetched (their paths are added to `made`, for removal)."""
        if not self.converts and len(item) == len(self._known):
            return item
        known = self._known
        arguments = {name: value for name, value in item.items() if name in known}
        for name, default in self._defaults.items():
            if name not in arguments:
                arguments[name] = default() if callable(default) else default
        if self.converts:
            for name, convert in self._fields.items():
                if convert is not None and arguments.get(name) is not None:
                    arguments[name] = convert(arguments[name], made)
        return arguments

    def _method(self) -> Callable[..., Any]:
        if inspect.isfunction(self._object):
            return self._object
        own = type(self._object)
        method: Callable[..., Any]
        method = self._object.run if _user_method_owner(own, "run") else self._object.predict
        return method

    def _optional(self, name: str) -> Callable[..., Any] | None:
        method = None if inspect.isfunction(self._object) else getattr(self._object, name, None)
        if method is None or not callable(method):
            return None
        if inspect.iscoroutinefunction(method) or _is_async(self.run):
            raise ValueError(f"{name}() goes with a run() that is no coroutine, and must not be one itself")
        return method  # type: ignore[no-any-return]

    def _signature(self, name: str, info: PredictorInfo, max_slots: int | None) -> Signature:
        asynchronous = _is_async(self.run)
        if max_slots is not None and max_slots > 1 and not asynchronous:
            raise ValueError("COG_MAX_CONCURRENCY > 1 requires an async run() or predict() method")
        declared: int = getattr(self.run, "__cog_concurrent_max__", 1)
        slots = (max_slots or declared) if asynchronous else 1
        required = [field for field in info.inputs.values() if field.name not in self._defaults]
        return Signature(
            name=name,
            schema=schema.describe(info),
            batches=self.batch is not None,
            infers=self.infer is not None,
            streams=info.output.kind in (OutputKind.ITERATOR, OutputKind.CONCAT_ITERATOR),
            is_async=asynchronous,
            slots=slots,
            array_input=required[0].name if len(required) == 1 and required[0].type.repetition in _LISTS else None,
        )


def _is_async(method: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


Converter = Callable[[Any, list[str]], Any]


def _converter(field: InputField) -> Converter | None:
    """What makes the runner's own value of a JSON value; None where that is the same."""
    one = {
        PrimitiveType.PATH: _path,
        PrimitiveType.FILE: _file,
        PrimitiveType.SECRET: _secret,
    }.get(field.type.primitive)
    if field.type.primitive is PrimitiveType.CUSTOM and field.type.coder is not None:
        decode = field.type.coder.decode

        def one(value: Any, made: list[str]) -> Any:
            return decode(value)

    if one is None or field.type.repetition not in _LISTS:
        return one
    each = one
    return lambda values, made: [each(value, made) for value in values]


def _path(value: Any, made: list[str]) -> Any:
    if not isinstance(value, str):
        return value  # a default that is a path already
    path = downloads.fetch(value)
    made.append(path)
    return cog.Path(path)


def _file(value: Any, made: list[str]) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        return io.BytesIO(downloads.decode(value)[1])
    path = downloads.fetch(value)
    made.append(path)
    return open(path, "rb")  # the runner's to read and to close


def _secret(value: Any, made: list[str]) -> Any:
    return cog.Secret(value) if isinstance(value, str) else value


def _may_be_left_out(field: InputField) -> bool:
    optional = field.type.repetition in (Repetition.OPTIONAL, Repetition.OPTIONAL_REPEATED)
    return field.default is not None or optional


def _default(field: InputField) -> Any:
    """The default, or what makes one for each call where calls must not share it."""
    default = field.default
    if isinstance(default, dataclasses.Field):
        factory = default.default_factory
        return factory if factory is not dataclasses.MISSING else default.default
    return (lambda: copy.deepcopy(default)) if isinstance(default, list | dict) else default
