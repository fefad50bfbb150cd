"""api/connections.py builds on parts of Hypercorn that its documentation does not promise.

pyproject.toml admits only releases that were tested. When a newer one is to be admitted, these
tests name what has moved; tests/api/test_hostile_connections.py judges what it does.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import CodeType

import pytest
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from packaging.requirements import Requirement

from api.connections import Connection, Http1, quiet_config

PARTS = ["app", "config", "context", "task_group", "state", "ssl", "client", "server", "send"]
"""What a protocol is made from, in this order, and keeps under these names."""


def parameters(function: Callable[..., object]) -> list[str]:
    """The names of its parameters but `self`."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def used_by(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of attributes that a function's code uses."""
    code: CodeType = inspect.unwrap(function).__code__
    return code.co_names


def test_the_release_is_one_that_is_admitted_and_none_but_tested_ones_are() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    listed = [Requirement(one) for one in project["project"]["dependencies"]]
    admitted = next(one for one in listed if one.name == "hypercorn").specifier
    assert version("hypercorn") in admitted
    assert "0.19" not in admitted, "0.19 and newer were not tested with api/connections.py"


def test_objects_are_made_as_we_make_them() -> None:
    assert parameters(TCPServer) == ["app", "config", "context", "state", "stream"]
    # Given by position: its name for the state is another one.
    assert len(parameters(H11Protocol)) == len(PARTS)
    assert parameters(H11Protocol)[-4:] == PARTS[-4:]
    assert parameters(ASGIWrapper) == ["app"]
    assert ConnectionState({}) == {}
    assert parameters(WorkerContext)[:1] == ["max_requests"]
    assert RawData(b"x").data == b"x"
    assert Updated(idle=True).idle
    assert issubclass(Closed, Event)


@pytest.mark.parametrize("name", PARTS)
def test_the_protocol_that_we_replace_keeps_what_we_make_ours_from(name: str) -> None:
    assert name in used_by(ProtocolWrapper.__init__)


@pytest.mark.parametrize(
    ("ours", "base", "name", "caller"),
    [
        (Connection, TCPServer, "protocol_send", TCPServer.run),
        (Connection, TCPServer, "_read_data", TCPServer.run),
        (Connection, TCPServer, "_close", TCPServer.run),
        (Connection, TCPServer, "_close", TCPServer.protocol_send),
        (Connection, TCPServer, "_initiate_server_close", TCPServer._idle_timeout),
        (Http1, H11Protocol, "_check_protocol", H11Protocol._handle_events),
    ],
)
def test_what_we_override_is_there_and_is_called(
    ours: type, base: type, name: str, caller: Callable[..., object]
) -> None:
    theirs, our_own = vars(base)[name], vars(ours)[name]
    assert inspect.iscoroutinefunction(theirs)
    assert parameters(our_own) == parameters(theirs)
    assert name in used_by(caller)


@pytest.mark.parametrize("name", ["send_lock", "stream"])
def test_a_connection_has_what_our_send_uses(name: str) -> None:
    assert name in used_by(TCPServer.__init__)


def test_the_protocol_is_made_before_anything_is_read() -> None:
    """`Connection._read_data` puts ours in its place, which must not have seen a byte yet."""
    names = used_by(TCPServer.run)
    assert names.index("ProtocolWrapper") < names.index("_read_data")
    assert "protocol" in used_by(ProtocolWrapper.__init__)


@pytest.mark.parametrize("name", sorted(vars(quiet_config())))
def test_a_setting_that_we_make_has_a_name_that_hypercorn_knows(name: str) -> None:
    """An attribute of another name would be set all the same, and do nothing."""
    assert hasattr(Config, name.removeprefix("_")) or name in vars(Config())
