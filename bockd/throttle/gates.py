"""What the frontends ask before they serve a request: the *gate* of its volume.

A gate has the throttle of its volume and that of the volume's tenant, which all volumes of the
tenant share; a request passes one after the other. Behind them is the device that a volume's
profile makes of it (bockd.profiles), if it has one: that says when a request may be answered. A
gate of a volume with neither says so (`limited`), and then nothing else is asked.

`Gates` keeps them for the daemon. It is told where the limits stand (`look_up`), and wakes those
who wait (`run`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from bockd.model import NO_IO_LIMITS, DeviceOperation, DeviceProfile, IoLimits, VolumeId
from bockd.profiles.device import Plan, ProfiledDevice
from bockd.throttle.held import Held
from bockd.throttle.throttle import Clock, Throttle, Waiter

_PAUSE_NS = 1_000_000
"""Between two looks at who may pass. What comes in it is kept, so nobody gets less; a limit of
20,000 operations a second costs 1,000 looks and not 20,000."""

_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Applied:
    """The limits that hold for a volume."""

    limits: IoLimits = NO_IO_LIMITS
    tenant: str | None = None
    """An id; None: the volume belongs to nobody."""
    tenant_limits: IoLimits = NO_IO_LIMITS
    """Of all volumes of the tenant together."""
    profile: DeviceProfile | None = None


class Waiting:
    """A request that waits at a gate."""

    __slots__ = (
        *("_gate", "_granted", "_held", "_reads", "_since", "_throttle", "_waiter"),
        "length_bytes",
    )

    def __init__(
        self, gate: Gate, reads: bool, length_bytes: int, granted: Callable[[], None]
    ) -> None:
        self._gate = gate
        self._reads = reads
        self.length_bytes = length_bytes
        self._granted = granted
        self._throttle: Throttle
        self._waiter: Waiter
        self._held: Held | None = None
        """Where it counts while it waits."""
        self._since = 0

    def wait_at(self, throttle: Throttle) -> None:
        """Wait at one of the gate's throttles; the volume's comes first."""
        gate, self._throttle = self._gate, throttle
        of_volume = throttle is gate.throttle
        self._held, self._since = gate.held if of_volume else gate.held_by_tenant, gate.clock()
        self._held.begin(self._since)
        done = self._onward if of_volume else self._pass
        self._waiter = throttle.wait(gate, self._reads, self.length_bytes, done)

    def _ended(self) -> None:
        """Count a wait that is over; once, whoever says so."""
        held, self._held = self._held, None
        if held is not None:
            held.end(self._since, self._gate.clock())

    def _pass(self) -> None:
        self._ended()
        self._granted()

    def _onward(self) -> None:
        self._ended()
        tenant = self._gate.tenant
        if tenant is None or tenant.passes(self._gate, self._reads, self.length_bytes):
            self._granted()
        else:
            self.wait_at(tenant)

    @staticmethod
    def drop(given_up: Iterable[Waiting]) -> None:
        """Have requests wait no more that are given up. Those that wait at one throttle leave it
        together: none of them passes because another one has gone."""
        leaving: dict[Throttle, list[Waiter]] = {}
        for waiting in given_up:
            waiting._ended()
            leaving.setdefault(waiting._throttle, []).append(waiting._waiter)
        for throttle, waiters in leaving.items():
            throttle.drop(waiters)

    def force(self) -> None:
        """Wait no more: the request passes, and those behind it pay."""
        self._ended()
        self._throttle.force(self._waiter)
        tenant = self._gate.tenant
        if tenant is not None and self._throttle is self._gate.throttle:
            tenant.charge(self._reads, self.length_bytes)


class Gate:
    """See the module's docstring."""

    def __init__(self, throttle: Throttle, clock: Clock, held: Held, by_tenant: Held) -> None:
        """`held` and `by_tenant` are those of all gates together."""
        self.throttle = throttle
        """The volume's own."""
        self.held = Held(held)
        """What has waited for the volume's own limits."""
        self.held_by_tenant = Held(by_tenant)
        """What has waited for those of its tenant."""
        self.tenant: Throttle | None = None
        self.device: ProfiledDevice | None = None
        """What the volume is made to look like."""
        self.limited = False
        """Whether requests have to be asked for here. May change at any time."""
        self.clock = clock
        self.on_other_device: dict[object, Callable[[], None]] = {}
        """Called when the device is another one, or none any more: by whoever has answers of the
        old one that wait."""

    def configured(self) -> None:
        """Note that the limits of a throttle, the tenant's throttle, or the device have changed."""
        tenant = self.tenant
        self.limited = (
            self.throttle.limited
            or (tenant is not None and tenant.limited)
            or self.device is not None
        )

    def profile(self, profile: DeviceProfile | None) -> None:
        """Put a profile in place. One that is there already goes on as it is."""
        old = None if self.device is None else self.device.profile
        if profile == old:
            return
        self.device = None if profile is None else ProfiledDevice(profile, self.clock())
        self.configured()
        for changed in list(self.on_other_device.values()):
            changed()

    def plan(
        self,
        operation: DeviceOperation,
        offset: int,
        length: int,
        size_bytes: int,
        *,
        fua: bool = False,
    ) -> Plan | None:
        """Return what becomes of a request that may pass; None if the volume has no profile."""
        if self.device is None:
            return None
        now = self.clock()
        return self.device.plan(operation, offset, length, fua=fua, size_bytes=size_bytes, now=now)

    async def due(self, plan: Plan) -> None:
        """Wait until a request may be answered, as `trio.sleep` does: up to 1 ms longer. Not if the
        profile is taken away, or was."""
        if plan.device is not self.device:
            return
        changed = trio.Event()
        self.on_other_device[changed] = changed.set
        try:
            with trio.CancelScope(deadline=plan.due_ns / _SECOND_NS):
                await changed.wait()
        finally:
            del self.on_other_device[changed]

    def ask(self, *, reads: bool, length_bytes: int, granted: Callable[[], None]) -> Waiting | None:
        """Return None if a request may pass now, and has paid. Otherwise `granted` will be called
        when it has, unless the result is forced or dropped before."""
        if not self.throttle.passes(self, reads, length_bytes):
            waiting = Waiting(self, reads, length_bytes, granted)
            waiting.wait_at(self.throttle)
            return waiting
        if self.tenant is None or self.tenant.passes(self, reads, length_bytes):
            return None
        waiting = Waiting(self, reads, length_bytes, granted)
        waiting.wait_at(self.tenant)
        return waiting

    def charge(self, *, reads: bool, length_bytes: int) -> None:
        """Have a request pay that passes in any case."""
        self.throttle.charge(reads, length_bytes)
        if self.tenant is not None:
            self.tenant.charge(reads, length_bytes)

    async def passed(self, *, reads: bool, length_bytes: int) -> None:
        """Wait until a request may pass."""
        event = trio.Event()
        waiting = self.ask(reads=reads, length_bytes=length_bytes, granted=event.set)
        if waiting is None:
            return
        try:
            await event.wait()
        except trio.Cancelled:
            Waiting.drop((waiting,))
            raise

    async def solvent(self, waits: Callable[[], bool]) -> None:
        """Wait until what requests owe that did not wait has been paid, or until `waits` returns
        False. It is asked within a second, again and again, and so is whether limits are lifted."""
        while self.limited:
            at = self.throttle.solvent_at()
            if self.tenant is not None:
                at = max(at, self.tenant.solvent_at())
            missing_ns = at - self.clock()
            if missing_ns <= 0 or not waits():
                return
            await trio.sleep(min(missing_ns, _SECOND_NS) / _SECOND_NS)


