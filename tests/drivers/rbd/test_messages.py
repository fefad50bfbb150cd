"""What gateways say to each other, and what of it is passed over."""

from __future__ import annotations

import pytest

from bockd.drivers.rbd.messages import Manner, Request, answers_to_earlier_runs, decode_message
from bockd.drivers.rbd.records import Identity

IMAGE = "0123456789abcdef01234567"


@pytest.mark.parametrize("manner", Manner)
def test_a_request_is_read_as_it_was_written(manner: Manner) -> None:
    request = Request(IMAGE, manner, f"gw-1.example/{'a' * 16}/12")
    assert request.encode() == f"release {IMAGE} {manner} gw-1.example/{'a' * 16}/12"
    assert decode_message(request.encode().encode()) == request
    assert request.answers == f"answer/gw-1.example/{'a' * 16}/12/"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe",
        b"release",
        f"release {IMAGE} firmly gw/{'a' * 16}/1".encode(),
        f"release {IMAGE} firm gw/{'a' * 16}/1\n".encode(),
        f"release {IMAGE} firm gw/{'a' * 16}/1 more".encode(),
        f"release {IMAGE[1:]} firm gw/{'a' * 16}/1".encode(),
        f"keep {IMAGE} firm gw/{'a' * 16}/1".encode(),
    ],
)
def test_what_is_not_understood_is_none(message: bytes) -> None:
    assert decode_message(message) is None


def test_only_answers_to_earlier_runs_of_this_gateway_are_removed() -> None:
    earlier, now = "a" * 16, "b" * 16
    keys = [f"answer/{name}/{run}/1/x" for name in ("gw", "gw2") for run in (earlier, now)]
    assert answers_to_earlier_runs(keys, Identity("gw", now)) == [f"answer/gw/{earlier}/1/x"]
