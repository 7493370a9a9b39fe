"""On-demand features: the project's own functions of the caller's columns and of stored features, called as Feast calls them."""

from __future__ import annotations

import ast
import base64
import json
import struct
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from typing import Any
from uuid import UUID

from drivetrain.backends.features.online_keys import whole
from drivetrain.backends.features.online_plan import OnDemand, Plan
from drivetrain.errors import DataError, StageError

Rows = Sequence[Mapping[str, Any]]
_FLOAT = struct.Struct("<f")


class Computed:
    """An on-demand view, ready to be computed."""

    def __init__(self, view: OnDemand) -> None:
        self._view = view
        self._function = load(view)
        in_pandas = view.mode == "pandas"
        self._pyarrow = import_module("pyarrow") if in_pandas else None
        self.slow = in_pandas
        """Whether the event loop should not wait for it: pandas needs a millisecond or more."""

    def compute(self, rows: Rows) -> list[dict[str, Any]]:
        """The view's features for each row of columns. Raises `StageError` if the function fails."""
        if self._view.singleton:
            return [features for row in rows for features in self._call([row])]
        return self._call(rows)

    def _call(self, rows: Rows) -> list[dict[str, Any]]:
        columns = {name: [row[column] for row in rows] for name, column in self._view.arguments.items()}
        try:
            outputs = self._in_pandas(columns) if self._pyarrow is not None else self._in_python(columns)
            features = {
                feature.column: [as_type(feature.type, value) for value in outputs[feature.name]]
                for feature in self._view.features
            }
        except Exception as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error
        if any(len(values) != len(rows) for values in features.values()):
            raise self._failed(f"it gave another number of values than the {len(rows)} that it was asked for")
        return [{name: values[number] for name, values in features.items()} for number in range(len(rows))]

    def _in_python(self, columns: dict[str, list[Any]]) -> Mapping[str, list[Any]]:
        if self._view.singleton:
            given = self._function({name: values[0] for name, values in columns.items()})
            return {name: [value] for name, value in given.items()}
        return {
            name: values if isinstance(values, list) else [values] for name, values in self._function(columns).items()
        }

    def _in_pandas(self, columns: dict[str, list[Any]]) -> Mapping[str, list[Any]]:
        # By way of Arrow, as in Feast: it decides what a null makes of a column's type.
        pa: Any = self._pyarrow
        readable = {name: [str(v) if isinstance(v, UUID) else v for v in values] for name, values in columns.items()}
        frame = self._function(pa.Table.from_pydict(readable).to_pandas())
        names = [feature.name for feature in self._view.features]
        return {name: pa.array(frame[name], from_pandas=True).to_numpy(zero_copy_only=False) for name in names}

    def _failed(self, reason: str) -> StageError:
        return StageError(f"it could not be computed: {reason}", where=f"on-demand view {self._view.name}")


def requested(column: str, kind: str, value: Any) -> Any:
    """A column that the caller gave, as a value of its declared type: a whole number may stand for a float.

    Raises `DataError` if it is of another type.
    """
    try:
        return value if value is None or kind not in _GIVEN else _GIVEN[kind](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{str(value)[:100]!r} is no {kind}", hint=f"{column} is declared as {kind}", where=column
        ) from error


def samples(plan: Plan) -> dict[str, Any]:
    """A value for each column of a service, as Feast itself tries on-demand functions with when they are defined."""
    kinds = {key.column: key.type for view in plan.views for key in view.keys}
    kinds |= {feature.column: feature.type for view in plan.views for feature in view.features}
    return {column: _SAMPLES.get(kind) for column, kind in (kinds | dict(plan.requested)).items()}


def _of(wanted: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, wanted):
            raise TypeError
        return value

    return check


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


