"""Requests of one connection to a volume with a device profile (bockd.profiles).

The volume does the work at once, as it would without a profile: reads read and writes are written
and committed when they come. Only the answer is *due* later, when the profile says, or as soon as
the work is done if that takes longer. So a profile touches no data, and snapshots, flushes, fences
and drains, which wait for work, wait for no answer. A request that the profile lets fail is not
carried out, not even in part.

Reads are the exception when a connection has _WAITING_BYTES of data that waits, and those that
are too large for one reply: they are read when they are due, so that what waits takes no memory.
Many may be due together, at the end of a stall: then they are read as far as MAX_ANSWER_BYTES go,
and the next ones when those were sent.

Answers that are due go out in one call, from a task that sleeps until the first one is. They all go
out at once when nobody is to wait any more: the profile is taken away or another one is put in its
place (`release`), the client says goodbye or leaves, or the daemon closes the connection in order
(`end`). A fence needs what was sent carried out, and not answered: when as many requests are under
way as may be, as many answers go out early as it needs room for, and the others wait (`hurry`).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heapreplace
from time import perf_counter_ns
from typing import NamedTuple

import trio

from bockd.errors import BockdError
from bockd.model import DeviceOperation
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.replies import Buffer, ReplyEncoder
from bockd.nbd.protocol.transmission import Request, RequestLimits, refusal
from bockd.nbd.server import work
from bockd.nbd.server.budget import Account
from bockd.nbd.server.channel import Channel, HungUpError
from bockd.nbd.server.flight import InFlight
from bockd.nbd.server.limits import MAX_ANSWER_BYTES, MAX_INLINE_READ_BYTES, PEER_LOOK_SECONDS
from bockd.nbd.server.statistics import ExportStatistics
from bockd.pool.device import BlockDevice
from bockd.profiles.device import Plan, ProfiledDevice
from bockd.runtime.alarm import Alarm
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Step, Steps
from bockd.throttle.gates import Gate

_AT_ONCE = 0
"""A time that has passed."""

AHEAD_NS = 80_000
"""How much earlier an answer is sent than it is due: what its way to the client takes, and that of
its request to here, which the client counts, too. Measured: a read that nothing delays takes 90 us
through a socket on the same machine where a task of the loop answers it."""

_WAITING_BYTES = MAX_ANSWER_BYTES - MAX_INLINE_READ_BYTES
"""Data of reads that are done before they are due: beside it a read that is due has room."""

_NOTHING = memoryview(b"")


class ProfileError(BockdError):
    """The device profile of the volume lets the request fail. It was not carried out."""

    code = "profile"

    def __init__(self, profile: str, name: str) -> None:
        super().__init__(f"the device profile {profile!r} lets it fail ({name})")
        self.errno = getattr(errno, name)  # type: ignore[misc]


class _Answer(NamedTuple):
    """A reply that waits, or a read that is done when it is due. They sort by when that is, and
    then as they came."""

    due_ns: int
    number: int
    request: Request
    started: int
    reply: Buffer | None
    data_bytes: int
    """Of a read that was done: what it has taken of MAX_ANSWER_BYTES."""


def operation_of(request: Request) -> DeviceOperation | None:
    """Return what a device sees of a request; None if it is a hint or a question."""
    flags, command = request[0], request[1]
    if command == nbd.CMD_WRITE_ZEROES:
        no_hole = flags & nbd.CMD_FLAG_NO_HOLE
        return DeviceOperation.WRITE if no_hole else DeviceOperation.TRIM
    return _OPERATIONS.get(command)


_OPERATIONS = {
    nbd.CMD_READ: DeviceOperation.READ,
    nbd.CMD_WRITE: DeviceOperation.WRITE,
    nbd.CMD_TRIM: DeviceOperation.TRIM,
    nbd.CMD_FLUSH: DeviceOperation.FLUSH,
}


class Delaying:
    """See the module's docstring."""

    nursery: trio.Nursery

    def __init__(
        self,
        device: BlockDevice,
        encoder: ReplyEncoder,
        judged_by: RequestLimits,
        statistics: ExportStatistics,
        channel: Channel,
        account: Account,
        runner: StepRunner,
        flight: InFlight,
        gate: Gate,
        read_large: Callable[[Request, int], object],
        forcing: Callable[[], bool],
    ) -> None:
        """`read_large` begins to answer a large read. While `forcing` returns True somebody needs
        carried out what was sent."""
        self._device = device
        self._encoder = encoder
        self._judged_by = judged_by
        self._statistics = statistics
        self._channel = channel
        self._account = account
        self._runner = runner
        self._flight = flight
        self._gate = gate
        self._read_large = read_large
        self._forcing = forcing
        self._answers: list[_Answer] = []
        """A heap."""
        self._late: deque[_Answer] = deque()
        """Reads that are due and were not begun: there was no room for their data."""
        self._number = 0
        self._held_bytes = 0
        """Data of reads that have begun and whose answers were not sent. What other answers take is
        in limits.TASK_BYTES."""
        self._sending = False
        """Whether there is a task."""
        self._ended = False
        """Whether no answer waits any more."""
        self._needs_room = False
        """Whether a request waits until fewer are under way."""
        self._alarm: Alarm | None = None

    # -- requests ----------------------------------------------------------------------------------

    def takes(self, request: Request) -> bool:
        """Return whether a request is served here: what a device sees, and is not refused."""
        if operation_of(request) is None or refusal(
            request, self._judged_by, self._device.size_bytes
        ):
            return False
        flags, command, _, _, length, _ = request
        if command == nbd.CMD_READ and length > MAX_INLINE_READ_BYTES:
            return not flags & nbd.CMD_FLAG_DF
        return length > 0 or command == nbd.CMD_FLUSH

    def plan_large(self, request: Request) -> Plan | None:
        """Return what becomes of a large write; None if the volume has no profile."""
        device = self._gate.device
        return None if device is None else self._plan(device, request)

    def _plan(self, device: ProfiledDevice, request: Request) -> Plan:
        flags, command, _, offset, length, _ = request
        operation = operation_of(request)
        assert operation is not None
        return device.plan(
            operation,
            offset,
            length,
            fua=bool(flags & nbd.CMD_FLAG_FUA) and command != nbd.CMD_READ,
            size_bytes=self._device.size_bytes,
            now=self._gate.clock(),
        )

    def serve(
        self, device: ProfiledDevice, request: Request, started: int, received: memoryview
    ) -> None:
        """Begin a request that `takes` has said to be one. Its payload is in `received`."""
        plan = self._plan(device, request)
        self._flight.requests += 1
        if plan.error is not None:
            self._count(request)
            self._put(plan, request, started, self.failure(request, plan.error))
        elif request[1] == nbd.CMD_READ and request[4] > self._holdable_bytes():
            self._put(plan, request, started, None)
        else:
            self._begin(plan, request, started, received)

    def _holdable_bytes(self) -> int:
        """The longest read that may be done before it is due."""
        return min(MAX_INLINE_READ_BYTES, _WAITING_BYTES - self._held_bytes)

    async def room(self, max_requests: int) -> None:
        """Wait until fewer requests are under way; not for the time of an answer if somebody needs
        what was sent carried out. Raises HungUpError when the client has left meanwhile: a device
        may be stuck for long."""
        while self._flight.requests >= max_requests:
            if self._forcing():
                self._answer_next()
            with trio.move_on_after(PEER_LOOK_SECONDS) as scope:
                self._needs_room = True
                try:
                    await self._flight.wait_below(max_requests)
                finally:
                    self._needs_room = False
            # Once the daemon has ended the receiving it looks as if the client had.
            if scope.cancelled_caught and not self._forcing() and self._channel.peer_left():
                raise HungUpError("the client left while its answers waited for their time")
        await self._account.repay()

    def failure(self, request: Request, error: str) -> bytes:
        """Count a request that the profile lets fail. Return the answer to it."""
        device = self._gate.device
        failed = ProfileError("" if device is None else device.profile.name, error)
        return work.failed(self._encoder, self._statistics, [request], failed)

    def _count(self, request: Request) -> None:
        statistics, command = self._statistics, request[1]
        if command == nbd.CMD_FLUSH:
            statistics.flushes += 1
        elif command in (nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
            statistics.trims += 1
        elif command == nbd.CMD_WRITE:
            statistics.writes += 1
            statistics.written_bytes += request[4]
        else:
            statistics.reads += 1
            statistics.read_bytes += request[4]

    def _begin(self, plan: Plan, request: Request, started: int, received: memoryview) -> None:
        """Have the volume do the work: here, or in a task if it has to wait."""
        self._count(request)
        data_bytes = request[4] if request[1] == nbd.CMD_READ else 0
        self._held_bytes += data_bytes
        try:
            reply = self._done_at_once(request, received)
        except Exception as error:  # noqa: BLE001 - becomes the request's answer
            reply = self._failed(request, error)
        if reply is not None:
            self._put(plan, request, started, reply, data_bytes)
            return
        steps = self._steps(request, received)
        try:
            step = steps.send(None)
        except StopIteration as done:
            self._put(plan, request, started, done.value, data_bytes)
        except Exception as error:  # noqa: BLE001 - becomes the request's answer
            self._put(plan, request, started, self._failed(request, error), data_bytes)
        else:
            change = self._flight.begin_change() if request[1] in work.CHANGES else None
            self.nursery.start_soon(self._finish, plan, request, started, steps, step, change)

    def _done_at_once(self, request: Request, received: memoryview) -> Buffer | None:
        """Do what the volume can do without waiting, and return the reply."""
        flags, command, _, offset, length, body = request
        if command == nbd.CMD_READ:
            header = self._encoder.data_header_bytes
            reply = memoryview(bytearray(header + length))
            if not self._device.try_read(offset, reply[header:]):
                return None
            self._encoder.pack_read(reply, 0, request)
            return reply
        if command == nbd.CMD_WRITE and not flags & nbd.CMD_FLAG_FUA:
            if not self._device.try_write(offset, received[body : body + length]):
                return None
            self._device.commit()
            return self._encoder.done(request)
        return None

    def _steps(self, request: Request, received: memoryview) -> Steps[Buffer]:
        command, length, body = request[1], request[4], request[5]
        if command == nbd.CMD_READ:
            return work.read(self._device, self._encoder, request)
        if command == nbd.CMD_WRITE:
            payload = bytes(received[body : body + length])
            return work.write(self._device, self._encoder, request, payload)
        if command == nbd.CMD_FLUSH:
            return work.flush(self._device, self._encoder, [request])
        return work.change(self._device, self._encoder, request)

    async def _finish(
        self,
        plan: Plan,
        request: Request,
        started: int,
        steps: Steps[Buffer],
        step: Step,
        change: int | None,
    ) -> None:
        charged = request[4] if request[1] == nbd.CMD_WRITE else 0
        data_bytes = request[4] if request[1] == nbd.CMD_READ else 0
        self._account.charge(charged)
        try:
            reply = await self._runner.finish(steps, step)
        except Exception as error:  # noqa: BLE001 - becomes the request's answer
            reply = self._failed(request, error)
        finally:
            self._account.discharge(charged)
            if change is not None:
                self._flight.end_change(change)
        self._put(plan, request, started, reply, data_bytes)

    def _failed(self, request: Request, error: Exception) -> bytes:
        """Return the answer to a request that the volume could not do. Raises VolumeTakenError,
        which ends the connection."""
        return work.failed(self._encoder, self._statistics, [request], error)

    # -- answers -----------------------------------------------------------------------------------

    def answer_large(self, plan: Plan, request: Request, started: int, reply: bytes) -> None:
        """Have the answer to a large write go out when it is due."""
        self._flight.requests += 1
        self._put(plan, request, started, reply)

    def _put(
        self,
        plan: Plan,
        request: Request,
        started: int,
        reply: Buffer | None,
        data_bytes: int = 0,
    ) -> None:
        """Have an answer go out when it is due. Its `data_bytes` are in `_held_bytes`."""
        # The device may be another one since the work has begun.
        waits = plan.device is self._gate.device and not self._ended
        due = plan.due_ns - AHEAD_NS if waits else _AT_ONCE
        self._number += 1
        put = _Answer(due, self._number, request, started, reply, data_bytes)
        heappush(self._answers, put)
        if not self._sending:
            self._sending = True
            self._gate.on_other_device[self] = self.release
            self.nursery.start_soon(self._send_all)
        elif self._answers[0] is put and self._alarm is not None:
            self._alarm.move_to(due)

    def release(self) -> None:
        """Have all answers that wait go out at once."""
        # A sorted list is a heap, too.
        self._answers = [one._replace(due_ns=_AT_ONCE) for one in sorted(self._answers)]
        if self._answers and self._alarm is not None:
            self._alarm.move_to(_AT_ONCE)

    def end(self) -> None:
        """Have no answer wait from now on."""
        self._ended = True
        self.release()

    def hurry(self) -> None:
        """Note that somebody needs what was sent carried out, from now on (`forcing`)."""
        if self._needs_room:
            self._answer_next()

    def _answer_next(self) -> None:
        """Have the answer go out at once that is due next. Without one all that is under way is
        work, which ends by itself."""
        if self._answers:
            heapreplace(self._answers, self._answers[0]._replace(due_ns=_AT_ONCE))
            if self._alarm is not None:
                self._alarm.move_to(_AT_ONCE)

    async def _send_all(self) -> None:
        """Send answers as they are due, until none waits. Late reads may be left: what has taken
        their room is under way, and its answer comes here."""
        self._alarm = Alarm()
        try:
            while self._answers:
                await self._send_due()
        except BaseException:
            self._gone([*self._answers, *self._late])
            self._answers.clear()
            self._late.clear()
            raise
        finally:
            del self._gate.on_other_device[self]
            self._alarm.close()
            self._alarm, self._sending = None, False

    async def _send_due(self) -> None:
        """Wait until an answer is due, and send all that are; of reads that are done only now, as
        many as there is room for begin."""
        assert self._alarm is not None
        if self._answers[0].due_ns > self._gate.clock():
            await self._alarm.wait_until(self._answers[0].due_ns)
        else:
            await trio.lowlevel.checkpoint()  # a megabyte may have been sent since the last one
        due = self._take_due()
        ended = perf_counter_ns()
        try:
            for one in due:
                self._statistics.answered([one.request], one.started, ended)
            if due:
                await self._channel.send(*(one.reply for one in due if one.reply is not None))
        except HungUpError:
            pass  # the loop finds out by itself
        finally:
            self._gone(due)
        self._read_late()

    def _take_due(self) -> list[_Answer]:
        """Return the answers that are due and complete. Large reads that are due begin, others are
        late."""
        now, due = self._gate.clock(), []
        while self._answers and self._answers[0].due_ns <= now:
            one = heappop(self._answers)
            if one.reply is not None:
                due.append(one)
            elif one.request[4] > MAX_INLINE_READ_BYTES:
                self._read_large(one.request, one.started)
            else:
                self._late.append(one)
        return due

    def _read_late(self) -> None:
        """Begin the reads that are late, as far as there is room for their data."""
        while self._late and self._held_bytes + self._late[0].request[4] <= MAX_ANSWER_BYTES:
            one = self._late.popleft()
            self._begin(Plan(_AT_ONCE, None, None), one.request, one.started, _NOTHING)

    def _gone(self, answers: Sequence[_Answer]) -> None:
        """Forget answers that were sent, or never will be."""
        self._held_bytes -= sum(one.data_bytes for one in answers)
        self._flight.done(len(answers))
