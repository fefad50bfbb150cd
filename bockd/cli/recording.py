"""`bock trace record`: the requests of a volume, from the daemon's ring into a file.

What has come is in the file at once: if this program or the machine dies, what is there can be
read, up to the last whole record.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final

import click

from bockd.cli.arguments import reference
from bockd.cli.client import ControlClient, connect
from bockd.cli.completion import complete_volume
from bockd.cli.convert import ENDING_SIGNALS
from bockd.cli.output import json_option, report, say
from bockd.cli.sizes import format_size, parse_size
from bockd.control import RecordingInfo
from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE
from bockd.trace.records import RECORD, Header, Kind

STANDARD_OUTPUT: Final = "-"
MAX_SIZE: Final = "1GiB"

SHORTEST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 0.5
"""Between two questions for records, whatever they bring."""
FEW_RECORDS: Final = 8 * 1024
MANY_RECORDS: Final = 32 * 1024
"""An answer with fewer makes the time to the next question twice as long, one with more half as
long: an eighth of the daemon's ring at most is wanted."""

_KIND_AT: Final = RECORD.size - 4
"""Of a record's bytes."""


def size_option(text: str) -> int:
    """Parse the size of a file. Raises click.BadParameter."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option("-o", "--output", "file", required=True, help="The trace; - is standard output.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="End by itself after so long; otherwise Ctrl-C ends it.",
)
@click.option(
    "--max-size",
    type=size_option,
    default=MAX_SIZE,
    show_default=True,
    metavar="SIZE",
    help="End when the trace is so large: 1 GiB is 26 million requests.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
def record(
    volume: str, file: str, seconds: float | None, max_size: int, force: bool, as_json: bool
) -> None:
    """Record each request that a volume is sent over NBD: what, where, when, and how long it took.

    Ctrl-C ends it, and the file is complete then. Nothing waits for the recorder: when it is too
    slow, requests are left out, and the trace says how many. No data is recorded.

    \b
    bock trace record web -o web.trace
    bock trace record web -o - --seconds 60 | bock trace report -
    """
    from bockd.cli.export import check_output, refuse_existing

    check_output(file, as_json=as_json)
    if file != STANDARD_OUTPUT:
        refuse_existing(Path(file).absolute(), force=force)
    client = connect()
    with noticing_signals() as signals:
        recording = client.begin_recording(volume)
        recorder = Recorder(client, recording, file)
        try:
            with opened(file, force=force) as output:
                recorder.run(output, signals, seconds, max_size)
        except BaseException:
            with suppress(BockdError):
                client.end_recording(recording.id)
            raise
    if file == STANDARD_OUTPUT:
        return
    lost = f", and {recorder.lost} were lost: the recorder was too slow" if recorder.lost else ""
    full = f"; it ended at {format_size(max_size)} (--max-size)" if recorder.full else ""
    report(
        {
            "volume": recording.volume.name,
            "file": str(Path(file).absolute()),
            "requests": recorder.requests,
            "lost": recorder.lost,
            "bytes": recorder.written_bytes,
        },
        f"recorded {recorder.requests} requests of {recording.volume.name} in {file}{lost}{full}",
        as_json=as_json,
    )


class Signals:
    """The signals that end the program: the first is noted, another one interrupts."""

    def __init__(self, descriptor: int) -> None:
        self.came = False
        self._descriptor = descriptor

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    def wait(self, seconds: float) -> None:
        """Return after so long, or as soon as one has come."""
        if not self.came:
            select.select([self._descriptor], [], [], max(0.0, seconds))


@contextmanager
def noticing_signals() -> Iterator[Signals]:
    """Have the signals that end the program noted, in the body."""
    noticed, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = Signals(noticed)
    before_wake = signal.set_wakeup_fd(wake)
    before = {number: signal.signal(number, signals.note) for number in ENDING_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_wake)
        os.close(noticed)
        os.close(wake)


@contextmanager
def opened(file: str, *, force: bool) -> Iterator[BinaryIO]:
    """Open the file of a trace. Raises BockdError."""
    if file == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        return
    try:
        output = open(file, "wb" if force else "xb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unwritable(file, error) from error
    with output:
        yield output


class Recorder:
    """Takes the records of one recording into a file."""

    def __init__(self, client: ControlClient, recording: RecordingInfo, name: str) -> None:
        self.requests = self.lost = self.written_bytes = 0
        self.full = False
        """Whether the file may not be larger."""
        self._client = client
        self._recording = recording
        self._output: BinaryIO = sys.stdout.buffer
        self._name = name

    def run(
        self, output: BinaryIO, signals: Signals, seconds: float | None, max_bytes: int
    ) -> None:
        """Record until a signal comes, or so long, or until the file is full; then end the
        recording. Raises BockdError, with what came before in the file."""
        self._output = output
        volume, started_at = self._recording.volume, self._recording.started_at
        self._write(Header(volume.name, volume.size_bytes, BLOCK_SIZE, started_at).pack())
        if sys.stderr.isatty():
            say(f"recording {volume.name}; Ctrl-C ends it", err=True)
        self._take_all(signals, seconds, max_bytes)
        self._add(self._client.end_recording(self._recording.id))
        self._sync()

    def _take_all(self, signals: Signals, seconds: float | None, max_bytes: int) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        pause = SHORTEST_SECONDS
        while not signals.came:
            left = pause if until is None else min(pause, until - time.monotonic())
            if left <= 0:
                return
            signals.wait(left)
            count = self._add(self._client.take_records(self._recording.id))
            if count > MANY_RECORDS:
                pause = max(SHORTEST_SECONDS, pause / 2)
            elif count < FEW_RECORDS:
                pause = min(LONGEST_SECONDS, pause * 2)
            if self.written_bytes >= max_bytes:
                self.full = True
                return

    def _add(self, content: bytes) -> int:
        """Write records, and return how many there are."""
        self._write(content)
        count = len(content) // RECORD.size
        self.requests += count
        # Only at the end of an answer there is anything but requests.
        for at in (len(content) - RECORD.size, len(content) - 2 * RECORD.size):
            if at >= 0 and content[at + _KIND_AT] >= Kind.LOST:
                self.requests -= 1
                if content[at + _KIND_AT] == Kind.LOST:
                    self.lost += RECORD.unpack_from(content, at)[2]
        return count

    def _write(self, content: bytes) -> None:
        try:
            view = memoryview(content)
            while view:
                view = view[self._output.write(view) :]
            self._output.flush()
        except BrokenPipeError as error:
            from bockd.cli.export import discard_output

            discard_output()
            raise BockdError("nobody reads standard output any more") from error
        except OSError as error:
            raise _unwritable(self._name, error) from error
        self.written_bytes += len(content)

    def _sync(self) -> None:
        if self._name == STANDARD_OUTPUT:
            return
        try:
            os.fsync(self._output.fileno())
        except OSError as error:
            raise _unwritable(self._name, error) from error


def _unwritable(name: str, error: OSError) -> BockdError:
    return BockdError(f"cannot write {name}: {error.strerror}")
