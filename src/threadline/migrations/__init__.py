"""Bring a database's tables to the version this threadline reads and writes.

Migrations are numbered SQL files, forward only, recorded in a ledger table. The engine runs
them one runner at a time, under its database's own lock; when nothing is due, nothing but one
read is done, so a role without DDL rights works once the tables exist.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from threadline.engines.base import Migration, quoted
from threadline.errors import NewerSchemaError, OutdatedSchemaError, UnsupportedUrlError

if TYPE_CHECKING:
    from threadline.engines.base import Migratable

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


class Status(msgspec.Struct, frozen=True):
    """Where a database stands; `version` is None where there are no tables yet."""

    version: int | None
    latest: int
    pending: list[str]


@functools.cache
def load(dialect: str, schema: str | None = None) -> tuple[Migration, ...]:
    """Return a dialect's migrations in order, for tables in a schema where there are such."""
    folder = Path(__file__).parent / dialect
    if not folder.is_dir():
        raise UnsupportedUrlError(f"There are no tables to create for {dialect!r}.")
    return tuple(
        Migration(
            version=int(found[1]),
            name=path.stem,
            sql=(
                path.read_text(encoding="utf-8")
                + f"\nINSERT INTO {{schema}}.threadline_migration (version, name) "
                f"VALUES ({int(found[1])}, '{path.stem}');\n"
            ).replace("{schema}.", "" if schema is None else f"{quoted(schema)}."),
        )
        for path in sorted(folder.iterdir())
        if (found := _FILE.fullmatch(path.name))
    )


def ddl(dialect: str, schema: str | None = None) -> str:
    """Return all statements, for a DBA who runs them by hand."""
    return "\n".join(f"-- {step.name}\n\n{step.sql}" for step in load(dialect, schema))


async def status(engine: Migratable) -> Status:
    """Compare the ledger with the migrations of this version."""
    steps = load(engine.dialect, engine.schema)
    version = await engine.version()
    latest = steps[-1].version
    if version is not None and version > latest:
        raise NewerSchemaError(
            f"{engine.where} has schema version {version}; this threadline knows up to {latest}. "
            "Upgrade threadline (pip install -U threadline)."
        )
    pending = [step.name for step in steps if step.version > (version or 0)]
    return Status(version=version, latest=latest, pending=pending)


async def upgrade(engine: Migratable) -> list[str]:
    """Run what is due; return the names of the migrations that ran."""
    if not (await status(engine)).pending:
        return []
    return await engine.migrate(load(engine.dialect, engine.schema))


async def prepare(engine: Migratable, *, auto_migrate: bool) -> None:
    """Make the tables usable, or say what is to be done."""
    found = await status(engine)
    if found.pending and not auto_migrate:
        raise OutdatedSchemaError(
            f"{engine.where} needs {', '.join(found.pending)}: run `threadline db upgrade --db "
            "URL`, or have a DBA run what `threadline db ddl --db URL` prints."
        )
    if found.pending:
        await engine.migrate(load(engine.dialect, engine.schema))
