"""Requests to the APIs are counted, with few labels whatever clients send."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.core import Metric
from starlette.types import Receive, Scope, Send

from api.metrics import counting
from api.metrics.counting import BOUNDS_SECONDS, Requests
from tests.api.appserver import serving_app


async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer with the status that the path says."""
    status = int(scope["path"].removeprefix("/"))
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def samples(requests: Requests) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in requests.families()
        for sample in family.samples
    }


def test_requests_are_counted_by_method_and_status() -> None:
    requests = Requests()
    with (
        serving_app(requests.counted("mine", answer)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        for path in ("/200", "/200", "/404"):
            client.get(path)
        client.post("/201")
        for number in range(5):
            client.request(f"MADEUP{number}", "/405")
    found = samples(requests)
    name = "bockd_api_requests_total"
    assert {key[1:]: value for key, value in found.items() if key[0] == name} == {
        ("mine", "GET", "200"): 2,
        ("mine", "GET", "404"): 1,
        ("mine", "POST", "201"): 1,
        ("mine", "other", "405"): 5,
    }
    assert found["bockd_api_requests_under_way", "mine"] == 0
    assert found["bockd_api_request_seconds_count", "mine"] == 9
    assert found["bockd_api_request_seconds_bucket", "mine", "+Inf"] == 9
    assert found["bockd_api_request_seconds_sum", "mine"] > 0


@pytest.mark.parametrize("seconds", [0.0005, 0.001, 0.01, 1.0, 15.9, 16.0, 100.0])
def test_each_duration_is_below_the_bounds_that_it_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    clock = iter([0.0, seconds])
    monkeypatch.setattr(counting, "perf_counter", lambda: next(clock))
    requests = Requests()
    with serving_app(requests.counted("mine", answer)) as port:
        httpx.get(f"http://127.0.0.1:{port}/200")
    (histogram,) = [one for one in requests.families() if one.type == "histogram"]
    assert buckets(histogram) == [seconds <= bound for bound in BOUNDS_SECONDS] + [True]


def buckets(histogram: Metric) -> list[bool]:
    """Whether each holds the one request that there was."""
    return [bool(one.value) for one in histogram.samples if one.name.endswith("_bucket")]
