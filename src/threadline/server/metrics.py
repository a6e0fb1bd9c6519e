"""Numbers for Prometheus, of this process and this application: nothing is global."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """Counts of requests by method, route and status, and how long they took.

    A route is its template: no id is in a label, and their number is bounded.
    """

    def __init__(self, tails: Callable[[], int]) -> None:
        self.in_flight = 0
        self._tails = tails
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests[method if method in _METHODS else "other", route, status] += 1
        counts = self._seconds.setdefault(route, [0] * (len(BOUNDS_S) + 1))
        counts[next((n for n, bound in enumerate(BOUNDS_S) if seconds <= bound), -1)] += 1
        self._sums[route] = self._sums.get(route, 0.0) + seconds

    def text(self) -> str:
        """Return them in Prometheus's text format."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# TYPE threadline_requests_in_flight gauge"
        yield f"threadline_requests_in_flight {self.in_flight}"
        yield "# TYPE threadline_tails gauge"
        yield f"threadline_tails {self._tails()}"
        yield "# TYPE threadline_requests_total counter"
        for (method, route, status), count in sorted(self._requests.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            yield f"threadline_requests_total{{{labels}}} {count}"
        yield "# TYPE threadline_request_seconds histogram"
        for route, counts in sorted(self._seconds.items()):
            for bound, count in zip((*BOUNDS_S, "+Inf"), accumulate(counts), strict=True):
                labels = f'route="{route}",le="{bound}"'
                yield f"threadline_request_seconds_bucket{{{labels}}} {count}"
            yield f'threadline_request_seconds_sum{{route="{route}"}} {self._sums[route]}'
            yield f'threadline_request_seconds_count{{route="{route}"}} {sum(counts)}'
