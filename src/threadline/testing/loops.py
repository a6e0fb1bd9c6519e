"""Run async tests on an event loop of their own, without a plugin."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Suite = TypeVar("Suite", bound=type)


def asynchronous(suite: Suite) -> Suite:
    """Make every `async def test_...` of a class one that pytest can call.

    Its first argument, the service or engine, is closed on the same loop afterwards.
    """
    for name, method in list(vars(suite).items()):
        if name.startswith("test_") and inspect.iscoroutinefunction(method):
            setattr(suite, name, _on_a_loop(method))
    return suite


def _on_a_loop(method: Callable[..., Any]) -> Callable[..., None]:
    subject = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    def test(self: Any, **fixtures: Any) -> None:
        async def run() -> None:
            try:
                await method(self, **fixtures)
            finally:
                await fixtures[subject].close()

        asyncio.run(run())

    return test
