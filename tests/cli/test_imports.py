"""What commands import: a command that asks the daemon one thing must not wait for libraries."""

from __future__ import annotations

import json
import sys

import pytest

from .daemon import Daemon

NEVER = {
    *("httpx", "httpcore", "trio", "anyio", "asyncio", "hypercorn", "fastapi", "pydantic"),
    *("lmdb", "pyfuse3", "subprocess", "tempfile", "urllib.request", "bockd.drivers", "api"),
}
"""Not for anything that is asked over the daemon's socket. httpx alone brings trio and takes more
time than Python, click and the whole command together."""

REPORT = """
import json, sys
from bockd.cli.bock import main
try:
    main(sys.argv[1:], "bock")
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(daemon: Daemon, *arguments: str) -> set[str]:
    """The modules that are loaded when a command of `bock` has ended well."""
    result = daemon.run(sys.executable, "-c", REPORT, *arguments)
    assert result.status == 0, result
    return set(json.loads(result.err))


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (["volume", "show", "light"], {"rich", "bockd.cli.transfer", "bockd.cli.stat"}),
        (["volume", "show", "light", "--json"], {"rich"}),
        (["volume", "list", "--json"], {"rich"}),
        (["volume", "list"], set()),
        (["snapshot", "list"], set()),
        (["attachment", "list"], set()),
        (["server", "list"], set()),
        (["limits"], set()),
        (["info"], {"rich"}),
        (["stat", "--once", "--interval", "0.1"], set()),
    ],
)
def test_asking_the_daemon_imports_no_library_that_is_not_needed(
    daemon: Daemon, command: list[str], more: set[str]
) -> None:
    daemon.bock("volume", "create", "light", "--size", "1M")
    try:
        assert not (NEVER | more) & imported(daemon, *command)
    finally:
        daemon.bock("volume", "delete", "light")


def test_help_imports_no_library_that_is_not_needed(daemon: Daemon) -> None:
    assert not (NEVER - {"subprocess", "tempfile"} | {"rich"}) & imported(daemon, "--help")
