"""`session.events`: decoded when looked at, and a sequence like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from threadline import DamagedDataError, Event, History, InMemorySessionService
from threadline import history as history_module
from threadline.canonical import encode


def row(n: int) -> tuple[int, bytes]:
    return n, encode(event(n))


def event(n: int) -> Event:
    return Event(id=f"e{n}", timestamp=float(n), author="a", content=f"text {n}")


def three() -> History:
    return History([row(1), row(2), row(3)])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows that are decoded, by their seq, while the real decoder does the work."""
    seqs: list[int] = []
    row_to_event = history_module.row_to_event

    def counted(given: Any) -> Event:
        seqs.append(given[0])
        return row_to_event(given)

    monkeypatch.setattr(history_module, "row_to_event", counted)
    return seqs


# -- laziness -----------------------------------------------------------------------------


def test_making_a_history_decodes_nothing(decoded: list[int]) -> None:
    three()
    assert decoded == []


def test_its_length_decodes_nothing(decoded: list[int]) -> None:
    assert (len(three()), decoded) == (3, [])


def test_its_truth_decodes_nothing(decoded: list[int]) -> None:
    assert (bool(three()), decoded) == (True, [])


def test_its_rows_decode_nothing(decoded: list[int]) -> None:
    assert (list(three().rows()), decoded) == ([row(1), row(2), row(3)], [])


def test_its_rows_are_those_that_are_stored_whatever_was_looked_at() -> None:
    history = three()
    assert history[1].seq == 2
    assert list(history.rows()) == [row(1), row(2), row(3)]


def test_an_index_decodes_one_event(decoded: list[int]) -> None:
    three()[1]
    assert decoded == [2]


def test_a_slice_decodes_its_events(decoded: list[int]) -> None:
    three()[1:]
    assert decoded == [2, 3]


def test_a_step_of_an_iteration_decodes_one_event(decoded: list[int]) -> None:
    next(iter(three()))
    assert decoded == [1]


def test_iteration_decodes_what_is_left(decoded: list[int]) -> None:
    events = three()
    events[1]
    list(events)
    assert sorted(decoded) == [1, 2, 3]


def test_nothing_is_decoded_twice(decoded: list[int]) -> None:
    events = three()
    for _ in range(2):
        events[0], events[-1], list(events), events[:2]
    assert sorted(decoded) == [1, 2, 3]


def test_an_event_is_the_same_object_each_time() -> None:
    events = three()
    assert events[0] is events[0] is next(iter(events))


def test_loading_a_session_decodes_no_event(decoded: list[int]) -> None:
    async def load() -> int:
        service = InMemorySessionService()
        session = await service.create_session(app_name="a", user_id="u", session_id="s")
        for n in range(1, 4):
            await service.append_event(session, event(n))
        loaded = await service.get_session(app_name="a", user_id="u", session_id="s")
        return len(loaded.events) if loaded else 0

    assert (asyncio.run(load()), decoded) == (3, [])


# -- a sequence like any other ------------------------------------------------------------


def test_it_is_a_sequence() -> None:
    assert isinstance(three(), Sequence)


def test_iteration_is_in_order() -> None:
    assert [item.seq for item in three()] == [1, 2, 3]


def test_events_have_the_seq_of_their_row() -> None:
    assert History([row(7)])[0].seq == 7


def test_a_negative_index_counts_from_the_end() -> None:
    assert three()[-1].seq == 3


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_an_index_out_of_range_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        three()[index]


@pytest.mark.parametrize("index", ["0", 1.0, None])
def test_an_index_of_another_type_is_a_type_error(index: Any) -> None:
    with pytest.raises(TypeError):
        three()[index]


@pytest.mark.parametrize(
    "cut",
    [
        slice(None),
        slice(1, None),
        slice(None, -1),
        slice(None, None, -1),
        slice(5, 9),
        slice(0, 3, 2),
    ],
)
def test_a_slice_is_what_a_list_would_give(cut: slice) -> None:
    assert three()[cut] == [event(1), event(2), event(3)][cut]


def test_a_slice_is_a_plain_list() -> None:
    assert type(three()[:]) is list


def test_reversed_goes_backwards() -> None:
    assert [item.seq for item in reversed(three())] == [3, 2, 1]


