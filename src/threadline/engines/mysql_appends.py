"""The statements of a MySQL append, inside a transaction."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import asyncmy

from threadline.engines.base import Appended, Window
from threadline.engines.mysql_driver import BAD_NULL, DUPLICATE_KEY, code_of
from threadline.engines.mysql_rows import checked, inserts, select_events, upserts
from threadline.engines.mysql_text import bind
from threadline.errors import StaleSessionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from threadline.engines.lanes import Append
    from threadline.engines.mysql_driver import Connection
    from threadline.engines.mysql_text import Sql

CONFLICTS_MAX = 3


async def append_next(db: Connection, sql: Sql, jobs: Sequence[Append]) -> list[Append]:
    """Append to the revisions that handles know, as most appends can; return those done.

    No question is asked first: a compare that fails, a place or an id that is taken says that
    the handle is stale or the event a repeated one. The others try again without it.
    """
    # In one order, so that two transactions do not each wait for the other.
    rest = sorted(jobs, key=lambda job: job.handle.key.owner + job.handle.key.session)
    for _ in range(CONFLICTS_MAX):
        parts = [_next_event(sql, job) for job in rest]
        deltas = ((job.handle.key, event.state) for job in rest for event in job.events)
        packet = [sql["begin"], *itertools.chain(*parts), *upserts(sql, deltas), sql["commit"]]
        try:
            await db.execute(*packet)
        except asyncmy.errors.Error as error:
            if code_of(error) not in (BAD_NULL, DUPLICATE_KEY):
                raise
            if len(jobs) == 1:  # the careful way begins with the rollback
                return []
            await db.execute(sql["rollback"])
            begins = itertools.accumulate(map(len, parts), initial=1)
            del rest[sum(begin <= db.done for begin in begins) - 1]
            if not rest:
                return []
        else:
            return rest
    return []


def _next_event(sql: Sql, job: Append) -> list[str]:
    """Return the statements that append through a handle which is right."""
    handle, key = job.handle, job.handle.key
    place = {"owner": key.owner, "session": key.session}
    bump = bind(
        sql["bump_known_session"],
        **place,
        head=handle.revision + len(job.events),
        updated=job.events[-1].timestamp,
        incarnation=handle.incarnation,
        revision=handle.revision,
        now=job.now,
    )
    first, *others = job.events
    insert = bind(
        sql["insert_next_event"],
        **place,
        seq=handle.revision + 1,
        id_key=job.id_keys[0],
        timestamp=first.timestamp,
        body=first.body,
    )
    if not others:
        return [bump, insert]
    numbered = zip(itertools.count(handle.revision + 2), others, job.id_keys[1:], strict=False)
    return [bump, insert, *inserts(sql, key, numbered)]


async def append_carefully(db: Connection, sql: Sql, job: Append) -> Appended:
    """Append through a handle that may be stale, skipping the events that are there.

    Two packets: one locks the session and reads what is to be known, one writes.
    """
    handle, key, events, id_keys = job.handle, job.handle.key, job.events, job.id_keys
    place = {"owner": key.owner, "session": key.session}
    found, repeated, news = await db.fetch(
        sql["rollback"],
        sql["begin"],
        bind(sql["lock_session"], **place),
        bind(sql["select_events_by_id"], **place, id_keys=id_keys),
        select_events(sql, place, Window(after_seq=handle.revision)),
    )
    row = job.check(checked(key, found))
    known = job.known({id_key: (seq, body) for id_key, seq, body in repeated})
    seen = max([handle.revision, *known.values()])
    if len(known) < len(events) and not job.rebase and seen != row.revision:
        raise StaleSessionError(
            f"The session {key.id!r} is at revision {row.revision}, not {seen}.",
            expected=seen,
            revision=row.revision,
            missed=list(news),
        )
    new = [index for index in range(len(events)) if index not in known]
    head, updated = row.revision + len(new), row.updated
    seqs = {**known, **dict(zip(new, range(row.revision + 1, head + 1), strict=True))}
    packet: list[str] = []
    if new:
        updated = events[new[-1]].timestamp
        packet += inserts(sql, key, ((seqs[i], events[i], id_keys[i]) for i in new))
        packet.append(bind(sql["bump_session"], **place, head=head, updated=updated))
        packet += upserts(sql, [(key, events[index].state) for index in new])
    await db.execute(*packet, sql["commit"])
    given = set(seqs.values())
    revision = max(handle.revision, *given)
    return Appended(
        seqs=[seqs[index] for index in range(len(events))],
        missed=[event for event in news if event[0] not in given and event[0] < revision],
        incarnation=row.incarnation,
        revision=revision,
        updated=updated,
    )
