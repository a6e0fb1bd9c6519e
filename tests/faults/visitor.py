"""A child that uses the service in a situation that only a process of its own can be in."""

from __future__ import annotations

import asyncio
import os
import resource
from typing import Any

from threadline import DatabaseSessionService, Event, Session

if __name__ == "__main__":
    from children import job, say
else:
    from .children import job, say

NOBODY = 65534
APP, USER, ID = "app", "ann", "s0"


def told(error: BaseException) -> dict[str, Any]:
    """Describe an exception in words that fit in a line."""
    return {
        "error": type(error).__name__,
        "is_ours": type(error).__module__ == "threadline.errors",
        "message": str(error),
    }


async def visit(service: DatabaseSessionService, *, write: bool) -> dict[str, Any]:
    """Use the database once and tell what came of it."""
    try:
        key = {"app_name": APP, "user_id": USER, "session_id": ID}
        session = await service.get_session(**key)
        if write:
            session = session or await service.create_session(**key)
            await service.append_event(session, Event(author="visitor", content="I was here."))
    except Exception as error:  # whatever it is, it is what is asked for
        return told(error)
    return {"error": None, "events": None if session is None else len(session.events)}


async def as_nobody(work: dict[str, Any]) -> None:
    """Visit without root's right to ignore permissions."""
    # Everything that is imported late must be there before the rights are gone.
    async with DatabaseSessionService("sqlite:///:memory:") as service:
        say(await visit(service, write=True))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    service = DatabaseSessionService(work["url"])
    try:
        say(await visit(service, write=work["write"]))
    finally:
        await service.close()


async def with_a_limit(work: dict[str, Any]) -> None:
    """Append until a file may not grow any more, then with the limit lifted."""
    async with DatabaseSessionService(work["url"]) as service:
        key = {"app_name": APP, "user_id": USER, "session_id": ID}
        session = await service.create_session(**key)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (work["bytes_max"], limit[1]))
        event = await append_until_refused(service, session)
        say({"events": len(session.events), "refused": event.id})
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        found = await service.get_session(**key)
        assert found is not None
        say({"events": len(found.events), "state": dict(found.state)})
        stored = await service.append_event(session, event)
        say({"seq": stored.seq})


async def append_until_refused(service: DatabaseSessionService, session: Session) -> Event:
    """Append large events; say why one was refused and return it."""
    for turn in range(10_000):
        event = Event(author="visitor", content="x" * 20_000, state={"turn": turn})
        try:
            await service.append_event(session, event)
        except Exception as error:  # whatever it is, it is what is asked for
            say(told(error))
            return event
    raise AssertionError("there was no end of room")


def across_a_fork(work: dict[str, Any]) -> None:
    """Use one service before a fork, in the child, and in the parent afterwards."""
    service = DatabaseSessionService(work["url"])
    say({"who": "parent", **asyncio.run(visit(service, write=True))})
    child = os.fork()
    if child == 0:
        try:
            for write in (True, False):
                say({"who": "child", **asyncio.run(visit(service, write=write))})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    say({"who": "parent", **asyncio.run(visit(service, write=True))})
    asyncio.run(service.close())


def beside_a_parent_that_closes(work: dict[str, Any]) -> None:
    """Fork with a service open, and use a new one in the child while the parent closes its own."""
    service = DatabaseSessionService(work["url"])
    say({"who": "parent", **asyncio.run(visit(service, write=True))})
    read_1, write_1 = os.pipe()
    read_2, write_2 = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own = DatabaseSessionService(work["url"])
            say({"who": "child", **asyncio.run(visit(own, write=True))})
            os.write(write_1, b"!")
            os.read(read_2, 1)
            say({"who": "child", **asyncio.run(visit(own, write=True))})
            asyncio.run(own.close())
        finally:
            os._exit(0)
    os.read(read_1, 1)
    asyncio.run(service.close())
    os.write(write_2, b"!")
    os.waitpid(child, 0)


def main() -> None:
    """Do the named visit."""
    work = job()
    visits = {
        "as_nobody": lambda: asyncio.run(as_nobody(work)),
        "with_a_limit": lambda: asyncio.run(with_a_limit(work)),
        "across_a_fork": lambda: across_a_fork(work),
        "beside_a_parent_that_closes": lambda: beside_a_parent_that_closes(work),
    }
    visits[work["visit"]]()


if __name__ == "__main__":
    main()