def test_in_compares_events() -> None:
    assert event(2) in three()


def test_index_finds_an_event() -> None:
    assert three().index(event(2)) == 1


def test_count_counts_equal_events() -> None:
    assert three().count(event(2)) == 1


def test_appends_may_go_on_during_an_iteration() -> None:
    events = three()
    seen = []
    for item in events:
        seen.append(item.seq)
        events.push(row(item.seq + 3))  # type: ignore[operator]
    assert (seen, len(events)) == ([1, 2, 3], 6)


def test_a_sum_with_a_list_is_a_list() -> None:
    assert three().__add__([event(4)]) == [event(n) for n in (1, 2, 3, 4)]


def test_a_list_plus_a_history_is_a_list() -> None:
    assert three().__radd__([event(0)]) == [event(n) for n in (0, 1, 2, 3)]


def test_a_sum_leaves_the_history_alone() -> None:
    events = three()
    events.__add__([event(4)])
    assert len(events) == 3


@pytest.mark.parametrize(
    "verb", ["append", "extend", "insert", "pop", "remove", "clear", "__setitem__"]
)
def test_it_has_no_verb_that_would_change_it(verb: str) -> None:
    assert not hasattr(three(), verb)


# -- equality and text --------------------------------------------------------------------


def test_it_equals_a_list_of_the_same_events() -> None:
    assert three() == [event(1), event(2), event(3)]


def test_a_list_of_the_same_events_equals_it() -> None:
    assert [event(1), event(2), event(3)] == three()


def test_it_equals_another_history_of_the_same_events() -> None:
    assert three() == History([event(1), row(2), event(3)])


@pytest.mark.parametrize("other", [[], [event(1)], [event(3), event(2), event(1)], "abc", None, 3])
def test_it_differs_from_anything_else(other: Any) -> None:
    assert three() != other


def test_an_empty_one_equals_an_empty_list() -> None:
    assert History() == []


def test_an_empty_one_is_false() -> None:
    assert not History()


def test_the_repr_of_an_empty_one_is_that_of_an_empty_list() -> None:
    assert repr(History()) == "[]"


def test_the_repr_is_that_of_a_list() -> None:
    assert repr(three()) == repr([*three()])


def test_it_is_not_hashable() -> None:
    with pytest.raises(TypeError):
        hash(three())


# -- damage -------------------------------------------------------------------------------

DAMAGED = {
    "cut off": encode(event(2))[:-5],
    "empty": b"",
    "blank": b" ",
    "no object": b"5",
    "null": b"null",
    "a list": b"[]",
    "two events": encode(event(2)) + b"," + encode(event(2)),
    "not UTF-8": b'{"id":"\xff"}',
    "NUL bytes": b"\x00\x00\x00",
    "wrong type": b'{"id":"e","timestamp":"noon"}',
    "missing field": b'{"actions":{"renderUiWidgets":[{"id":"w"}]}}',
    "too deep": b'{"output":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_row_is_an_error_that_names_its_seq(body: bytes) -> None:
    with pytest.raises(DamagedDataError, match=r"\b42\b"):
        History([row(41), (42, body), row(43)])[1]


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_the_events_around_a_damaged_row_are_readable(body: bytes) -> None:
    events = History([row(41), (42, body), row(43)])
    assert [events[0], events[-1]] == [event(41), event(43)]


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_iteration_over_a_damaged_row_is_an_error_that_names_its_seq(body: bytes) -> None:
    with pytest.raises(DamagedDataError, match=r"\b42\b"):
        list(History([row(41), (42, body), row(43)]))


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_the_events_around_a_damaged_row_are_readable_after_an_iteration(body: bytes) -> None:
    events = History([row(41), (42, body), row(43)])
    with pytest.raises(DamagedDataError):
        list(events)
    assert [events[0], events[-1]] == [event(41), event(43)]


def test_two_damaged_rows_do_not_make_up_for_each_other() -> None:
    whole, half = encode(event(1)), len(b'{"id":"e1"')
    rows = [(1, whole[:half]), (2, whole[half + 1 :]), (3, whole + b"," + whole)]
    with pytest.raises(DamagedDataError):
        list(History(rows))
