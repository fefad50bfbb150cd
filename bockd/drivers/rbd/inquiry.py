"""Questions for the runs of a gateway, again and again, before something is done that cannot be
undone if one of them lives: what is dirty there is given up.

A gateway that is asked hears a question if it watches the bus when that is delivered, and it may
lose its watch just then, and make it again. It answers from its logs as long as it has heard of the
cluster within `UNCONFIRMED_SECONDS` (bockd.daemon.rbdbackend), and takes its watch for a sign of
that only when the watch is older than `GAP_SECONDS` (bockd.drivers.rbd.bus). The rules here make of
this that it answers nothing any more when it is given up:

* From the beginning of one round of questions to the end of the next it is no longer than
  `GAP_SECONDS`, or the time counts anew: a watch that is older than that would have heard one.
* All who watch the bus have acknowledged each question, or the time counts anew: who has a watch,
  and was cut off from the cluster for a moment, has not acknowledged it.
* That time is `CERTAIN_SECONDS`, so the last such watch of a gateway that heard none ended as long
  ago, or began after the last question.
* What is given up is given up `LATE_SECONDS` after the last question at most: the gateway that has
  a watch since then does not take it for a sign yet.
* Who asks may be a virtual machine that is paused, with its clocks. So the gateway's entry in the
  table must be what it was when it was asked, in the transaction that gives up: before it answers
  from its logs again, the gateway commits a change of that (`Gateways.confirm`).

`tests/daemon/test_giving_up_in_time.py` plays schedules of all this.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from bockd.errors import UnavailableError
from bockd.pool.gateways import Gateway

ROUND_SECONDS = 3.0
"""Between two rounds of questions."""

CERTAIN_SECONDS = 30.0
"""How long such questions go on: a gateway that has lost its watch makes it again meanwhile, and a
watch of one that has died ends."""

MOST_CERTAIN_SECONDS = 45.0
"""Until then it must be certain."""

DELIVERED_SECONDS = 9.0
"""How long one may last as a whole: its own limit and some seconds of the cluster's. That is less
than the operation may last (settings.INDEX_TIMEOUT_SECONDS), after which nobody may have heard it.
"""

GAP_SECONDS = ROUND_SECONDS + DELIVERED_SECONDS
"""From the beginning of one round to the end of the next, at most."""

LATE_SECONDS = 8.0
"""How old the last question may be when it is decided that what a gateway has is given up."""


def boot_seconds() -> float:
    """Return a time that no clock's change moves, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Inquiry:
    """Whether runs of one gateway live, none of which has answered so far. For one thread at a
    time."""

    def __init__(self) -> None:
        self.runs = set[str]()
        """All that were asked, each as `GATEWAY/RUN`."""
        self.entry: Gateway | None = None
        """What the table of gateways had of it in the last round."""
        self._since: float | None = None
        """When the first of the rounds began that count."""
        self._began: float | None = None
        """When the last round began."""
        self._before: float | None = None
        """When the round before that began."""

    def begin_round(self) -> None:
        """Note that a round of questions begins."""
        self._before, self._began = self._began, boot_seconds()

    def see(self, entry: Gateway | None) -> None:
        """Note what the table has of the gateway, before the runs are asked in this round. If that
        has changed, it was there meanwhile, and the time counts anew."""
        if entry != self.entry:
            self._since = None
        self.entry = entry

    def name(self, runs: Collection[str]) -> None:
        """Note who is asked in this round. Who is new is asked as long as all."""
        if not self.runs.issuperset(runs):
            self._since = None
            self.runs.update(runs)

    def end_round(self, *, all_heard: bool) -> None:
        """Note that all questions of the round were delivered, whether all who watch the bus have
        acknowledged them, and that nobody has answered."""
        is_late = self._before is not None and boot_seconds() - self._before > GAP_SECONDS
        if is_late or self._since is None:
            self._since = self._began
        if not all_heard:
            self._since = None

    @property
    def is_certain(self) -> bool:
        """Return whether none of the runs answers anything any more."""
        if self._since is None or self._began is None:
            return False
        return self._began - self._since >= CERTAIN_SECONDS

    def refuse_late(self) -> None:
        """Raise UnavailableError if the last question is so old that one of the runs may be back,
        and answer from its logs again."""
        if self._began is None or boot_seconds() - self._began > LATE_SECONDS:
            raise UnavailableError(
                "nothing was discarded: since the gateway where the volume is dirty was asked "
                f"whether it lives, more than {LATE_SECONDS:.0f} s have gone by, and it may be "
                "back; 'ceph -s' says how the Ceph cluster is. Try again"
            )
