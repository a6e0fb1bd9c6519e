"""Read the named statements of a `.sql` file.

A block begins with `-- name: NAME`; the comment lines below it say what it is for.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(engine: str) -> dict[str, str]:
    """Return the statements beside the engine's module, by name."""
    text = (Path(__file__).parent / f"{engine}.sql").read_text(encoding="utf-8")
    _, *blocks = _NAME.split(text)
    return {
        name: "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()
        for name, body in zip(blocks[::2], blocks[1::2], strict=True)
    }
