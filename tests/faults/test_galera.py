"""Three Galera nodes: one dies under load, all are written to at once, clients change nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from servers_mysql import Server
from threadline import DatabaseSessionService, ErasedUser, Event

from .children import Child, running
from .evidence import survey
from .galera import Galera, galera
from .writer import SESSIONS, TASKS_PER_SESSION

pytestmark = pytest.mark.soak

TABLES = {
    "threadline_session": "owner, session",
    "threadline_event": "owner, session, seq",
    "threadline_state": "owner, session, name",
}
EVENTS_MAX = 600
IDS = {"app_name": "app", "user_id": "ann", "session_id": "s0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Galera]:
    with galera() as cluster:
        yield cluster


@pytest.fixture
def database(cluster: Galera) -> str:
    """Make a database and its tables on one node, which is the way to do it in a cluster."""
    name = f"threadline_test_{uuid.uuid4().hex[:12]}"
    at = cluster.nodes[0].server
    at.run(f"CREATE DATABASE {name}")

    async def upgrade() -> None:
        async with DatabaseSessionService(at.url(name)):
            pass

    asyncio.run(upgrade())
    return name


@contextlib.contextmanager
def writing(
    cluster: Galera, database: str, count: int, events_max: int | None = None
) -> Iterator[list[Child]]:
    """Run writers of the same sessions, each of which prefers a node of its own."""
    # No patches: each process would count its own.
    job = {"seed": 1, "patches": False, "events_max": events_max}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                running("writer.py", {**job, "url": cluster.url(database, n), "generation": n})
            )
            for n in range(count)
        ]


def check(cluster: Galera, database: str, writers: list[Child]) -> str:
    """End the writers, hold the cluster to what they said and its nodes to one another."""
    for writer in writers:
        assert writer.kill() == -9, writer.errors()
        assert writer.errors() == ""
    said = [line for writer in writers for line in writer.lines]
    found = asyncio.run(survey(cluster.url(database), said))
    found.check_nothing_lost()
    first, *others = (contents(node.server, database) for node in cluster.nodes)
    assert all(other == first for other in others)
    rows = sum(map(len, first))
    return f"{found.acknowledged} events acknowledged, 0 lost; {rows} rows, equal on all nodes"


def contents(at: Server, database: str) -> list[list[tuple]]:
    """Return the rows of every table, once the node has applied what the cluster committed."""
    return [
        at.run(
            "SET SESSION wsrep_sync_wait = 1",
            f"SELECT * FROM {table} ORDER BY {order}",
            database=database,
        )
        for table, order in TABLES.items()
    ]


def test_a_node_dies_under_load_and_its_clients_go_on_with_another(
    cluster: Galera, database: str, report: Callable[[str], None]
) -> None:
    victim = cluster.nodes[0]
    with writing(cluster, database, 2) as writers:
        for writer in writers:
            writer.wait_for(20)
        start = time.perf_counter()
        victim.kill()
        before = [len(writer.lines) for writer in writers]
        for writer, count in zip(writers, before, strict=True):
            writer.wait_for(count + 20)  # a few may have been on their way
        seconds = time.perf_counter() - start
        victim.start()
        cluster.wait_until_synced(victim)
        held = check(cluster, database, writers)
    report(
        f"Galera, kill -9 of a node under 2 processes: {held}; both wrote again after "
        f"{seconds:.1f} s (the node is given up after 2 s)"
    )


def test_writers_of_the_same_sessions_on_all_nodes_store_every_event_once(
    cluster: Galera, database: str, report: Callable[[str], None]
) -> None:
    def conflicts() -> int:
        names = ("wsrep_local_cert_failures", "wsrep_local_bf_aborts")
        return sum(int(cluster.status(node, name)) for node in cluster.nodes for name in names)

    before = conflicts()
    events_max = EVENTS_MAX // (len(SESSIONS) * TASKS_PER_SESSION * len(cluster.nodes))
    with writing(cluster, database, len(cluster.nodes), events_max) as writers:
        start = time.perf_counter()
        for writer in writers:
            writer.wait_for_end_of_work()
        seconds = time.perf_counter() - start
        met = conflicts() - before
        held = check(cluster, database, writers)
    assert met, "the nodes did not meet"
    report(f"Galera, writers on 3 nodes, rebase: {seconds:.1f} s, {met} conflicts; {held}")


def test_what_was_acknowledged_at_one_node_is_erased_at_another(
    cluster: Galera, database: str
) -> None:
    """Also what the other node has not applied yet."""
    here, there = (DatabaseSessionService(node.server.url(database)) for node in cluster.nodes[:2])

    async def use() -> None:
        async with here, there:
            for n in range(10):
                much = {f"k{key}": "x" * 1000 for key in range(3000)}  # it takes a while to apply
                await here.create_session(**{**IDS, "session_id": f"s{n}"}, state=much)
                erased = await there.erase_user(app_name="app", user_id="ann")
                assert erased == ErasedUser(sessions=1, state_keys=3000)

    asyncio.run(use())


def test_a_client_that_changes_nodes_finds_what_was_acknowledged(
    cluster: Galera, database: str
) -> None:
    """The new node has not applied it yet, and is waited for."""
    old, new = cluster.nodes[:2]

    async def use() -> None:
        holder = await new.server.connect()
        async with DatabaseSessionService(cluster.url(database)) as service, holder.cursor() as at:
            session = await service.create_session(**IDS)
            await service.append_event(session, Event(author="ann", content="on both"))
            await at.execute("SET SESSION wsrep_sync_wait = 1")
            await at.execute("SELECT 1")
            await at.execute("FLUSH TABLES WITH READ LOCK")  # nothing is applied from here on
            await service.append_event(session, Event(author="ann", content="on one"))
            refuse = "SET GLOBAL wsrep_reject_queries = "
            await asyncio.to_thread(old.server.run, f"{refuse}ALL_KILL")
            try:
                read = asyncio.create_task(service.get_session(**IDS))
                done, _ = await asyncio.wait([read], timeout=1)
                assert not done
                await at.execute("UNLOCK TABLES")
                found = await read
                assert found is not None
                assert found.revision == 2
                await service.append_event(session, Event(author="ann", content="goes on"))
            finally:
                await asyncio.to_thread(old.server.run, f"{refuse}NONE")
        holder.close()

    asyncio.run(use())
