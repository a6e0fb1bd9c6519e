"""The Vertex AI Sessions API as protobuf: messages made of the files in `protos`, and their JSON.

`make protos` compiles the files, so users need no compiler. The messages have a pool of their own:
in the one that is everybody's they would clash with those of Google's client, should a process
have both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadline.errors import InvalidInputError, MissingExtraError, StorageError

try:
    from google.protobuf import json_format
    from google.protobuf import message as protobuf
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
except ModuleNotFoundError as error:
    raise MissingExtraError("gRPC needs protobuf: pip install 'threadline[grpc]'") from error

if TYPE_CHECKING:
    from threadline.vertex.wire import Json

_SERVICES = ("google.cloud.aiplatform.v1beta1.SessionService", "google.longrunning.Operations")
_COMPILED = Path(__file__).with_name("protos") / "sessions.binpb"


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


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(_COMPILED.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _pool()
_EVENT = GetMessageClass(POOL.FindMessageTypeByName("google.cloud.aiplatform.v1beta1.SessionEvent"))
