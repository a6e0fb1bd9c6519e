"""A server process whose tails do not look by themselves: what reaches them came by word.

Run as `python patient_server.py DATABASE PORT`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from servers_http import Command
from threadline import DatabaseSessionService
from threadline.server.app import create_app
from threadline.server.process import server, set_up_logging
from threadline.server.tails import Tails

NEVER_S = 86_400.0


class Patient(Command):
    """Such a process."""

    def program(self, db: str, options: Sequence[str]) -> list[str]:
        """Return what Python runs."""
        return [str(Path(__file__)), db, str(self.port)]


def main(db: str, port: int) -> None:
    """Serve until SIGTERM."""
    set_up_logging()
    service = DatabaseSessionService(db)
    tails = Tails(service, poll_s=NEVER_S, heartbeat_s=NEVER_S)
    one = server(create_app(service, tails=tails))
    one.config.port = port
    one.run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