def loop_time() -> int:
    """Return the event loop's time in nanoseconds."""
    return int(trio.current_time() * _SECOND_NS)


def _no_limits(_: VolumeId) -> Applied:
    return Applied()


class Gates:
    """The gates of all volumes that were used, and the tenants' throttles."""

    def __init__(self, clock: Clock = loop_time) -> None:
        self.look_up: Callable[[VolumeId], Applied] = _no_limits
        """Raises nothing. The daemon puts its own here, before anything is served."""
        self.clock = clock
        self.held = Held()
        """What has waited at the gates that there are, and were, for limits of volumes."""
        self.held_by_tenants = Held()
        self.open = self._new_gate()
        """For what has no limits ever: snapshots."""
        self._gates: dict[VolumeId, Gate] = {}
        self._tenants: dict[str, Throttle] = {}
        self._due: dict[Throttle, int] = {}
        self._sooner = trio.Event()
        self._looked_at = 0

    def __iter__(self) -> Iterator[VolumeId]:
        return iter(list(self._gates))

    def _new_gate(self) -> Gate:
        throttle = Throttle(self.clock, self._wake_at)
        return Gate(throttle, self.clock, self.held, self.held_by_tenants)

    def find(self, volume: VolumeId) -> Gate | None:
        """Return the gate of a volume as it is; None if the volume was not used."""
        return self._gates.get(volume)

    def gate(self, volume: VolumeId) -> Gate:
        """Return the gate of a volume, with the limits that hold now."""
        if volume not in self._gates:
            self._gates[volume] = self._new_gate()
        self.refresh((volume,))
        return self._gates[volume]

    def refresh(self, volumes: Iterable[VolumeId] | None = None) -> None:
        """Look up the limits of volumes that were used, or of all that were, and apply them."""
        for volume in self if volumes is None else volumes:
            gate = self._gates.get(volume)
            if gate is not None:
                self._apply(gate, self.look_up(volume))

    def forget(self, volume: VolumeId) -> None:
        """Drop the gate of a volume that was deleted."""
        self._gates.pop(volume, None)

    def _apply(self, gate: Gate, applied: Applied) -> None:
        gate.tenant = None if applied.tenant is None else self._tenant(applied)
        gate.throttle.configure(applied.limits)
        gate.profile(applied.profile)
        gate.configured()

    def _tenant(self, applied: Applied) -> Throttle:
        assert applied.tenant is not None
        throttle = self._tenants.get(applied.tenant)
        if throttle is None:
            throttle = self._tenants[applied.tenant] = Throttle(self.clock, self._wake_at)
        if throttle.limits != applied.tenant_limits:
            throttle.configure(applied.tenant_limits)
            for gate in self._gates.values():
                if gate.tenant is throttle:
                    gate.configured()
        return throttle

    # -- time --------------------------------------------------------------------------------------

    def _wake_at(self, throttle: Throttle, at: int) -> None:
        due = self._due.get(throttle)
        if due is None or at < due:
            self._due[throttle] = at
            self._sooner.set()

    async def run(self) -> None:
        """Wake those who wait, until cancelled."""
        while True:
            self._sooner = trio.Event()
            pause = math.inf
            if self._due:
                at = max(min(self._due.values()), self._looked_at + _PAUSE_NS)
                pause = max(0, at - self.clock()) / _SECOND_NS
            with trio.move_on_after(pause) as scope:
                await self._sooner.wait()
            if scope.cancelled_caught:
                self.look()

    def look(self) -> None:
        """Wake those whose time has come."""
        self._looked_at = now = self.clock()
        for throttle in [throttle for throttle, at in self._due.items() if at <= now]:
            del self._due[throttle]
            throttle.pump()
