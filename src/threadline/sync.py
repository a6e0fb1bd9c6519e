"""The same services, blocking: same names, same arguments, same types.

    from threadline.sync import DatabaseSessionService

One private event loop runs on one thread for the whole process; every call here hands its
coroutine to it and waits. There is no second implementation. Inside of a running event loop,
use `threadline` itself: a blocking call there would block the loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from threadline import *  # noqa: F403 - the same catalogue, but for the classes below
from threadline import __all__ as _all
from threadline import service as _async

if TYPE_CHECKING:
    import datetime
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    from threadline.models import (
        Event,
        GetSessionConfig,
        ListEventsResponse,
        ListSessionsResponse,
        Session,
    )
    from threadline.service import OnStale, Order
