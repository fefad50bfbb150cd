"""What those who watch a daemon are answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import trio
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from api.metrics import app as watched_app
from api.metrics.app import MetricsApp
from api.metrics.exposition import PIECE_SAMPLES, expose
from tests.api.appserver import serving_app


def gauge(value: float, samples: int = 1) -> Metric:
    found = GaugeMetricFamily("a_gauge", "It has\n\\ in it.", labels=["name"])
    for number in range(samples):
        found.add_metric([f'{number} "\n\\'], value)
    return found


class Watch:
    """What is watched."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.scrapes = 0

    async def families(self) -> list[Metric]:
        self.scrapes += 1
        return [gauge(self.scrapes)]

    async def trouble(self) -> str | None:
        return self.reason


@contextmanager
def asking(watch: Watch) -> Iterator[httpx.Client]:
    with (
        serving_app(MetricsApp(watch)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


def test_the_three_paths() -> None:
    watch = Watch()
    with asking(watch) as client:
        assert (client.get("/healthz").status_code, client.get("/healthz").text) == (200, "alive\n")
        ready = client.get("/readyz")
        assert (ready.status_code, ready.text) == (200, "ready\n")
        found = client.get("/metrics")
        assert found.status_code == 200
        assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert found.content == generate_latest(Families([gauge(1)]))
        watch.reason = "the disk does not answer"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "the disk does not answer\n")
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_but_reading(method: str) -> None:
    with asking(Watch()) as client:
        for path in ("/metrics", "/healthz", "/readyz"):
            refused = client.request(method, path)
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_head_has_no_body() -> None:
    with asking(Watch()) as client:
        head = client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metric", "/control/v1/info", "/v2.0/tokens"])
def test_there_is_nothing_else(path: str) -> None:
    with asking(Watch()) as client:
        refused = client.get(path)
        assert refused.status_code == 404
        assert refused.text == "here are /healthz, /metrics, /readyz\n"


def test_who_asks_all_the_time_is_told_the_same_for_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch()
    monkeypatch.setattr(watched_app, "FRESH_SECONDS", 1e9)
    with asking(watch) as client:
        assert len({client.get("/metrics").text for _ in range(20)}) == 1
        assert watch.scrapes == 1
        monkeypatch.setattr(watched_app, "FRESH_SECONDS", 0.0)
        assert len({client.get("/metrics").text for _ in range(3)}) == 3


class Families(Collector):
    """For Prometheus's own writer."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def test_pieces_are_the_text_of_the_whole_and_the_loop_turns_between_them() -> None:
    histogram = HistogramMetricFamily("a_histogram", "How long.", labels=["which"])
    for number in range(3 * PIECE_SAMPLES):
        histogram.add_metric([str(number)], [("1.0", 1), ("+Inf", 2)], 3.5)
    families = [gauge(1, PIECE_SAMPLES), gauge(2, PIECE_SAMPLES + 1), gauge(3), histogram]
    turns = 0

    async def main() -> bytes:
        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn)
            text = await expose(families)
            nursery.cancel_scope.cancel()
        return text

    assert trio.run(main) == generate_latest(Families(families))
    assert turns >= sum(len(family.samples) // PIECE_SAMPLES for family in families)
