"""What is asked of the HTTP APIs, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import perf_counter

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS_SECONDS = (0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 16.0)
"""Of the histogram. An operation may wait for a snapshot, or for another service."""

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Any other one is counted as "other": a client may make up as many as it likes."""


class _Api:
    """What was counted of one."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        """By method and status."""
        self.under_way = 0
        self.buckets = [0] * (len(BOUNDS_SECONDS) + 1)
        """Not summed up; the last is of those that took longer."""
        self.seconds = 0.0

    def add(self, method: str, status: int, seconds: float) -> None:
        self.answers[method if method in METHODS else "other", status] += 1
        self.seconds += seconds
        place = sum(seconds > bound for bound in BOUNDS_SECONDS)
        self.buckets[place] += 1


class Requests:
    """Counts the requests to some applications."""

    def __init__(self) -> None:
        self._apis: dict[str, _Api] = {}

    def counted(self, api: str, app: ASGIApp) -> ASGIApp:
        """Return an application that does what `app` does, and whose requests are counted under the
        name of an API."""
        counts = self._apis.setdefault(api, _Api())

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 0

            async def note(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            begun = perf_counter()
            counts.under_way += 1
            try:
                await app(scope, receive, note)
            finally:
                counts.under_way -= 1
                if status:  # else the client has gone
                    counts.add(scope["method"], status, perf_counter() - begun)

        return counting

    def families(self) -> Iterator[Metric]:
        """Yield what was counted until now."""
        requests = CounterMetricFamily(
            "bockd_api_requests",
            "Requests to the HTTP APIs that were answered.",
            labels=["api", "method", "code"],
        )
        under_way = GaugeMetricFamily(
            "bockd_api_requests_under_way",
            "Requests to the HTTP APIs that are not answered yet.",
            labels=["api"],
        )
        seconds = HistogramMetricFamily(
            "bockd_api_request_seconds",
            "How long requests to the HTTP APIs took until all of the answer was taken.",
            labels=["api"],
        )
        for name, api in self._apis.items():
            for (method, status), count in sorted(api.answers.items()):
                requests.add_metric([name, method, str(status)], count)
            under_way.add_metric([name], api.under_way)
            bounds = [*map(str, BOUNDS_SECONDS), "+Inf"]
            counts = [sum(api.buckets[: place + 1]) for place in range(len(bounds))]
            seconds.add_metric([name], list(zip(bounds, counts, strict=True)), api.seconds)
        yield from (requests, under_way, seconds)
