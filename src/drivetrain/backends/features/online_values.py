"""Feast's stored values as Python's: what `get_online_features(...).to_dict()` gives for the same bytes.

A value is a protobuf message with one field set (`feast.types.Value`). Single numbers and texts, which most features are, are
read straight from its bytes; for all others the message types are put together here, since Feast's own come with Feast.
"""

from __future__ import annotations

import decimal
import json
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from re import fullmatch
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_NO_TIME = -(2**63)
"""What Feast stores for a time that is not known."""
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")


def decode(data: bytes | None) -> Any:
    """The value; None where there is none."""
    if not data:
        return None
    read = _SCALARS.get(data[0])
    return _python(_message(data)) if read is None else read(data)


def moment(seconds: int) -> datetime | None:
    """A stored time."""
    return None if seconds == _NO_TIME else datetime.fromtimestamp(seconds, UTC)


def _double(data: bytes) -> float:
    value: float = _DOUBLE.unpack_from(data, 1)[0]
    return value


def _float(data: bytes) -> float:
    value: float = _FLOAT.unpack_from(data, 1)[0]
    return value


def _integer(data: bytes) -> int:
    value = shift = 0
    for byte in data[1:]:
        value |= (byte & 127) << shift
        shift += 7
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(data: bytes) -> str:
    return data[2:].decode() if data[1] < 128 else str(_python(_message(data)))


_SCALARS: Mapping[int, Callable[[bytes], Any]] = {
    0x12: _text,
    0x18: _integer,
    0x20: _integer,
    0x29: _double,
    0x35: _float,
    0x38: lambda data: data[1] != 0,
    0x40: lambda data: moment(_integer(data)),
}
"""By the message's first byte: number and wire type of the one field that is set."""


# all other values

_MESSAGES = {
    "Value": "bytes_val=1:bytes string_val=2:string int32_val=3:int32 int64_val=4:int64 double_val=5:double float_val=6:float "
    "bool_val=7:bool unix_timestamp_val=8:int64 bytes_list_val=11:Bytes string_list_val=12:String int32_list_val=13:Int32 "
    "int64_list_val=14:Int64 double_list_val=15:Double float_list_val=16:Float bool_list_val=17:Bool "
    "unix_timestamp_list_val=18:Int64 null_val=19:int32 map_val=20:Map map_list_val=21:MapList bytes_set_val=22:Bytes "
    "string_set_val=23:String int32_set_val=24:Int32 int64_set_val=25:Int64 double_set_val=26:Double float_set_val=27:Float "
    "bool_set_val=28:Bool unix_timestamp_set_val=29:Int64 json_val=32:string json_list_val=33:String struct_val=34:Map "
    "struct_list_val=35:MapList uuid_val=36:string time_uuid_val=37:string uuid_list_val=38:String time_uuid_list_val=39:String "
    "uuid_set_val=40:String time_uuid_set_val=41:String list_val=42:Values set_val=43:Values decimal_val=44:string "
    "decimal_list_val=45:String decimal_set_val=46:String scalar_map_val=47:ScalarMap zoned_timestamp_val=48:Zoned",
    "MapKey": "int32_key=1:int32 int64_key=2:int64 float_key=3:float double_key=4:double bool_key=5:bool "
    "unix_timestamp_key=6:int64 bytes_key=7:bytes uuid_key=8:string time_uuid_key=9:string decimal_key=10:string",
    "Zoned": "unix_timestamp=1:int64 zone=2:string",
    "Entry": "key=1:string value=2:Value",
    "ScalarEntry": "key=1:MapKey value=2:Value",
}
"""Message -> its fields; of "Value" and "MapKey" one field is set."""
_LISTS = {
    "Bytes": "bytes", "String": "string", "Int32": "int32", "Int64": "int64", "Double": "double", "Float": "float",
    "Bool": "bool", "Map": "Entry", "MapList": "Map", "Values": "Value", "ScalarMap": "ScalarEntry",
}  # fmt: skip
"""Message -> what its one field `val` repeats."""


@cache
def _value_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="values.proto", package="online", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        one = name in ("Value", "MapKey")
        if one:
            message.oneof_decl.add(name="one")
        for text in fields.split():
            field, number, kind = text.replace(":", "=").split("=")
            _add_field(message, field, number, kind, one=one)
    for name, kind in _LISTS.items():
        _add_field(file.message_type.add(name=name), "val", "1", kind, repeated=True)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("online.Value"))


def _add_field(message: Any, name: str, number: str, kind: str, one: bool = False, repeated: bool = False) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number))
    field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
    if kind[0].isupper():
        field.type, field.type_name = kinds.TYPE_MESSAGE, f".online.{kind}"
    else:
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    if one:
        field.oneof_index = 0


def _message(data: bytes) -> Any:
    return _value_class().FromString(data)


def _python(message: Any) -> Any:
    """A `Value` as Feast reads it."""
    field = message.WhichOneof("one")
    if field is None:
        return None
    kind = field.removesuffix("_val")
    value = getattr(message, field)
    if kind in _NESTED:
        return _NESTED[kind](value)
    one = _ELEMENTS.get(kind.removesuffix("_list").removesuffix("_set"), _same)
    if kind.endswith("_list"):
        return [one(element) for element in value.val]
    if kind.endswith("_set"):
        return {one(element) for element in value.val}
    return one(value)


def _same(value: Any) -> Any:
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


_ELEMENTS: Mapping[str, Callable[[Any], Any]] = {
    "unix_timestamp": moment,
    "json": _json,
    "uuid": uuid.UUID,
    "time_uuid": uuid.UUID,
    "decimal": decimal.Decimal,
}


def _map(message: Any) -> dict[str, Any]:
    return {entry.key: _python(entry.value) for entry in message.val}


def _maps(message: Any) -> list[dict[str, Any]]:
    return [_map(entry) for entry in message.val]


def _values(message: Any) -> list[Any]:
    return [_python(value) for value in message.val]


def _scalar_map(message: Any) -> dict[Any, Any]:
    return {_map_key(entry.key): _python(entry.value) for entry in message.val}


def _map_key(message: Any) -> Any:
    field = message.WhichOneof("one")
    if field is None:
        return None
    return _ELEMENTS.get(field.removesuffix("_key"), _same)(getattr(message, field))


def _zoned(message: Any) -> datetime | None:
    if message.unix_timestamp == _NO_TIME:
        return None
    return datetime.fromtimestamp(message.unix_timestamp, _zone(message.zone))


def _zone(name: str) -> tzinfo:
    """A zone of the time zone database, or an offset such as `UTC-07:00`; UTC for any other."""
    try:
        return zoneinfo.ZoneInfo(name) if name else UTC
    except (KeyError, ValueError, OSError):
        found = fullmatch(r"(?:UTC|GMT)?([+-])(\d{2}):?(\d{2})", name.strip())
    if not found:
        return UTC
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == "-" else offset)


_NESTED: Mapping[str, Callable[[Any], Any]] = {
    "map": _map,
    "struct": _map,
    "map_list": _maps,
    "struct_list": _maps,
    "list": _values,
    "set": _values,
    "scalar_map": _scalar_map,
    "zoned_timestamp": _zoned,
}
