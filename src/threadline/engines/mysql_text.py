"""SQL as text, as the MySQL protocol has it: values are written into the statements."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from asyncmy import converters

from threadline.engines import statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Sql = dict[str, str]

PREFIX = "threadline_"
STATEMENT_BYTES = 1 << 20


@functools.cache
def load(prefix: str, isolation: str) -> Sql:
    sql = {name: renamed(text, prefix) for name, text in statements.load("mysql").items()}
    sql["prepare_connection"] = sql["prepare_connection"].format(isolation=isolation)
    return sql


def renamed(sql: str, prefix: str) -> str:
    return re.sub(rf"\b{PREFIX}", prefix, sql)


def split(script: str) -> Iterator[str]:
    """Split a migration, whose statements end with a line."""
    code = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    return (part.strip() for part in re.split(r";\s*$", code, flags=re.MULTILINE) if part.strip())


class Text(str):
    """SQL that is ready as it is."""

    __slots__ = ()


def bind(sql: str, **values: object) -> str:
    return sql % {name: literal(value) for name, value in values.items()}


def literals(values: Iterable[object]) -> str:
    return f"({','.join(map(literal, values))})"


def literal(value: Any) -> str:
    """Write a value as SQL; text and bytes are binary, so no character set has a say in them.

    Bytes that are no ASCII stand in the text as surrogates, until it is sent.
    """
    match value:
        case bytes() if len(value) == 16:
            return f"0x{value.hex()}"
        case bytes():
            return converters.escape_bytes_prefixed(value)
        case Text():
            return value
        case str():
            return converters.escape_bytes_prefixed(value.encode())
        case int():
            return str(value)
        case float():
            return converters.escape_float(value)
        case None:
            return "NULL"
        case _:
            return ",".join(map(literal, value))


def chunks(rows: Iterable[str]) -> Iterator[Text]:
    """Join rows to lists that make statements of ordinary size."""
    chunk: list[str] = []
    size = 0
    for row in rows:
        if chunk and size + len(row) > STATEMENT_BYTES:
            yield Text(",".join(chunk))
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield Text(",".join(chunk))
