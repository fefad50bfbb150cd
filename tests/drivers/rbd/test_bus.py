"""The bus over a real cluster: questions that are asked at once are answered at once."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import BockdError, DeniedError, DeviceError, NoSpaceError, UnavailableError
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd.binding import rados  # noqa: E402
from bockd.drivers.rbd.bus import BUS, WATCH_SECONDS, Bus, Release  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.connection import connect, open_pool  # noqa: E402
from bockd.drivers.rbd.inquiry import GAP_SECONDS, Inquiry, boot_seconds  # noqa: E402
from bockd.drivers.rbd.messages import Manner, Question  # noqa: E402
from bockd.drivers.rbd.records import Identity  # noqa: E402
from bockd.drivers.rbd.settings import index_options  # noqa: E402
from bockd.drivers.rbd.watching import Watching  # noqa: E402

IMAGES = [f"{number:024x}" for number in range(10)]


def nothing(_image: str, _manner: Manner) -> Future[bool]:
    """Have none of the images."""
    answer: Future[bool] = Future()
    answer.set_result(True)
    return answer


class Owner:
    """Who has all the images, and gives none back before all were asked for."""

    def __init__(self, *, gives: bool = True) -> None:
        self.asked: dict[str, Future[bool]] = {}
        self._gives = gives
        self._lock = threading.Lock()

    def release(self, image: str, _manner: Manner) -> Future[bool]:
        answer: Future[bool] = Future()
        with self._lock:
            self.asked[image] = answer
            waiting = list(self.asked.items()) if len(self.asked) == len(IMAGES) else []
        # In another thread, and the last one first.
        if waiting:
            threading.Thread(target=self._answer, args=(waiting[::-1],)).start()
        return answer

    def _answer(self, waiting: list[tuple[str, Future[bool]]]) -> None:
        for _, answer in waiting:
            answer.set_result(self._gives)


@contextmanager
def joined(settings: RbdSettings, name: str, release: Release) -> Iterator[Bus]:
    with ExitStack() as stack:
        limited = connect(settings, index_options(settings))
        stack.callback(limited.shutdown)
        ioctx = open_pool(limited, settings)
        stack.callback(ioctx.close)
        bus = Bus(settings, ioctx, Identity(name, "a" * 16), release)
        stack.callback(bus.close)
        yield bus


@pytest.fixture
def bus(rbd_namespace: RbdSettings) -> Iterator[Bus]:
    with joined(rbd_namespace, "here", nothing) as one:
        yield one


@pytest.mark.parametrize("manner", Manner)
def test_many_images_are_given_back_at_once(
    bus: Bus, rbd_namespace: RbdSettings, manner: Manner
) -> None:
    owner = Owner()
    with (
        joined(rbd_namespace, "there", owner.release),
        ThreadPoolExecutor(len(IMAGES)) as asking,
    ):
        assert list(asking.map(lambda image: bus.ask(image, manner), IMAGES)) == [None] * 10
    assert all(answer.done() for answer in owner.asked.values())


def test_many_images_are_refused_at_once(bus: Bus, rbd_namespace: RbdSettings) -> None:
    owner = Owner(gives=False)
    with (
        joined(rbd_namespace, "there", owner.release),
        ThreadPoolExecutor(len(IMAGES)) as asking,
    ):
        keepers = list(asking.map(lambda image: bus.ask(image, Manner.POLITE), IMAGES))
    assert keepers == ["there"] * len(IMAGES)
    assert _keys(bus) == []


def test_one_that_hangs_holds_up_no_other(bus: Bus, rbd_namespace: RbdSettings) -> None:
    """And no answer that comes when the watch has ended does any harm."""
    hanging: list[Future[bool]] = []

    def release(image: str, manner: Manner) -> Future[bool]:
        if image != IMAGES[0]:
            return nothing(image, manner)
        hanging.append(Future())
        return hanging[-1]

    with (
        joined(rbd_namespace, "there", release),
        ThreadPoolExecutor(1) as asking,
    ):
        stuck = asking.submit(bus.ask, IMAGES[0], Manner.POLITE)
        for image in IMAGES[1:]:
            assert bus.ask(image, Manner.FIRM) is None
        assert not stuck.done()
        hanging[0].set_result(True)
        assert stuck.result() is None
        assert bus.ask(IMAGES[0], Manner.FIRM) is None
    for answer in hanging[1:]:
        answer.set_result(True)


def test_what_goes_wrong_there_does_not_hold_up_who_asks(
    bus: Bus, rbd_namespace: RbdSettings, caplog: pytest.LogCaptureFixture
) -> None:
    def release(image: str, _manner: Manner) -> Future[bool]:
        if image == IMAGES[0]:
            raise ValueError("at once")
        answer: Future[bool] = Future()
        answer.set_exception(ValueError("later"))
        return answer

    with joined(rbd_namespace, "there", release):
        assert bus.ask(IMAGES[0], Manner.POLITE) is None
        assert bus.ask(IMAGES[1], Manner.POLITE) is None
    assert "at once" in caplog.text
    assert "later" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EPERM, errno.ESHUTDOWN])
def test_a_question_that_was_not_sent_is_no_sign_of_anything(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(bus, "_limited", Failing(bus._limited, number))
    with pytest.raises(UnavailableError, match="asking the other gateways"):
        bus.ask(IMAGES[0], Manner.POLITE)
    with pytest.raises(UnavailableError, match="asking the other gateways"):
        bus.is_alive("there/" + "b" * 16)


def test_a_question_for_which_there_is_no_thread_was_not_sent(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(UnavailableError, match="no thread can be started"):
            bus.ask(IMAGES[0], Manner.FIRM)
    assert bus.ask(IMAGES[0], Manner.FIRM) is None


def test_a_question_that_somebody_did_not_acknowledge_was_sent(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "_limited", Failing(bus._limited, errno.ETIMEDOUT))
    assert bus.ask(IMAGES[0], Manner.POLITE) is None
    assert not bus.is_alive("there/" + "b" * 16)


class Silent:
    """A namespace in which nobody answers, and the end of each message is said."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        """Errors with which messages end, one after the other; zero for none, the last for good."""
        self.asked = list[str]()
        self.hanging: threading.Event | None = None
        self.here = ""
        """A run that answers."""

    def notify(self, _name: str, message: str, _limit_ms: int) -> None:
        self.asked.append(message.split()[1])
        if self.hanging is not None:
            self.hanging.wait(60)
        number = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if number:
            raise rados.OSError("ended", number)

    def bus(self, patch: pytest.MonkeyPatch) -> Bus:
        """Return a bus that was not joined."""
        patch.setattr("bockd.drivers.rbd.bus.ROUND_SECONDS", 0.001)
        patch.setattr("bockd.drivers.rbd.bus.MOST_CERTAIN_SECONDS", 0.1)
        patch.setattr("bockd.drivers.rbd.bus.DELIVERED_SECONDS", 20.0)
        patch.setattr("bockd.drivers.rbd.inquiry.CERTAIN_SECONDS", 0.02)
        one: Any = Bus.__new__(Bus)
        one._limited, one._who, one._asking = self, Identity("here", "a" * 16), set()
        one._numbers, one._sending = count(1), threading.Lock()
        one._answers_to = lambda asked: {"key": "here"} if asked.author == self.here else {}
        one._remove = lambda _keys: None
        found: Bus = one
        return found


THERE = ["there/" + "b" * 16, "there/" + "c" * 16]


def test_nobody_is_taken_for_dead_who_was_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway may have lost its watch, and makes it again."""
    silent = Silent()
    silent.ends = [errno.ETIMEDOUT] * 6 + [0]
    assert silent.bus(monkeypatch).find_alive(lambda: THERE) is None
    assert silent.asked == THERE * (len(silent.asked) // 2)
    assert len(silent.asked) >= 8
    silent.here = THERE[1]
    assert silent.bus(monkeypatch).find_alive(lambda: THERE) == THERE[1]


def test_who_is_started_meanwhile_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be named at first: the gateway has ended in order, and is restarted."""
    silent = Silent()
    silent.ends, silent.here = [0], THERE[1]
    named = iter([[], [], THERE[:1]])
    bus = silent.bus(monkeypatch)
    assert bus.find_alive(lambda: next(named, THERE)) == THERE[1]
    assert silent.asked == [THERE[0], *THERE]


class Slow:
    """A silent namespace, and a bus that was not joined, with a clock of their own."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.delays = list[float]()
        """What the next questions take, one after the other."""
        self.silent = Silent()
        self.silent.ends = [0]
        patch.setattr("bockd.drivers.rbd.bus.time", SimpleNamespace(sleep=self.wait))
        patch.setattr("bockd.drivers.rbd.bus.boot_seconds", lambda: self.now)
        patch.setattr("bockd.drivers.rbd.inquiry.boot_seconds", lambda: self.now)
        self.bus = self.silent.bus(patch)
        answers_to: Any = self.bus._answers_to

        def answered_late(asked: Question) -> dict[str, str]:
            self.now += self.delays.pop(0) if self.delays else 0.0
            found: dict[str, str] = answers_to(asked)
            return found

        patch.setattr(self.bus, "_answers_to", answered_late, raising=False)
        for module, name, seconds in (
            ("bus", "ROUND", 3.0),
            ("bus", "MOST_CERTAIN", 45.0),
            ("inquiry", "CERTAIN", 30.0),
        ):
            patch.setattr(f"bockd.drivers.rbd.{module}.{name}_SECONDS", seconds)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def took(self, authors: Callable[[], list[str]], inquiry: Inquiry | None = None) -> float:
        """Return how long it takes until nobody lives."""
        began = self.now
        assert self.bus.find_alive(authors, inquiry) is None
        return self.now - began


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


def test_who_is_named_late_is_asked_as_long_as_all(slow: Slow) -> None:
    assert slow.took(list) == 30.0, "there was time to start one"
    began = slow.now
    assert slow.took(lambda: THERE[: 1 + (slow.now - began > 10)]) == 42.0
    began = slow.now
    with pytest.raises(UnavailableError, match="has just been started"):
        slow.took(lambda: THERE[: 1 + (slow.now - began > 20)])


def test_who_was_asked_is_asked_once_more_or_as_long_again(slow: Slow) -> None:
    """What comes between may last: a watch may have been made and lost meanwhile."""
    inquiry = Inquiry()
    assert slow.took(lambda: THERE, inquiry) == 30.0
    assert slow.took(lambda: THERE, inquiry) == 0.0
    slow.now += GAP_SECONDS
    assert slow.took(lambda: THERE, inquiry) == 0.0
    slow.now += GAP_SECONDS + 0.5
    assert slow.took(lambda: THERE, inquiry) == 30.0


def test_after_a_question_that_somebody_did_not_hear_the_time_counts_anew(slow: Slow) -> None:
    """It may have been who is asked for, cut off for a moment."""
    slow.silent.ends = [0, 0, errno.ETIMEDOUT, 0]
    assert slow.took(lambda: THERE[:1]) == 9.0 + 30.0


@pytest.mark.parametrize(("delay", "took"), [(9.0, 30.0), (9.1, 36.1)])
def test_after_a_question_that_came_late_the_time_counts_anew(
    slow: Slow, delay: float, took: float
) -> None:
    """It is the third one, and must end `GAP_SECONDS` after the second has begun."""
    slow.delays = [0.0, 0.0, delay]
    assert slow.took(lambda: THERE[:1]) == pytest.approx(took)


@pytest.mark.parametrize("can_answer", [True, False])
def test_a_run_that_cannot_answer_does_not_acknowledge_the_question_for_it(
    can_answer: bool,
) -> None:
    """A full cluster takes no answers. Whoever asks would take it for dead."""
    acknowledged = list[str]()

    def answer(*_arguments: object) -> None:
        if not can_answer:
            raise NoSpaceError("the Ceph pool is full")

    bus: Any = Bus.__new__(Bus)
    bus._answer = answer
    question = Question(THERE[0], f"here/{'a' * 16}/1")
    bus._say_here(question, lambda: acknowledged.append("yes"))
    assert acknowledged == (["yes"] if can_answer else [])


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_without_an_acknowledged_question_nobody_is_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    silent = Silent()
    silent.ends = [number]
    with pytest.raises(UnavailableError):
        silent.bus(monkeypatch).find_alive(lambda: THERE)


def test_while_a_question_is_not_delivered_nobody_is_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The OSD of the bus stands still for some seconds, which ends before the message does."""
    silent = Silent()
    silent.ends = [0]
    silent.hanging = threading.Event()
    bus = silent.bus(monkeypatch)
    monkeypatch.setattr("bockd.drivers.rbd.bus.ALIVE_SECONDS", 0.001)
    monkeypatch.setattr("bockd.drivers.rbd.bus.DELIVERED_SECONDS", 0.01)
    with pytest.raises(UnavailableError, match="did not deliver"):
        bus.find_alive(lambda: THERE)
    silent.hanging.set()


class Failing:
    """A namespace in which no message is sent."""

    def __init__(self, ioctx: Any, number: int) -> None:
        self._ioctx = ioctx
        self._number = number

    def notify(self, *_arguments: object) -> None:
        raise rados.OSError("not sent", self._number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ioctx, name)


def test_a_watch_is_made_again_whatever_went_wrong_meanwhile(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[BockdError] = [NoSpaceError("full"), DeviceError("EIO"), DeniedError("no")]
    made = threading.Event()

    def watch(*arguments: Any) -> Watching:
        if errors:
            raise errors.pop()
        one = Watching(*arguments)
        made.set()
        return one

    monkeypatch.setattr("bockd.drivers.rbd.bus.AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("bockd.drivers.rbd.bus.Watching", watch)
    bus._on_loss()
    assert made.wait(60)
    assert errors == []


def test_a_watch_says_since_when_it_may_not_be_one(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long, questions may not have come here, though no loss was told of."""
    silent = bus.silent_seconds()
    assert silent is not None
    assert 0 <= silent < WATCH_SECONDS * 4
    bus._end_watch()
    assert bus.silent_seconds() is None
    bus._try_to_watch()
    assert bus.silent_seconds() is None, "it may have been made between two questions"
    later = boot_seconds() + GAP_SECONDS + WATCH_SECONDS * 4
    monkeypatch.setattr("bockd.drivers.rbd.bus.boot_seconds", lambda: later)
    assert bus.silent_seconds() is not None
    watch = bus._watch
    assert watch is not None
    watch.close()
    assert bus.silent_seconds() is None
    bus._try_to_watch()


def _keys(bus: Bus) -> list[str]:
    with rados.ReadOpCtx() as op:
        found, _ = bus._limited.get_omap_vals(op, "", "", 100)
        bus._limited.operate_read_op(op, BUS)
        return [key for key, _ in found]
