"""What the service relies on in an engine, row by row.

Most of an engine's meaning shows through a service and is tested by ServiceSuite; here stands
what only the seam shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import msgspec
import pytest

from threadline.engines.base import (
    NO_STATE,
    Engine,
    ErasedUser,
    EventClashError,
    Handle,
    Head,
    NewEvent,
    NewSession,
    Position,
    Scope,
    SessionChange,
    SessionKey,
    SessionQuery,
    StateRows,
    Tailable,
    Window,
    session_key,
)
from threadline.errors import AlreadyExistsError, SessionNotFoundError, StaleSessionError
from threadline.testing.loops import asynchronous

KEY = session_key("app", "user", "s")
_ids = itertools.count()


def event(
    body: bytes = b"", id: str | None = None, timestamp: float = 1.0, **state: bytes
) -> NewEvent:
    """Make an event; bodies hold the id as every stored event's JSON does."""
    id = id or f"e{next(_ids)}"
    return NewEvent(
        id=id,
        timestamp=timestamp,
        body=b'{"id":"%b","text":"%b"}' % (id.encode(), body),
        state=StateRows({}, {}, state),
    )


async def created(engine: Engine, key: SessionKey = KEY, time: float = 1.0) -> Handle:
    """Open the engine, make its tables and one session."""
    await prepared(engine)
    snapshot = await engine.create(NewSession(key=key, created=time), NO_STATE, now=time)
    return Handle(key=key, revision=0, incarnation=snapshot.session.incarnation)


async def prepared(engine: Engine) -> None:
    """Open the engine and make its tables."""
    from threadline import migrations
    from threadline.engines.base import Migratable

    await engine.open()
    if isinstance(engine, Migratable):
        await migrations.upgrade(engine)


def tailable(engine: Engine) -> Tailable:
    """Return the engine as one that can tell of many sessions, or skip the test."""
    if not isinstance(engine, Tailable):
        pytest.skip("The engine is not Tailable: every tail looks for its session by itself.")
    return engine


