"""What gateways say to each other: that one of them is to give an image back.

A message is text, its words separated by spaces:

    release IMAGE firm|polite REQUEST       IMAGE: 24 hexadecimal digits; REQUEST: below

    alive RUN REQUEST                       RUN: `GATEWAY/RUN`, as the index names it

and the number of a request is `GATEWAY/RUN/COUNT`, of who asks. Every gateway acknowledges the
message at once; but not the run that is meant, if it could not put its answer there. Who has given
the image back by then, or does not have it, or is not the run that is meant, says nothing else. All
others have put an answer at the key `answer/REQUEST/GATEWAY` of the bus object before, with their
own name:

    heard                                   it gives the image back, or asks itself whether it can
    keeps                                   clients use the image, and it was asked politely
    here                                    the run that is meant lives

Who has heard changes its answer when it is done, or removes it: the image was given back.
What a gateway does not understand, a newer one may have said: it acknowledges that, too.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from bockd.drivers.rbd.records import Identity

ANSWERS = "answer/"
"""How the keys of answers begin."""


class Manner(StrEnum):
    """How a gateway asks another one for a volume."""

    POLITE = "polite"
    """Not if clients use it there: somebody has named the volume."""
    FIRM = "firm"
    """In any case: a client of the volume has come here, and so will the others."""


class Answer(StrEnum):
    """What a gateway says that has an image, or may have it."""

    HEARD = "heard"
    KEEPS = "keeps"
    HERE = "here"


HEARD_SECONDS = {Manner.POLITE: 2.0, Manner.FIRM: 0.3}
"""How long it takes at most until who has an image has heard of the question: milliseconds, but on
a machine that is very busy. The dead do not, and to the firm question a client waits for its
connection; a gateway that is shut out too early loses its connections, which it was to end anyway.
To the polite question an operator waits, and nobody is to lose a client by it."""

LIMIT_SECONDS = {Manner.POLITE: 5.0, Manner.FIRM: 1.0}
"""How long it is waited for who has heard of the question."""

DRAIN_SECONDS = 10.0
"""The same for who has to write a volume back first, which may last longer still: it is not shut
out then, but whoever asks is told to try again, as long as its own client may wait."""

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
    def answers(self) -> str:
        """How the keys of the answers begin."""
        return f"{ANSWERS}{self.number}/"


ALIVE_SECONDS = 3.0
"""How long it is waited for a run that may not live any more; who lives answers in milliseconds.
What is asked before something that cannot be undone has limits of its own (inquiry.py)."""

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
    def answers(self) -> str:
        """How the key of the answer begins."""
        return f"{ANSWERS}{self.number}/"


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


def answers_to_earlier_runs(keys: list[str], who: Identity) -> list[str]:
    """Choose the answers that this gateway's earlier runs have left behind."""
    ours, now = f"{ANSWERS}{who.gateway}/", ANSWERS + asked_by(who)
    return [key for key in keys if key.startswith(ours) and not key.startswith(now)]
