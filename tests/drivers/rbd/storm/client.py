"""A client of one volume that reconnects to whichever gateway answers.

It writes to the volume's units, several at once, each with one write under way at most, reads some
of them between, and knows what each may hold (tests/crash/history.py). When its connection ends, or
nothing is answered for as long as it has patience, it turns to the next gateway, reads the volume,
and sends again what was not answered. What it reads must be what was answered last, or what is
under way; so a write that lands late shows, since its unit has been written anew by then.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bockd.model import MIB
from bockd.nbd.protocol import constants as nbd
from tests.crash.history import History, Operation
from tests.drivers.rbd.storm.session import GoneError, Session

UNIT_BYTES = 4096
STRIDE = MIB
"""Between units: a few of them are in each object of the cluster."""

DEPTH = 8
READ_SHARE = 0.2
RETRY_SECONDS = 0.02
"""When no gateway accepts a connection."""

WAIT_SECONDS = 180.0


@dataclass(frozen=True)
class Pause:
    """How long a client had no answer, and how much of it was its own patience."""

    why: str
    seconds: float
    patience: float


@dataclass
class Patience:
    """Of the clients. `why` is what has been done to them last."""

    seconds: float = 1.0
    why: str = "start"


class Client(threading.Thread):
    """A client, from `start` to `end`."""

    def __init__(
        self,
        name: str,
        gateways: Sequence[Path],
        export: str,
        history: History,
        patience: Patience,
        seed: str,
    ) -> None:
        super().__init__(name=name)
        self.history = history
        self.lock = threading.RLock()
        """Of the history."""
        self.answered = 0
        self.reconnected = 0
        self.pauses: list[Pause] = []
        self.why_gone: list[str] = []
        self._gateways = gateways
        self._export = export
        self._patience = patience
        self._random = random.Random(seed)
        self._turn = 0
        self._unanswered: dict[int, Operation] = {}
        """By unit."""
        self._resting = False
        self._ending = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._answered_at = time.monotonic()
        self._waited = 0.0
        """How much patience was spent since the last answer."""
        self._began_waiting = 0.0

    # -- for others --------------------------------------------------------------------------

    @property
    def at(self) -> int:
        """The number of the gateway that it is connected to, or tries."""
        return self._turn % len(self._gateways)

    def wait_for(self, more: int) -> None:
        """Until so many more requests were answered. What has failed is raised here."""
        with self._changed:
            goal = self.answered + more
            done = self._changed.wait_for(
                lambda: self._error or self.answered >= goal, WAIT_SECONDS
            )
        self._raise()
        assert done, f"{self.name} hangs: {self.why_gone[-5:]}"

    def rest(self) -> None:
        """Send nothing more; return when all was answered, and read that all of it is there."""
        with self._changed:
            self._resting = True
            done = self._changed.wait_for(lambda: self._error or (not self._resting), WAIT_SECONDS)
        self._raise()
        assert done, f"{self.name} does not come to rest: {self.why_gone[-5:]}"

    def end(self) -> None:
        """Let it end. What has failed is raised here."""
        self.abandon()
        self._raise()

    def abandon(self) -> None:
        """Let it end, whatever it has come to."""
        self._ending = True
        if self.ident is not None:
            self.join(WAIT_SECONDS)

    def _raise(self) -> None:
        if self._error is not None:
            self._error.add_note(f"client {self.name}; lately: {self.why_gone[-5:]}")
            raise self._error

    # -- its thread --------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self._ending:
                self._connect()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _connect(self) -> None:
        """Be connected to a gateway, for as long as that lasts."""
        path = self._gateways[self.at]
        self._began_waiting = time.monotonic()
        try:
            session = Session(path, self._export, self._is_patient)
        except GoneError as error:
            self._note_gone(error)
            time.sleep(RETRY_SECONDS)
            return
        try:
            self._go_on(session)
        except GoneError as error:
            self._note_gone(error)
        finally:
            session.close()

    def _note_gone(self, error: GoneError) -> None:
        self._turn += 1
        self.reconnected += 1
        self.why_gone.append(f"{self._turn}: {error}")

    def _is_patient(self) -> bool:
        waited = time.monotonic() - self._began_waiting
        if waited < self._patience.seconds and not self._ending:
            return True
        self._waited += waited
        return False

    def _go_on(self, session: Session) -> None:
        under_way: dict[int, int] = {}
        """Units, by cookies; those that are read are negative, less one."""
        first = self._read_all(session, pin=False)
        assert self._read_all(session, pin=False) == first, "what nobody sent has landed"
        for unit in self._unanswered:
            self._send(session, under_way, unit)
        while not self._ending:
            while not self._resting and len(under_way) < DEPTH:
                self._begin(session, under_way)
            if under_way:
                self._take(session, under_way)
            elif self._resting:
                self._read_all(session, pin=True)
                with self._changed:
                    self._resting = False
                    self._changed.notify_all()

    def _begin(self, session: Session, under_way: dict[int, int]) -> None:
        """Read or write a unit to which nothing is under way."""
        busy = {unit if unit >= 0 else -unit - 1 for unit in under_way.values()}
        unit = self._random.choice([u for u in range(self.history.units) if u not in busy])
        if self._random.random() < READ_SHARE:
            cookie = self._cookie(under_way, -unit - 1)
            session.ask(cookie, nbd.CMD_READ, unit * STRIDE, UNIT_BYTES)
            return
        with self.lock:
            self._unanswered[unit], _ = self.history.write(unit, 1)
        self._send(session, under_way, unit)

    def _send(self, session: Session, under_way: dict[int, int], unit: int) -> None:
        data = self.history.pattern(self._unanswered[unit].value, unit)
        cookie = self._cookie(under_way, unit)
        session.ask(cookie, nbd.CMD_WRITE, unit * STRIDE, UNIT_BYTES, data)

    @staticmethod
    def _cookie(under_way: dict[int, int], what: int) -> int:
        cookie = random.getrandbits(63)
        under_way[cookie] = what
        return cookie

    def _take(self, session: Session, under_way: dict[int, int]) -> None:
        self._began_waiting = time.monotonic()
        cookie, data = session.answer()
        unit = under_way.pop(cookie)
        self._note_answer()
        with self.lock:
            if unit >= 0:
                self.history.acknowledge(self._unanswered.pop(unit))
            else:
                self._verify(-unit - 1, data)
        with self._changed:
            self.answered += 1
            self._changed.notify_all()

    def _note_answer(self) -> None:
        now = time.monotonic()
        self.pauses.append(Pause(self._patience.why, now - self._answered_at, self._waited))
        if len(self.pauses) > 1 and self.pauses[-2].why == self.pauses[-1].why:
            longer = max(self.pauses[-2:], key=lambda one: one.seconds - one.patience)
            self.pauses[-2:] = [longer]
        self._answered_at, self._waited = now, 0.0

    def _verify(self, unit: int, data: bytes) -> int:
        value = int.from_bytes(data[:8], "little")
        assert data == self.history.pattern(value, unit), f"unit {unit} is torn, or another unit's"
        allowed = [(one.value, one.acknowledged) for one in self.history.candidates[unit]]
        assert any(value == one for one, _ in allowed), (
            f"unit {unit} holds {value}; allowed are (value, acknowledged at) {allowed}"
        )
        return value

    def _read_all(self, session: Session, *, pin: bool) -> list[int]:
        """Read all units, each of which must hold what it may. `pin`: nothing is under way."""
        found = dict[int, int]()
        cookies = dict[int, int]()
        for unit in range(self.history.units):
            cookie = self._cookie(cookies, unit)
            session.ask(cookie, nbd.CMD_READ, unit * STRIDE, UNIT_BYTES)
        while cookies:
            self._began_waiting = time.monotonic()
            cookie, data = session.answer()
            unit = cookies.pop(cookie)
            with self.lock:
                if pin:
                    assert len(self.history.candidates[unit]) == 1, "nothing is under way"
                found[unit] = self._verify(unit, data)
        return [found[unit] for unit in range(self.history.units)]
