"""What gateways say to each other: that one of them is to give an image back.

A message is text, its words separated by spaces:

    release IMAGE firm|polite REQUEST       IMAGE: 24 hexadecimal digits; REQUEST: below

and the number of a request is `GATEWAY/RUN/COUNT`, of who asks. Whoever has the image gives it
back before it acknowledges the message; or, asked politely while clients use it, it leaves its own
name first at the key `busy/REQUEST` of the bus object. Who does not have it acknowledges at once.
What a gateway does not understand, a newer one may have said: it acknowledges that, too.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from bockd.drivers.rbd.records import Identity

BUSY_PREFIX = "busy/"


class Manner(StrEnum):
    """How a gateway asks another one for a volume."""

    POLITE = "polite"
    """Not if clients use it there: somebody has named the volume."""
    FIRM = "firm"
    """In any case: a client of the volume has come here, and so will the others."""


LIMIT_SECONDS = {Manner.POLITE: 5.0, Manner.FIRM: 1.0}
"""How long an answer is waited for. To the firm question a client waits for its connection; and the
dead do not answer at all."""

_MESSAGE = re.compile(r"release ([0-9a-f]{24}) (firm|polite) ([A-Za-z0-9._-]+/[0-9a-f]{16}/\d+)")


class Request(NamedTuple):
    """A gateway asks for an image."""

    image: str
    manner: Manner
    number: str

    def encode(self) -> str:
        """Encode it as a message."""
        return f"release {self.image} {self.manner} {self.number}"

    @property
    def busy_key(self) -> str:
        """Where who does not give the image back says so."""
        return BUSY_PREFIX + self.number


def decode_message(message: bytes) -> Request | None:
    """Decode a message. None: it is none that this gateway understands."""
    found = _MESSAGE.fullmatch(message.decode("ascii", errors="replace"))
    return found and Request(found[1], Manner(found[2]), found[3])


def asked_by(who: Identity) -> str:
    """Return how the numbers of a run's requests begin."""
    return f"{who.gateway}/{who.run}/"


def busy_of_earlier_runs(keys: list[str], who: Identity) -> list[str]:
    """Choose the answers that this gateway's earlier runs have left behind."""
    ours, now = f"{BUSY_PREFIX}{who.gateway}/", BUSY_PREFIX + asked_by(who)
    return [key for key in keys if key.startswith(ours) and not key.startswith(now)]
