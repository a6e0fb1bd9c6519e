"""The Vertex AI Sessions API as protobuf: messages made of the files in `protos`, and their JSON.

The messages have a pool of their own: in the one that is everybody's they would clash with those
of Google's client, should a process have both.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadline.errors import InvalidInputError, MissingExtraError, StorageError

try:
    from google.protobuf import (
        any_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        json_format,
        struct_pb2,
        timestamp_pb2,
    )
    from google.protobuf import message as protobuf
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
except ModuleNotFoundError as error:
    raise MissingExtraError("gRPC needs protobuf: pip install 'threadline[grpc]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadline.vertex.wire import Json

_FILES = ("status.proto", "operations.proto", "sessions.proto")
_SERVICES = ("google.cloud.aiplatform.v1beta1.SessionService", "google.longrunning.Operations")
_PROTOS = Path(__file__).with_name("protos")
_WELL_KNOWN = (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2)


def services() -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return the services by name, and their methods with the classes of request and answer."""
    return {
        name: {
            method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
            for method in POOL.FindServiceByName(name).methods
        }
        for name in _SERVICES
    }


# -- JSON -------------------------------------------------------------------------------

_UNFIT = (ValueError, OverflowError, json_format.Error, protobuf.Error)


def decode(kind: Any, data: bytes) -> Any:
    """Read a message of a kind."""
    try:
        return kind.FromString(data)
    except protobuf.Error as error:
        raise InvalidInputError(f"Invalid protobuf received. {error}") from error


def to_json(message: Any) -> Json:
    """Return a message as JSON in camelCase."""
    try:
        told: Json = _whole(json_format.MessageToDict(message))
    except _UNFIT as error:
        raise InvalidInputError(f"Invalid value in the request: {error}") from error
    return told


def _whole(value: Any) -> Any:
    """Return JSON with whole numbers as integers, as they were before a Struct made them double."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def from_json(kind: Any, given: Json) -> bytes:
    """Return the message of a kind that JSON stands for, or raise StorageError.

    Typed fields of events that protobuf cannot hold, such as a version of an artifact beyond 32
    bits, are left out where the event is whole in its `rawEvent`.
    """
    try:
        return _encode(kind, given)
    except _UNFIT:
        for event in given.get("sessionEvents", ()):
            for name in ("content", "actions", "eventMetadata"):
                try:
                    _encode(_EVENT, {name: event[name]})
                except _UNFIT:
                    del event[name]
    try:
        return _encode(kind, given)
    except _UNFIT as error:
        raise StorageError(f"gRPC cannot carry what is stored; REST can: {error}") from error


def _encode(kind: Any, given: Json) -> bytes:
    message = kind()
    json_format.ParseDict(given, message, ignore_unknown_fields=True, descriptor_pool=POOL)
    data: bytes = message.SerializeToString()
    kind.FromString(data)  # or no reader can: they all bound how deep messages nest
    return data


# -- the files --------------------------------------------------------------------------

# As much of the language as the files have; they have no option and no block comment.
_TOKEN = re.compile(r"//.*|(\"[^\"]*\"|[\w.]+|[^\s\w])")


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for module in _WELL_KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    for name in _FILES:
        file = _file(name, (_PROTOS / name).read_text(encoding="utf-8"))
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _file(name: str, text: str) -> FileDescriptorProto:
    file = FileDescriptorProto(name=name, syntax="proto3")
    tokens = (found[1] for found in _TOKEN.finditer(text) if found[1])
    for word in tokens:
        if word == "package":
            file.package = next(tokens)
        elif word == "import":
            file.dependency.append(next(tokens).strip('"'))
        elif word == "service":
            _service(tokens, file.service.add())
        elif word == "message":
            _message(tokens, file.message_type.add())
    return file


def _service(tokens: Iterator[str], service: Any) -> None:
    service.name, _ = islice(tokens, 2)
    while next(tokens) == "rpc":
        name, _, given, _, _, _, returned, _, _ = islice(tokens, 9)
        service.method.add(name=name, input_type=given, output_type=returned)


def _message(tokens: Iterator[str], message: Any) -> None:
    message.name, _ = islice(tokens, 2)
    while (word := next(tokens)) != "}":
        if word == "message":
            _message(tokens, message.nested_type.add())
        elif word == "enum":
            _enum(tokens, message.enum_type.add())
        elif word == "oneof":
            name, _ = islice(tokens, 2)
            message.oneof_decl.add(name=name)
            while (word := next(tokens)) != "}":
                _field(tokens, message, word).oneof_index = len(message.oneof_decl) - 1
        elif word == "map":
            _map(tokens, message)
        elif word == "repeated":
            _field(tokens, message, next(tokens)).label = FieldDescriptorProto.LABEL_REPEATED
        elif word == "optional":
            _field(tokens, message, next(tokens)).proto3_optional = True
        else:
            _field(tokens, message, word)
    for field in message.field:  # to the compiler, each is alone in a oneof behind the others
        if field.proto3_optional:
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")


def _enum(tokens: Iterator[str], enum: Any) -> None:
    enum.name, _ = islice(tokens, 2)
    while (word := next(tokens)) != "}":
        _, number, _ = islice(tokens, 3)
        enum.value.add(name=word, number=int(number))


def _field(tokens: Iterator[str], message: Any, kind: str) -> Any:
    name, _, number, _ = islice(tokens, 4)
    field = message.field.add(name=name, number=int(number))
    field.label = FieldDescriptorProto.LABEL_OPTIONAL
    try:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    except ValueError:
        field.type_name = kind  # the pool finds out whether it is a message or an enum
    return field


def _map(tokens: Iterator[str], message: Any) -> None:
    """Read a map, which is a list of entries to everybody but the one who writes the file."""
    _, key, _, value, _ = islice(tokens, 5)
    field = _field(tokens, message, "")
    field.label = FieldDescriptorProto.LABEL_REPEATED
    field.type_name = f"{field.name.title().replace('_', '')}Entry"
    entry = message.nested_type.add(name=field.type_name)
    entry.options.map_entry = True
    _field(iter(("key", "=", "1", ";")), entry, key)
    _field(iter(("value", "=", "2", ";")), entry, value)


POOL = _pool()
_EVENT = GetMessageClass(POOL.FindMessageTypeByName("google.cloud.aiplatform.v1beta1.SessionEvent"))
