"""The properties of the tests beside it, driven by coverage for as long as one likes.

python -m tests.hostile.fuzz --seconds 600                   # what `make fuzz` runs
python -m tests.hostile.fuzz --target server --seconds 600   # with sockets, and somebody innocent
python -m tests.hostile.fuzz --target tls --seconds 600      # the same through TLS, tampered with
python -m tests.hostile.fuzz --target lane --seconds 600     # the compiled lane beside Python's

Atheris makes the choices of which `sessions.py` and `tampering.py` make a session. What was worth
keeping is in .cache/fuzz, where the next run begins. A session that breaks a property is printed.

The lane is C, which Atheris does not see: it is guided by what Python does with the same bytes.
`make sanitize` runs that target with a lane that notices each byte it should not have touched.
"""

from __future__ import annotations

import argparse
import random
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TREE = Path(__file__).parents[2]
sys.path.append(str(TREE / ".cache/atheris"))

import atheris  # noqa: E402 - `.setup/atheris` puts it there
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

with atheris.instrument_imports(include=["bockd.nbd"]):
    from bockd.drivers.memory.device import MemoryDevice
    from bockd.model import TlsMode
    from bockd.nbd.server.tls import NO_TLS, FrontendTls
    from tests.hostile.judge import judge
    from tests.hostile.live import converse, enter, received_until
    from tests.hostile.properties import OFFLINE, protocol_holds
    from tests.hostile.sessions import Chooser, session
    from tests.hostile.tampering import WRITES, attack, carry_out
    from tests.nbd.protocol import wire
    from tests.nbd.server.lanes import STYLES, same_replies, streams
    from tests.nbd.server.serving import FixedExports, served
    from tests.nbd.server.sides import Line, Side, two_sides
    from tests.tls.conftest import make_pki
    from tests.tls.served import client_context

MOST_BYTES = 1024
"""Of choices, for one session."""

Play = Callable[[bytes], object]
"""Hold the session that some bytes choose. What it was is printed when a property breaks."""


def chosen(play: Callable[[Chooser], None]) -> Play:
    """Give a session's choices to the fuzzer."""
    return lambda data: play(_Consumed(data))


@contextmanager
def shown(session: object) -> Iterator[None]:
    """Print it if it breaks a property."""
    try:
        yield
    except BaseException:
        print(repr(session), flush=True)
        raise


def protocol(_: ExitStack) -> Play:
    """The sans-I/O protocol."""

    @chosen
    def play(choose: Chooser) -> None:
        made = session(choose, OFFLINE)
        with shown(made):
            protocol_holds(made)

    return play


class Server:
    """The server, with devices in memory; after each session an innocent client is served."""

    def __init__(self, stack: ExitStack, directory: Path, tls: FrontendTls = NO_TLS) -> None:
        devices = {OFFLINE.name: MemoryDevice(OFFLINE.size), "innocent": MemoryDevice(1 << 20)}
        self.exports = FixedExports(dict(devices))
        self.path = directory / "nbd.sock"
        stack.enter_context(served(self.exports, self.path, tls=tls))
        self._innocent = stack.enter_context(enter(self.path, "innocent"))
        self.number = 0

    def serves_the_innocent(self) -> None:
        self.number += 1
        data = self.number.to_bytes(8) * 512
        self._innocent.sendall(wire.write(1, 4096, data))
        received_until(self._innocent, 16)
        self._innocent.sendall(wire.request(0, 2, 4096, 4096))
        assert received_until(self._innocent, 16 + 4096)[16:] == data
        assert self.exports.open_holds <= 2


def _directory(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))


def server(stack: ExitStack) -> Play:
    """Sessions with the server."""
    running = Server(stack, _directory(stack))

    @chosen
    def play(choose: Chooser) -> None:
        made = session(choose, OFFLINE)
        with shown(made):
            heard = converse(running.path, made.pieces())
            verdict = judge(made.sent, heard.received, OFFLINE)
            if verdict.at_a_border and not heard.reset:
                assert not verdict.truncated
                assert not verdict.unanswered
            running.serves_the_innocent()

    return play


def tls(stack: ExitStack) -> Play:
    """Sessions through TLS, tampered with."""
    directory = _directory(stack)
    pki = make_pki(directory / "pki")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.server.certificate, pki.server.key)
    running = Server(stack, directory, FrontendTls(TlsMode.ON, lambda: context))
    client = client_context(pki.client)

    @chosen
    def play(choose: Chooser) -> None:
        made = attack(choose)
        with shown(made):
            outcome = carry_out(running.path, client, OFFLINE.name, made, running.number)
            assert outcome.acknowledged <= outcome.sound
            assert outcome.acknowledged == WRITES or not outcome.untouched
            running.serves_the_innocent()

    return play


Edits = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=8)
"""Bytes of a stream that become others: how far from its beginning, and which."""


def lane(stack: ExitStack) -> Play:
    """One stream through the compiled lane and through Python's: whole requests, which must have
    the same effect, and the same stream damaged, whose requests may concern each other."""
    variants = []
    for structured, extended in STYLES:
        for send_buffer_bytes in (20_000, 4 << 20):
            sides = stack.enter_context(two_sides(structured=structured, extended=extended))
            line = Line(send_buffer_bytes)
            stack.callback(line.close)
            variants.append((*sides, line))

    @given(st.sampled_from(variants).flatmap(_with_stream), Edits)
    def play(found: tuple[Side, Side, Line, bytes], edits: list[tuple[int, int]]) -> None:
        with_it, without, line, stream = found
        damaged = bytearray(stream)
        for place, byte in edits:
            if place < len(damaged):
                damaged[place] = byte
        with shown((with_it.extended, bytes(damaged))):
            same_replies(with_it, without, bytes(damaged), line, data=damaged == stream)

    one: Play = play.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    return one


def _with_stream(variant: tuple[Side, Side, Line]) -> st.SearchStrategy[object]:
    return streams(variant[0].extended).map(lambda stream: (*variant, stream))


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


TARGETS: dict[str, Callable[[ExitStack], Play]] = {
    "protocol": protocol,
    "server": server,
    "tls": tls,
    "lane": lane,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz")
    parser.add_argument("--target", choices=TARGETS, default="protocol")
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: 600)")
    given_ = parser.parse_args()
    corpus = TREE / ".cache/fuzz" / given_.target
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):  # short ones choose nothing whole, and it would begin with one
        (corpus / "first").write_bytes(random.Random(0).randbytes(MOST_BYTES))
    with ExitStack() as stack:
        play = TARGETS[given_.target](stack)

        atheris.Setup(
            [
                sys.argv[0],
                str(corpus),
                f"-max_total_time={given_.seconds}",
                f"-artifact_prefix={corpus.parent}/{given_.target}-",
                f"-max_len={MOST_BYTES}",
                "-print_final_stats=1",
                "-timeout=120",
                "-detect_leaks=0",  # Python's own would end a run with sanitizers at once
            ],
            play,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
