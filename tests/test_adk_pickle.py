"""Pickles of google-adk are read as data; what is more than data is refused by name."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import decimal
import os
import pickle
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.adk.events.event_actions import EventActions
from google.adk.tools.tool_confirmation import ToolConfirmation
from hypothesis import given, settings
from hypothesis import strategies as st

from threadline.importers.adk_pickle import PickleRefusedError, load

START = b"\x80\x04"
ACTIONS = b"cgoogle.adk.events.event_actions\nEventActions\n"


def within(value: bytes) -> bytes:
    """Return a pickle of actions whose state_delta has a value that these opcodes make."""
    return (
        START + ACTIONS + b")\x81}\x8c\x08__dict__}\x8c\x0bstate_delta}\x8c\x01k" + value + b"sssb."
    )


# -- what google-adk writes -------------------------------------------------------------

VALUES = {
    "numbers": [0, 255, 65536, -1, 2**80, 0.1 + 0.2, True, False, None],
    "texts": ["", "é🚆", "x" * 70_000],
    "a tuple of four": (1, 2, 3, 4),
    "a frozen set": frozenset({7}),
    "keys that are no texts": {1: "a", None: "b", 1.5: "c", False: "d"},
    "an ordered dict": collections.OrderedDict(a=1, b=[2]),
    "a default dict": collections.defaultdict(list, a=[1]),
    "a time in UTC": dt.datetime(2025, 5, 21, 9, 0, 0, 7, tzinfo=dt.UTC),
    "a time elsewhere": dt.datetime(2025, 5, 21, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    "a naive time": dt.datetime(2025, 5, 21, 9),
    "a date": dt.date(2025, 5, 21),
    "a time of day": dt.time(9, 1, 2, 3),
    "durations": [dt.timedelta(1, 3661, 5), dt.timedelta(-1, 5), dt.timedelta()],
    "a decimal": decimal.Decimal("1.50"),
    "a UUID": uuid.UUID(int=77),
    "bytes that are a text": b"abc",
    "the same list twice": [[1, 2]] * 2,
    "a model": ToolConfirmation(hint="sure?"),
}


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_comes_as_google_adk_would_put_it_into_json(value: Any, protocol: int) -> None:
    actions = EventActions(state_delta={"k": value})
    wanted = actions.model_dump(mode="json", exclude_none=True)
    assert load(pickle.dumps(actions, protocol)) == wanted


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.text(), json_values))
def test_any_state_delta_comes_back_equal(delta: dict[str, Any]) -> None:
    # Without a model in the way: what is pickled is what a release had in memory.
    actions = EventActions.model_construct(state_delta=delta, agent_state=None)
    assert load(pickle.dumps(actions))["state_delta"] == delta


# -- what nobody should write -----------------------------------------------------------


class Payload:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_the_payload_of_these_tests_is_a_real_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_calls_a_function_runs_nothing(tmp_path: Path, protocol: int) -> None:
    with pytest.raises(PickleRefusedError, match=r"names \w+\.mkdir"):
        load(pickle.dumps(Payload(tmp_path / "ran"), protocol))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_call_deep_inside_of_real_actions_runs_nothing(tmp_path: Path, protocol: int) -> None:
    actions = EventActions.model_construct(state_delta={"a": [{"b": Payload(tmp_path / "ran")}]})
    with pytest.raises(PickleRefusedError, match="mkdir"):
        load(pickle.dumps(actions, protocol))
    assert not (tmp_path / "ran").exists()


MKDIR = b"cos\nmkdir\n"
HOSTILE = {
    "REDUCE": MKDIR + b"(S'{ran}'\ntR",
    "INST": b"(S'{ran}'\nios\nmkdir\n",
    "OBJ": b"(" + MKDIR + b"S'{ran}'\no",
    "NEWOBJ": MKDIR + b"(S'{ran}'\nt\x81",
    "NEWOBJ_EX": MKDIR + b"(S'{ran}'\nt}\x92",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93(S'{ran}'\ntR",
    "a name through a known module": b"cgoogle.adk.cli\nos.mkdir\n(S'{ran}'\nI511\ntR",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\nint\nS'from_bytes'\ntR",
    "BUILD on a function": MKDIR + b"}S'__class__'\nS'x'\nsb",
    "BUILD on a plain value": b"]}S'append'\nNsb",
    "a persistent id": b"Pfile\n",
    "a binary persistent id": b"S'file'\nQ",
    "an extension": b"\x82\x01",
    "an out-of-band buffer": b"\x97",
    "a class as a value": b"cbuiltins\nint\n",
    "a model that is called": ACTIONS + b"(S'a'\nS'b'\ntR",
    "a list that holds itself": b"]q\x00h\x00a",
    "an unknown opcode": b"\xff",
    "a text longer than the pickle": b"\x8d" + struct.pack("<Q", 2**62),
    "bytes longer than the pickle": b"\x8e" + struct.pack("<Q", 2**62),
    "a place far out in the memo": b"j\xff\xff\xff\x7f",
    "a dict whose key is a list": b"}]Ns",
    "an empty stack": b"0000000000",
    "no mark": b"e",
    "a number that is none": b"Iabc\n",
    "a number of ten thousand digits": b"I" + b"9" * 10_000 + b"\n",
    "a year that is none": b"cdatetime\ndatetime\n(C\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfftR",
    "a decimal made of a list": b"cdecimal\nDecimal\n(]tR",
    "bytes that are no text": b"C\x01\xff",
}


def test_the_frame_of_these_opcodes_is_a_good_one() -> None:
    assert load(within(b"K\x01")) == {"state_delta": {"k": 1}}


@pytest.mark.parametrize("opcodes", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, opcodes: bytes) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(PickleRefusedError, match=r"^(the pickle|a dict) "):
        load(within(opcodes.replace(b"{ran}", str(ran).encode())))
    assert not ran.exists()


def test_a_pickle_that_unfolds_without_end_is_refused() -> None:
    # Each list holds the one before ten times: 10 ** 40 texts out of some hundred bytes.
    bomb = b"]\x94\x8c\x01xa0" + b"".join(
        b"]\x94(" + (b"h" + bytes([n])) * 10 + b"e0" for n in range(40)
    )
    with pytest.raises(PickleRefusedError, match="unfolds to more"):
        load(within(bomb + b"h\x28"))


def test_a_pickle_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(PickleRefusedError, match="nested more than"):
        load(within(b"]" * 5000 + b"a" * 4999))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_lead_to_another_error(tail: bytes) -> None:
    real = pickle.dumps(EventActions(state_delta={"a": [1, {"b": "c"}]}))
    for data in (tail, START + tail, real[: len(tail)] + tail, within(tail)):
        with contextlib.suppress(PickleRefusedError):
            load(data)


def test_something_else_than_actions_is_refused() -> None:
    with pytest.raises(PickleRefusedError, match="holds list, not an EventActions"):
        load(pickle.dumps([1]))