_SAMPLES: Mapping[str, Any] = {
    "STRING": "hello world",
    "BOOL": True,
    "INT32": 1,
    "INT64": 1,
    "FLOAT": 1.0,
    "DOUBLE": 1.0,
    "UNIX_TIMESTAMP": datetime(2000, 1, 1, tzinfo=UTC),
}
_GIVEN: Mapping[str, Callable[[Any], Any]] = {
    "STRING": _of(str),
    "BOOL": _of(bool),
    "INT32": whole,
    "INT64": whole,
    "FLOAT": _number,
    "DOUBLE": _number,
}


def load(view: OnDemand) -> Callable[[Any], Any]:
    """The view's function: from its source, as Feast does it, or from its pickle where the source alone does not define it.

    The plan is the project's own, written on this machine by `drivetrain run`; nothing that comes with a request gets here.
    """
    try:
        tree = _without_decorators(view.source)
        names = _names(tree)
        exec(compile(tree, f"<on-demand view {view.name}>", "exec"), names)
        found = names[view.function]
    except Exception as error:
        if not view.pickled:
            raise StageError(f"it cannot be loaded: {error}", where=f"on-demand view {view.name}") from error
        found = _unpickled(view)
    loaded: Callable[[Any], Any] = found
    return loaded


def _names(tree: ast.Module) -> dict[str, Any]:
    """What Feast lets a function's source name, as far as it does: pandas takes a third of a second to import."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    libraries = {"pd": "pandas", "pandas": "pandas", "np": "numpy", "numpy": "numpy"}
    return {"__name__": "on_demand", **{name: import_module(libraries[name]) for name in used & libraries.keys()}}


def _without_decorators(source: str) -> ast.Module:
    tree = ast.parse(textwrap.dedent(source))
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            statement.decorator_list = []
    return tree


def _unpickled(view: OnDemand) -> Any:
    import dill  # here, since it takes 60 ms to import and is hardly ever needed

    try:
        return dill.loads(base64.b64decode(view.pickled))
    except Exception as error:
        raise StageError(f"it cannot be loaded: {error}", where=f"on-demand view {view.name}") from error


def as_type(kind: str, value: Any) -> Any:
    """A function's output as a value of its declared type, null for NaN: what is left of it once Feast has stored it."""
    if kind.endswith("_LIST") and kind not in _WHOLE:
        return None if value is None else [as_type(kind.removesuffix("_LIST"), element) for element in value]
    if kind.endswith("_SET"):
        return None if value is None else {as_type(kind.removesuffix("_SET"), element) for element in value}
    if value is None or (kind not in _WHOLE and value != value):  # NaN and NaT differ from themselves
        return None
    return _TYPES.get(kind, _plain)(value)


def _plain(value: Any) -> Any:
    """A value of numpy as one of Python."""
    return value.item() if hasattr(value, "item") else value


def _time(value: Any) -> datetime:
    if hasattr(value, "astype"):  # numpy's, in any unit
        value = int(value.astype("datetime64[s]").astype("int64"))
    if not isinstance(value, datetime):
        return datetime.fromtimestamp(int(value), UTC)
    zoned = value if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime.fromtimestamp(int(zoned.timestamp()), UTC)


def _json(value: Any) -> Any:
    return json.loads(value if isinstance(value, str) else json.dumps(value))


_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "INT32": int,
    "INT64": int,
    "FLOAT": lambda value: _FLOAT.unpack(_FLOAT.pack(value))[0],
    "DOUBLE": float,
    "STRING": str,
    "BOOL": bool,
    "UNIX_TIMESTAMP": _time,
    "UUID": lambda value: UUID(str(value)),
    "TIME_UUID": lambda value: UUID(str(value)),
    "DECIMAL": lambda value: Decimal(str(value)),
    "JSON": _json,
}
_WHOLE = ("VALUE_LIST", "VALUE_SET", "MAP", "MAP_LIST", "STRUCT", "STRUCT_LIST", "SCALAR_MAP")
"""Types whose values are no numbers, and are left as they are."""
