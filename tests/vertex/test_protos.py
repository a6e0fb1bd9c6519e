"""The messages of our .proto files are those of the official client, field for field."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from threadline import StorageError
from threadline.server import messages

EVENTS = "google.cloud.aiplatform.v1beta1.ListEventsResponse"


def declared() -> list[Any]:
    """Return every message that the files declare, nested ones too."""

    def nested(message: Any) -> list[Any]:
        return [message, *(deep for one in message.nested_types for deep in nested(one))]

    names = ["sessions.proto", "operations.proto", "status.proto"]
    files = [messages.POOL.FindFileByName(name) for name in names]
    tops = [top for file in files for top in file.message_types_by_name.values()]
    return [message for top in tops for message in nested(top)]


def facts(message: Any) -> dict[str, Any]:
    """Return all that decides how a message is written, in binary and in JSON."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.has_presence,
            field.json_name,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type and field.message_type.full_name,
            field.message_type and field.message_type.GetOptions().map_entry,
            field.enum_type and {one.name: one.number for one in field.enum_type.values},
        )
        for field in message.fields
    }


def test_every_message_is_the_official_one() -> None:
    importlib.import_module("google.cloud.aiplatform_v1beta1")  # its descriptors come with it
    official = descriptor_pool.Default()
    for message in declared():
        assert facts(message) == facts(official.FindMessageTypeByName(message.full_name))


def test_the_files_are_compiled(tmp_path: Path) -> None:
    folder = messages._COMPILED.parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", folder, "--include_imports"),
            *(f"--descriptor_set_out={tmp_path}/again", "sessions.proto"),
        ],
        check=True,
    )

    def own(data: bytes) -> dict[str, Any]:
        files = FileDescriptorSet.FromString(data).file
        return {one.name: one for one in files if not one.name.startswith("google/")}

    assert own((tmp_path / "again").read_bytes()) == own(messages._COMPILED.read_bytes())


def kind(name: str) -> Any:
    return messages.GetMessageClass(messages.POOL.FindMessageTypeByName(name))


def there_and_back(name: str, told: dict[str, Any]) -> dict[str, Any]:
    data = messages.from_json(kind(name), told)
    return messages.to_json(messages.decode(kind(name), data))


def test_whole_numbers_stay_integers() -> None:
    raw = {"a": 1, "b": [2.5, 2**53, -3], "c": None, "d": {"e": False}}
    told = {"sessionEvents": [{"rawEvent": raw}]}
    (event,) = there_and_back(EVENTS, told)["sessionEvents"]
    assert event["rawEvent"] == raw
    assert type(event["rawEvent"]["a"]) is int


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actions", {"artifactDelta": {"f": 2**40}}),
        ("eventMetadata", {"groundingMetadata": {"webSearchQueries": "no list"}}),
        ("content", {"parts": [{"text": "a", "functionCall": {}}]}),
    ],
)
def test_a_typed_field_that_does_not_fit_is_in_the_raw_event_only(name: str, value: Any) -> None:
    event = {"content": {}, "actions": {}, "eventMetadata": {}, "rawEvent": {name: value}}
    (read,) = there_and_back(EVENTS, {"sessionEvents": [{**event, name: value}]})["sessionEvents"]
    assert read == {key: item for key, item in event.items() if key != name}


@pytest.mark.parametrize("value", ["\ud800", 10**400, {"k": {"k": {"k": {}}}}])
def test_what_protobuf_cannot_hold_is_an_error_and_never_changed(value: Any) -> None:
    if isinstance(value, dict):
        for _ in range(40):
            value = {"k": value}
    event = {"content": {}, "actions": {}, "eventMetadata": {}, "rawEvent": {"k": value}}
    with pytest.raises(StorageError, match="REST can"):
        messages.from_json(kind(EVENTS), {"sessionEvents": [event]})
