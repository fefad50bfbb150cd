"""The properties of the tests beside it, driven by coverage for as long as one likes.

python -m tests.hostile.fuzz --seconds 600                   # what `make fuzz` runs
python -m tests.hostile.fuzz --target server --seconds 600   # with sockets, and somebody innocent

Atheris makes the choices of which `sessions.py` makes a session. What was worth keeping is in
.cache/fuzz, where the next run begins. A session that breaks a property is printed, as Python.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

TREE = Path(__file__).parents[2]
sys.path.append(str(TREE / ".cache/atheris"))

import atheris  # noqa: E402 - `.setup/atheris` puts it there

with atheris.instrument_imports(include=["bockd.nbd", "bockd.server"]):
    from bockd.engine.memory import MemoryDevice
    from tests.hostile.judge import judge
    from tests.hostile.live import converse, enter, received_until
    from tests.hostile.properties import OFFLINE, protocol_holds
    from tests.hostile.sessions import Session, session
    from tests.nbd import wire
    from tests.server.serving import FixedExports, served

Property = Callable[[Session], None]


def protocol(_: ExitStack) -> Property:
    """The sans-I/O protocol."""

    def holds(session: Session) -> None:
        protocol_holds(session)

    return holds


def server(stack: ExitStack) -> Property:
    """The server, with a device in memory; after each session an innocent client is served."""
    exports = FixedExports(
        {OFFLINE.name: MemoryDevice(OFFLINE.size), "innocent": MemoryDevice(1 << 20)}
    )
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-"))) / "nbd.sock"
    stack.enter_context(served(exports, path))
    innocent = stack.enter_context(enter(path, "innocent"))
    number = 0

    def holds(session: Session) -> None:
        nonlocal number
        heard = converse(path, session.pieces())
        verdict = judge(session.sent, heard.received, OFFLINE)
        if verdict.at_a_border and not heard.reset:
            assert not verdict.truncated
            assert not verdict.unanswered
        number += 1
        data = number.to_bytes(8) * 512
        innocent.sendall(wire.write(1, 4096, data))
        received_until(innocent, 16)
        innocent.sendall(wire.request(0, 2, 4096, 4096))
        assert received_until(innocent, 16 + 4096)[16:] == data
        assert exports.open_holds <= 2

    return holds


class _Consumed:
    """Choices by the fuzzer."""

    def __init__(self, data: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(data)

    def number(self, low: int, high: int) -> int:
        chosen: int = self._provider.ConsumeIntInRange(low, high)
        return chosen

    def some(self, most: int) -> bytes:
        taken: bytes = self._provider.ConsumeBytes(self.number(0, most))
        return taken


TARGETS: dict[str, Callable[[ExitStack], Property]] = {"protocol": protocol, "server": server}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz")
    parser.add_argument("--target", choices=TARGETS, default="protocol")
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: 600)")
    given_ = parser.parse_args()
    corpus = TREE / ".cache/fuzz" / given_.target
    corpus.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        holds = TARGETS[given_.target](stack)

        def play(data: bytes) -> None:
            played = session(_Consumed(data), OFFLINE)
            try:
                holds(played)
            except BaseException:
                print(repr(played), flush=True)
                raise

        atheris.Setup(
            [
                sys.argv[0],
                str(corpus),
                f"-max_total_time={given_.seconds}",
                f"-artifact_prefix={corpus.parent}/{given_.target}-",
                "-max_len=1024",
                "-print_final_stats=1",
                "-timeout=120",
            ],
            play,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