@asynchronous
class EngineSuite:
    """Inherit it and override the `engine` fixture."""

    @pytest.fixture
    def engine(self) -> Engine:
        """Return a new engine over an empty store, unopened."""
        raise NotImplementedError("Override the `engine` fixture.")

    async def test_create_returns_what_load_returns(self, engine: Engine) -> None:
        await prepared(engine)
        new = NewSession(key=KEY, created=1.5, expires=9.0, display_name="d", labels='{"a":"b"}')
        state = StateRows({"a": b"1"}, {"u": b"2"}, {"s": b"3"})
        snapshot = await engine.create(new, state, now=1.5)
        assert await engine.load(KEY, Window(), now=1.5) == snapshot
        assert snapshot.state == state
        assert snapshot.session.revision == 0

    async def test_create_refuses_an_id_that_is_taken(self, engine: Engine) -> None:
        await created(engine)
        with pytest.raises(AlreadyExistsError):
            await engine.create(
                NewSession(key=KEY, created=2.0), StateRows({"a": b"1"}, {}, {}), now=2
            )
        assert await engine.state(Scope(KEY.app_key)) == {}

    async def test_create_replaces_an_expired_session(self, engine: Engine) -> None:
        await prepared(engine)
        old = await engine.create(
            NewSession(key=KEY, created=1.0, expires=2.0), StateRows({}, {}, {"k": b"1"}), now=1
        )
        handle = Handle(key=KEY, revision=0, incarnation=old.session.incarnation)
        await engine.append(handle, [event()], rebase=False, now=1)
        new = await engine.create(NewSession(key=KEY, created=3.0), NO_STATE, now=3)
        assert new.state == NO_STATE
        assert new.session.incarnation != old.session.incarnation
        loaded = await engine.load(KEY, Window(), now=3)
        assert loaded is not None
        assert loaded.events == []

    async def test_append_numbers_events_and_returns_them(self, engine: Engine) -> None:
        handle = await created(engine)
        events = [event(b"a", timestamp=5.0), event(b"b", timestamp=3.0)]
        appended = await engine.append(handle, events, rebase=False, now=1)
        assert list(appended.seqs) == [1, 2]
        assert list(appended.missed) == []
        assert (appended.revision, appended.updated) == (2, 3.0)
        loaded = await engine.load(KEY, Window(), now=1)
        assert loaded is not None
        assert loaded.events == [(1, events[0].body), (2, events[1].body)]
        assert (loaded.session.revision, loaded.session.updated) == (2, 3.0)

    async def test_append_applies_the_state_of_new_events_only(self, engine: Engine) -> None:
        handle = await created(engine)
        first = event(k=b"1")
        await engine.append(handle, [first], rebase=False, now=1)
        later = Handle(key=KEY, revision=1, incarnation=handle.incarnation)
        await engine.append(later, [event(k=b"2")], rebase=False, now=1)
        await engine.append(later, [first], rebase=False, now=1)
        loaded = await engine.load(KEY, Window(), now=1)
        assert loaded is not None
        assert loaded.state.session == {"k": b"2"}

    async def test_an_id_with_another_body_clashes(self, engine: Engine) -> None:
        handle = await created(engine)
        await engine.append(handle, [event(b"a", id="x")], rebase=False, now=1)
        with pytest.raises(EventClashError) as clash:
            await engine.append(handle, [event(), event(b"b", id="x")], rebase=True, now=1)
        assert clash.value.index == 1
        assert clash.value.stored == (1, event(b"a", id="x").body)
        loaded = await engine.load(KEY, Window(), now=1)
        assert loaded is not None
        assert len(loaded.events) == 1

    async def test_a_stale_handle_is_refused_with_the_rows_it_missed(self, engine: Engine) -> None:
        handle = await created(engine)
        seen = event()
        await engine.append(handle, [seen], rebase=False, now=1)
        with pytest.raises(StaleSessionError) as stale:
            await engine.append(handle, [event()], rebase=False, now=1)
        assert list(stale.value.missed) == [(1, seen.body)]

    async def test_rebase_returns_the_rows_between(self, engine: Engine) -> None:
        handle = await created(engine)
        a, b, c = event(), event(), event()
        await engine.append(handle, [a, b], rebase=False, now=1)
        appended = await engine.append(handle, [c], rebase=True, now=1)
        assert list(appended.missed) == [(1, a.body), (2, b.body)]
        assert list(appended.seqs) == [3]
        again = await engine.append(handle, [c, b], rebase=True, now=1)
        assert (list(again.seqs), list(again.missed)) == ([3, 2], [(1, a.body)])

    async def test_another_incarnation_is_not_found(self, engine: Engine) -> None:
        handle = await created(engine)
        await engine.delete(KEY)
        fresh = await engine.create(NewSession(key=KEY, created=2.0), NO_STATE, now=2)
        assert fresh.session.incarnation != handle.incarnation
        with pytest.raises(SessionNotFoundError):
            await engine.append(handle, [event()], rebase=True, now=2)

    async def test_concurrent_appends_each_succeed_or_fail_alone(self, engine: Engine) -> None:
        handle = await created(engine)
        missing = Handle(key=session_key("app", "user", "missing"), revision=0)
        jobs = [
            engine.append(
                missing if n % 3 == 0 else handle, [event(k=b"%d" % n)], rebase=True, now=1
            )
            for n in range(60)
        ]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
        assert failed == list(range(0, 60, 3))
        loaded = await engine.load(KEY, Window(), now=1)
        assert loaded is not None
        assert [seq for seq, _ in loaded.events] == list(range(1, 41))

    async def test_windows(self, engine: Engine) -> None:
        handle = await created(engine)
        times = [1.0, 5.0, 2.0, 5.0, 3.0, 4.0]
        await engine.append(handle, [event(timestamp=t) for t in times], rebase=False, now=1)
        for after, before, since, limit, newest in itertools.product(
            (0, 2, 9), (None, 0, 1, 5, 99), (None, 3.0), (None, 0, 2, 99), (False, True)
        ):
            window = Window(
                after_seq=after,
                before_seq=before,
                after_timestamp=since,
                limit=limit,
                newest=newest,
            )
            expected = [
                seq
                for seq, time in enumerate(times, 1)
                if seq > after and (before is None or seq < before) and time >= (since or 0)
            ]
            if limit is not None:
                expected = expected[max(len(expected) - limit, 0) :] if newest else expected[:limit]
            loaded = await engine.load(KEY, window, now=1)
            assert loaded is not None
            assert [seq for seq, _ in loaded.events] == expected, window

    async def test_a_load_without_state_reads_none(self, engine: Engine) -> None:
        await prepared(engine)
        await engine.create(NewSession(key=KEY, created=1.0), StateRows({"a": b"1"}, {}, {}), now=1)
        loaded = await engine.load(KEY, Window(), now=1, state=False)
        assert loaded is not None
        assert loaded.state == NO_STATE

    async def test_patch_reads_the_keys_it_names_and_writes_the_result(
        self, engine: Engine
    ) -> None:
        await prepared(engine)
        scope = Scope(KEY.owner)
        await engine.patch(scope, [], lambda _: {"a": b"1", "b": b"2"}, now=1)
        seen: list[dict[str, bytes]] = []

        def change(stored: object) -> dict[str, bytes | None]:
            seen.append(dict(stored))  # type: ignore[call-overload]
            return {"a": None, "c": b"3"}

        await engine.patch(scope, ["a", "x"], change, now=1)
        assert seen == [{"a": b"1"}]
        assert await engine.state(scope) == {"b": b"2", "c": b"3"}

    async def test_a_patch_that_raises_writes_nothing(self, engine: Engine) -> None:
        await prepared(engine)
        scope = Scope(KEY.owner)

        def change(_: object) -> dict[str, bytes | None]:
            raise SessionNotFoundError("refused")

        with pytest.raises(SessionNotFoundError, match="refused"):
            await engine.patch(scope, [], change, now=1)
        assert await engine.state(scope) == {}

    async def test_delete_tells_whether_there_was_one(self, engine: Engine) -> None:
        await created(engine)
        assert await engine.delete(KEY) is True
        assert await engine.delete(KEY) is False

    async def test_erase_tells_how_much_it_removed(self, engine: Engine) -> None:
        await prepared(engine)
        user, others = KEY.scopes[1], session_key("app", "other", "s")
        for key, expires in (
            (KEY, None),
            (session_key("app", "user", "gone"), 2.0),
            (others, None),
        ):
            new = NewSession(key=key, created=1.0, expires=expires)
            snapshot = await engine.create(
                new, StateRows({"a": b"1"}, {"u": b"2"}, {"s": b"3", "t": b"4"}), now=1
            )
            handle = Handle(key=key, revision=0, incarnation=snapshot.session.incarnation)
            await engine.append(handle, [event(), event(), event()], rebase=False, now=1)
        assert await engine.erase(user) == ErasedUser(sessions=2, events=6, state_keys=5)
        assert await engine.erase(user) == ErasedUser()
        assert await engine.state(user) == {}
        assert await engine.state(Scope(KEY.app_key)) == {"a": b"1"}
        kept = await engine.load(others, Window(), now=1)
        assert kept is not None
        assert len(kept.events) == 3
        assert kept.state == StateRows({"a": b"1"}, {"u": b"2"}, {"s": b"3", "t": b"4"})

    async def test_what_comes_while_a_user_is_erased_goes_whole_or_stays_whole(
        self, engine: Engine
    ) -> None:
        await prepared(engine)
        user = KEY.scopes[1]

        async def create(id: str) -> Handle:
            key = session_key("app", "user", id)
            state = StateRows({}, {id: b"1", "last": b"1"}, {"k": b"1"})
            snapshot = await engine.create(NewSession(key=key, created=1.0), state, now=1)
            return Handle(key=key, revision=0, incarnation=snapshot.session.incarnation)

        async def append(handle: Handle) -> None:
            state = StateRows({}, {f"of {handle.key.id}": b"1"}, {"k": b"2"})
            new = msgspec.structs.replace(event(), state=state)
            with contextlib.suppress(SessionNotFoundError):
                await engine.append(handle, [new], rebase=True, now=1)

        for round in range(5):
            old = [await create(f"old {round} {n}") for n in range(6)]
            ids = [f"new {round} {n}" for n in range(12)]
            await asyncio.gather(
                *map(create, ids[:4]),
                *map(append, old),
                engine.erase(user),
                *map(create, ids[4:]),
                *map(append, old),
            )
            query = SessionQuery(app_key=KEY.app_key, owner=KEY.owner)
            stayed = await engine.sessions(query, now=1)
            names = {row.id for row, _ in stayed}
            assert names <= {*ids}
            # A state of the user's is there if and only if a session is that came with it.
            assert set(await engine.state(user)) == names | ({"last"} if names else set())
            assert all(state.session == {"k": b"1"} for _, state in stayed)
            await engine.erase(user)
            for handle in old:  # rows that were left behind would show again
                again = await engine.create(
                    NewSession(key=handle.key, created=1.0), NO_STATE, now=1
                )
                assert again == await engine.load(handle.key, Window(), now=1)
                assert again.state == NO_STATE
            await engine.erase(user)

    async def test_any_finite_time_is_kept_and_listed(self, engine: Engine) -> None:
        await prepared(engine)
        times = [-1.7976931348623157e308, -5e-324, 5e-324, 0.1, 1.7976931348623157e308]
        for n, time in enumerate(times):
            key = session_key("app", "user", str(n))
            created = await engine.create(NewSession(key=key, created=0.0), NO_STATE, now=0)
            handle = Handle(key=key, revision=0, incarnation=created.session.incarnation)
            new = msgspec.structs.replace(event(), timestamp=time)
            await engine.append(handle, [new], rebase=False, now=0)
        query = SessionQuery(app_key=KEY.app_key, owner=KEY.owner)
        listed = await engine.sessions(query, now=0)
        assert [row.updated for row, _ in listed] == times
        place = Position(-5e-324, "user", "1")
        after = await engine.sessions(msgspec.structs.replace(query, after=place), now=0)
        assert [row.updated for row, _ in after] == times[2:]

    async def test_sessions_begin_after_a_position(self, engine: Engine) -> None:
        await prepared(engine)
        for time, user, id in ((1.0, "b", "x"), (1.0, "a", "y"), (1.0, "a", "x"), (2.0, "a", "z")):
            key = session_key("app", user, id)
            await engine.create(NewSession(key=key, created=time), NO_STATE, now=1)
        after = Position(1.0, "a", "x")
        for descending, expected in (
            (False, [("a", "y"), ("b", "x"), ("a", "z")]),
            (True, []),
        ):
            query = SessionQuery(app_key=KEY.app_key, after=after, descending=descending)
            page = await engine.sessions(query, now=1)
            assert [(row.user, row.id) for row, _ in page] == expected

    async def test_find_reads_who_has_a_session_with_an_id(self, engine: Engine) -> None:
        await prepared(engine)
        for app, user, id in (
            *(("app", "b", "x"), ("app", "a", "x"), ("app", "a", "X"), ("other", "a", "x")),
        ):
            key = session_key(app, user, id)
            await engine.create(NewSession(key=key, created=1.0), NO_STATE, now=1)
        gone = NewSession(key=session_key("app", "c", "x"), created=1.0, expires=2.0)
        await engine.create(gone, NO_STATE, now=1)
        found = await engine.find(KEY.app_key, "x", now=2)
        assert sorted((row.app, row.user, row.id) for row in found) == [
            ("app", "a", "x"),
            ("app", "b", "x"),
        ]

    async def test_find_reads_the_row_that_load_reads(self, engine: Engine) -> None:
        handle = await created(engine)
        await engine.append(handle, [event()], rebase=False, now=1)
        loaded = await engine.load(KEY, Window(), now=1)
        assert loaded is not None
        assert await engine.find(KEY.app_key, KEY.id, now=1) == [loaded.session]

    async def test_apps_come_once_and_in_order(self, engine: Engine) -> None:
        await prepared(engine)
        assert await engine.apps() == []
        for app, user in (("b", "u"), ("a", "u"), ("b", "v"), ("é", "u")):
            key = session_key(app, user, "s")
            await engine.create(NewSession(key=key, created=1.0), NO_STATE, now=1)
        assert await engine.apps() == ["a", "b", "é"]

    async def test_describe_changes_what_is_set_and_nothing_else(self, engine: Engine) -> None:
        await prepared(engine)
        new = NewSession(key=KEY, created=1.0, expires=9.0, display_name="d", labels='{"a":"b"}')
        before = (await engine.create(new, NO_STATE, now=1)).session
        for change in (
            SessionChange(display_name="e"),
            SessionChange(labels='{"c":"d"}', expires=None),
            SessionChange(display_name=None, labels=None, expires=7.5),
            SessionChange(),
        ):
            assert await engine.describe(KEY, change, now=1)
            given = {
                name: value
                for name, value in msgspec.structs.asdict(change).items()
                if value is not msgspec.UNSET
            }
            before = msgspec.structs.replace(before, **given)
            loaded = await engine.load(KEY, Window(), now=1)
            assert loaded is not None
            assert loaded.session == before

    async def test_describe_tells_that_a_session_is_missing_or_expired(
        self, engine: Engine
    ) -> None:
        await prepared(engine)
        change = SessionChange(display_name="e")
        assert not await engine.describe(KEY, change, now=1)
        await engine.create(NewSession(key=KEY, created=1.0, expires=2.0), NO_STATE, now=1)
        assert not await engine.describe(KEY, change, now=2)

    async def test_heads_tell_where_each_session_is(self, engine: Engine) -> None:
        handle = await created(engine)
        can_tell = tailable(engine)
        await engine.append(handle, [event(), event()], rebase=False, now=1)
        other = session_key("app", "other", "s")
        made = await engine.create(NewSession(key=other, created=1.0), NO_STATE, now=1)
        brief = session_key("app", "user", "brief")
        await engine.create(NewSession(key=brief, created=1.0, expires=2.0), NO_STATE, now=1)
        missing = [session_key("app", "user", f"missing {n}") for n in range(500)]
        heads = await can_tell.heads([other, *missing, KEY, brief, KEY], now=2)
        mine = Head(handle.incarnation or 0, 2)
        assert heads == [Head(made.session.incarnation, 0), *[None] * 500, mine, None, mine]
        assert await can_tell.heads([], now=2) == []

    async def test_heads_tell_a_session_from_its_successor(self, engine: Engine) -> None:
        await created(engine)
        can_tell = tailable(engine)
        (before,) = await can_tell.heads([KEY], now=1)
        await engine.delete(KEY)
        assert await can_tell.heads([KEY], now=1) == [None]
        await created(engine)
        (after,) = await can_tell.heads([KEY], now=1)
        assert before is not None
        assert after is not None
        assert (before.revision, after.revision) == (0, 0)
        assert before.incarnation != after.incarnation

    async def test_open_and_close_can_be_repeated(self, engine: Engine) -> None:
        handle = await created(engine)
        await engine.open()
        await engine.append(handle, [event()], rebase=False, now=1)
        await engine.close()
        await engine.close()
