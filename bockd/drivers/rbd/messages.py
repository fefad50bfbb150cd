"""What gateways say to each other: that one of them is to give an image back.

A message is text, its words separated by spaces:

    release IMAGE firm|polite REQUEST       IMAGE: 24 hexadecimal digits; REQUEST: below

and the number of a request is `GATEWAY/RUN/COUNT`, of who asks. Whoever has the image gives it
back before it acknowledges the message; or, asked politely while clients use it, it leaves its own
name first at the key `busy/REQUEST` of the bus object. Who does not have it acknowledges at once.

    alive GATEWAY/RUN REQUEST               the run of a gateway that is asked for

The run that is meant leaves its name at `here/REQUEST` before it acknowledges; all others
acknowledge at once.

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

_RUN = re.compile(r"[A-Za-z0-9._-]+/[0-9a-f]{16}")

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


HERE_PREFIX = "here/"

ALIVE_SECONDS = 3
"""How long it is waited for a run that may not live any more. Whoever lives answers in
milliseconds; who has died is waited for as long as it counts as a watcher."""

_QUESTION = re.compile(rf"alive ({_RUN.pattern}) ({_RUN.pattern}/\d+)")


class Question(NamedTuple):
    """A gateway asks whether a run lives."""

    author: str
    """The run: `GATEWAY/RUN`."""
    number: str

    def encode(self) -> str:
        """Encode it as a message."""
        return f"alive {self.author} {self.number}"

    @property
    def key(self) -> str:
        """Where the run says that it is here."""
        return HERE_PREFIX + self.number


def decode_question(message: bytes) -> Question | None:
    """Decode a message that asks for a run. None: it is none."""
    found = _QUESTION.fullmatch(message.decode("ascii", errors="replace"))
    return found and Question(found[1], found[2])


def decode_message(message: bytes) -> Request | None:
    """Decode a message. None: it is none that this gateway understands."""
    found = _MESSAGE.fullmatch(message.decode("ascii", errors="replace"))
    return found and Request(found[1], Manner(found[2]), found[3])


def asked_by(who: Identity) -> str:
    """Return how the numbers of a run's requests begin."""
    return f"{who.gateway}/{who.run}/"


def author_of(who: Identity) -> str:
    """Return a run as the index and questions name it: `GATEWAY/RUN`."""
    return f"{who.gateway}/{who.run}"


def busy_of_earlier_runs(keys: list[str], who: Identity) -> list[str]:
    """Choose the answers that this gateway's earlier runs have left behind."""
    ours, now = f"{BUSY_PREFIX}{who.gateway}/", BUSY_PREFIX + asked_by(who)
    return [key for key in keys if key.startswith(ours) and not key.startswith(now)]


def here_of_earlier_runs(keys: list[str], who: Identity) -> list[str]:
    """Choose the answers to questions of this gateway's earlier runs whether others live."""
    ours, now = f"{HERE_PREFIX}{who.gateway}/", HERE_PREFIX + asked_by(who)
    return [key for key in keys if key.startswith(ours) and not key.startswith(now)]
