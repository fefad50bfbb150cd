"""What the API does and costs: a small pool, short runs, real HTTP and fio."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import apicost
from bench.http import Api, answers_per_second, connections, steady
from bench.processes import BenchError, place
from bench.turns import BenchContext, Scale


def test_all_rows_on_a_small_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apicost, "VOLUMES", 20)
    monkeypatch.setattr(apicost, "REQUESTS_PER_SECOND", 20)
    scale = Scale(rounds=2, seconds=0.3, size_bytes=16 << 20, repeats=0, listed_volumes=40)
    told: list[str] = []

    section = apicost.measure_api_cost(scale, BenchContext(tmp_path, place(), told.append))

    assert [one.row for one in section.comparisons] == list(apicost.ROWS)
    for one in section.comparisons:
        assert len(one.subject_values) == len(one.foreign_shares) == 2
        assert min(one.subject_values + one.baseline_values) > 0
    targets = {one.row: str(one.target) for one in section.comparisons if one.target}
    assert targets == {
        "api-show": "≥ 1",
        "api-load-4k-randread-qd32": "≥ 0.85",
        "api-load-4k-randwrite-qd32": "≥ 0.85",
    }
    show = section.comparisons[0]
    assert set(show.baseline_values) == {500.0}


@contextmanager
def answering(*answers: bytes) -> Iterator[Api]:
    """A server that gives each connection one answer, and then is gone."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            for answer in answers:
                with listener.accept()[0] as client:
                    client.recv(65536)
                    client.sendall(answer)

    server = threading.Thread(target=serve)
    server.start()
    yield Api(listener.getsockname()[1], "tenant", "token")
    server.join()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", "answered"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without a length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "hung up"),
        (b"", "hung up"),
    ],
)
def test_an_answer_that_is_no_success_ends_the_measurement(answer: bytes, message: str) -> None:
    with answering(answer) as api, pytest.raises(BenchError, match=message):
        answers_per_second(api, "/volumes/1", 5.0, 1, None)


def test_an_answer_that_takes_longer_than_the_measurement_counts() -> None:
    """A rate of none would say that there is no answer, and a ratio to it could not be shown."""
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as api:
        assert answers_per_second(api, "/volumes/1", 0.0, 1, None) > 0


def test_a_connection_that_ends_between_two_answers_is_made_anew() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"
    with (
        answering(answer + b"a", answer + b"b") as api,
        connections(api.port, 1) as (connection,),
    ):
        for expected in (b"a", b"b"):
            connection.ask(api.get("/volumes/1"))
            while (body := connection.receive()) is None:
                pass
            assert body == expected


def measure_beside_a_broken_load(api: Api) -> None:
    with steady(api, "/volumes/1", 1000, None) as over:
        assert over.wait(30)


def test_a_load_that_the_api_does_not_carry_is_an_error() -> None:
    """The server is gone after one answer."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"
    with answering(answer) as api, pytest.raises(BenchError, match="load ended"):
        measure_beside_a_broken_load(api)
