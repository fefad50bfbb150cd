"""The bus: an object that all gateways watch, by which they ask each other for images.

A message reaches all who watch the object, and whoever sent it is told when all have acknowledged
it. Who has died watches for some seconds more, so it is not waited for: whoever lives acknowledges
at once, and says first if it needs time. What is said is in bockd.drivers.rbd.messages.

Two connections take part. The watch has one of its own (bockd.drivers.rbd.watching); messages are
sent, and answers are written and read, on the connection with limits: no call of the cluster is
made in a callback of Ceph's, and none of them waits.

A watch that is lost is not told of messages any more. It is made again by a thread, since the
callback that tells of the loss may not.
"""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from typing import ParamSpec

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rados
from bockd.drivers.rbd.connection import connect, open_pool
from bockd.drivers.rbd.errors import CEPH_ERRORS, errno_of, from_ceph_error, named
from bockd.drivers.rbd.inquiry import (
    DELIVERED_SECONDS,
    GAP_SECONDS,
    MOST_CERTAIN_SECONDS,
    ROUND_SECONDS,
    Inquiry,
    boot_seconds,
)
from bockd.drivers.rbd.messages import (
    ALIVE_SECONDS,
    ANSWERS,
    HEARD_SECONDS,
    LIMIT_SECONDS,
    Answer,
    Manner,
    Question,
    Request,
    answers_to_earlier_runs,
    asked_by,
    author_of,
    decode_message,
    decode_question,
)
from bockd.drivers.rbd.records import Identity
from bockd.drivers.rbd.settings import index_options
from bockd.drivers.rbd.watching import Acknowledge, Watching
from bockd.errors import BockdError, UnavailableError

log = logging.getLogger(__name__)
P = ParamSpec("P")

BUS = "bus"
"""The object's name."""

WATCH_SECONDS = 5
"""How long the network may be gone; and how long one that has died counts as a watcher."""

AT_ONCE_SECONDS = 0.03
"""Who has answered a question in this time need not say that it has heard it."""

LOOK_SECONDS = 0.02
"""Between looks at the answers."""

AGAIN_SECONDS = 1.0
"""Between attempts to watch the bus again, and between looks whether the watch still is one."""

ANSWERS_AT_ONCE = 4
"""Threads that write answers."""

MOST_ANSWERS = 10_000
"""Keys that are looked at at a start; there are as many as gateways died, or were too late."""

Release = Callable[[str, Manner], "Future[bool]"]
"""Gives an image back, if this gateway has it. Called in a thread of Ceph's; all it does there is
to hand over to the owner thread. False: it is kept, since clients use it."""


class _Sent:
    """A message that was sent, and what came of it."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.all_heard = False
        """All who watch have acknowledged it."""
        self.error: BockdError | None = None
        """Why it was not sent."""

    def refuse_unsent(self) -> None:
        """Raise UnavailableError if it was not sent, as far as is known."""
        if self.error is not None:
            raise UnavailableError(str(self.error)) from self.error


class Bus:
    """This gateway's place at the bus."""

    def __init__(
        self, settings: RbdSettings, limited: rados.Ioctx, who: Identity, release: Release
    ) -> None:
        """Connect, and watch the bus. Blocks. `limited` is the namespace on the connection whose
        operations have a limit. Raises BockdError."""
        self._limited = limited
        self._who = who
        self._release = release
        self._numbers = count(1)
        self._troubled = threading.Event()
        self._deaf = False
        """It could not be watched."""
        self._ending = threading.Event()
        self._answering = ThreadPoolExecutor(ANSWERS_AT_ONCE, "bus answer")
        self._asking = set[threading.Thread]()
        self._sending = threading.Lock()
        """Of those who begin to ask."""
        self._watch: Watching | None = None
        self._first: Watching | None = None
        """The watch with which this run began."""
        self._cluster = connect(settings, index_options(settings))
        try:
            self._ioctx = open_pool(self._cluster, settings)
            self._forget_earlier_runs()
            self._try_to_watch()
            self._first = self._watch
        except BaseException:
            self._cluster.shutdown()
            raise
        self._keeper = threading.Thread(target=self._keep, name="bus", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Leave the bus. Blocks. Nobody asks meanwhile."""
        self._ending.set()
        self._troubled.set()
        self._keeper.join()
        self._end_watch()
        self._answering.shutdown()
        for asking in self._asking:
            asking.join()
        self._ioctx.close()
        self._cluster.shutdown()

    # -- asking ------------------------------------------------------------------------------

    def ask(self, image: str, manner: Manner, limit_seconds: float | None = None) -> str | None:
        """Ask whoever has an image to give it back, and wait until it has, or the manner's limits
        are over: nobody has heard of it, or who has heard is not done, for which `limit_seconds`
        is another limit. Return the name of the gateway that keeps it, if one says so. Blocks.
        Raises BockdError."""
        request = Request(image, manner, f"{asked_by(self._who)}{next(self._numbers)}")
        until = time.monotonic() + (limit_seconds or LIMIT_SECONDS[manner])
        self._send(request.encode(), HEARD_SECONDS[manner])
        answers = self._answers_to(request)
        seen = set(answers)
        try:
            while Answer.HEARD in answers.values() and time.monotonic() < until:
                time.sleep(LOOK_SECONDS)
                answers = self._answers_to(request)
                seen.update(answers)
        finally:
            if seen:
                self._remove(tuple(seen))
        keepers = (key for key, answer in answers.items() if answer == Answer.KEEPS)
        return next((key.removeprefix(request.answers) for key in keepers), None)

    def is_alive(self, author: str) -> bool:
        """Ask whether a run of a gateway, `GATEWAY/RUN`, lives: it does if it answers. Blocks, for
        three seconds if it is dead. Raises BockdError: nobody can be asked."""
        question = Question(author, f"{asked_by(self._who)}{next(self._numbers)}")
        self._send(question.encode(), ALIVE_SECONDS)
        answers = self._answers_to(question)
        if answers:
            self._remove(tuple(answers))
        return bool(answers)

    def find_alive(
        self, authors: Callable[[], Collection[str]], inquiry: Inquiry | None = None
    ) -> str | None:
        """Ask for runs, again and again, before something is done that cannot be undone if one of
        them lives. `authors` names them anew for each round, as one may start meanwhile; `inquiry`
        keeps what was asked, and is gone on with if it has been asked before. Return one that
        lives. None: it is certain that none answers anything any more, though one may live that is
        cut off from the cluster. Blocks, for half a minute if they are dead, or if there are none.
        Raises UnavailableError: that cannot be certain; BockdError."""
        inquiry = Inquiry() if inquiry is None else inquiry
        began = boot_seconds()
        while True:
            asked_at, all_heard = boot_seconds(), True
            inquiry.begin_round()
            named = authors()
            inquiry.name(named)
            for author in named:
                question = Question(author, f"{asked_by(self._who)}{next(self._numbers)}")
                all_heard &= self._deliver(question)
                if answers := self._answers_to(question):
                    self._remove(tuple(answers))
                    return author
            inquiry.end_round(all_heard=all_heard)
            if inquiry.is_certain:
                return None
            if asked_at - began >= MOST_CERTAIN_SECONDS:
                raise UnavailableError(
                    "whether another gateway lives is not known: somebody who watches the bus does "
                    "not acknowledge questions, or not in time, or it has just been started; try "
                    "again"
                )
            time.sleep(max(0.0, asked_at + ROUND_SECONDS - boot_seconds()))

    def _deliver(self, question: Question) -> bool:
        """Send a question, and wait for the end of that itself. Return whether all who watch have
        acknowledged it. Raises UnavailableError: nobody may have heard it."""
        sent = self._begin_to_send(question.encode(), ALIVE_SECONDS)
        if not sent.ended.wait(DELIVERED_SECONDS):
            raise UnavailableError(
                "whether another gateway lives is not known: the cluster did not deliver the "
                f"question in {DELIVERED_SECONDS:.0f} s; try again"
            )
        sent.refuse_unsent()
        return sent.all_heard

    def _send(self, message: str, limit: float) -> None:
        """Send a question; return when all have acknowledged it, or whoever lives should have.
        Raises UnavailableError: it was not sent, so that nobody can have heard it."""
        sent = self._begin_to_send(message, limit)
        sent.ended.wait(limit)
        sent.refuse_unsent()

    def _begin_to_send(self, message: str, limit: float) -> _Sent:
        sent = _Sent()
        asking = threading.Thread(
            target=self._notify, args=(message, limit, sent), name="bus question", daemon=True
        )
        with self._sending:
            self._asking = {one for one in self._asking if one.is_alive()}
            try:
                asking.start()
            except RuntimeError as error:
                raise UnavailableError(
                    "asking the other gateways: no thread can be started"
                ) from error
            self._asking.add(asking)
        return sent

    def _notify(self, message: str, limit: float, sent: _Sent) -> None:
        """In a thread of its own: this may last a second longer than the limit, and as long as an
        operation may if the cluster hangs."""
        try:
            # librados passes on whole seconds, and takes none for 30 (Ceph 16.2).
            self._limited.notify(BUS, message, math.ceil(limit) * 1000)
        except CEPH_ERRORS as error:
            if errno_of(error) != errno.ETIMEDOUT:
                sent.error = from_ceph_error(error, "asking the other gateways")
        else:
            sent.all_heard = True
        sent.ended.set()

    def _answers_to(self, request: Request | Question) -> dict[str, str]:
        with named("looking for answers of other gateways"), rados.ReadOpCtx() as op:
            found, _ = self._limited.get_omap_vals(op, "", request.answers, MOST_ANSWERS)
            self._limited.operate_read_op(op, BUS)
            return {key: (value or b"").decode(errors="replace") for key, value in found}

    def _remove(self, keys: tuple[str, ...]) -> None:
        with named("removing answers"), rados.WriteOpCtx() as op:
            self._limited.remove_omap_keys(op, keys)
            self._limited.operate_write_op(op, BUS)

    def _forget_earlier_runs(self) -> None:
        """Make the object, unless it is there, and remove the answers to those of this gateway's
        runs that died before they saw them."""
        with named("preparing the bus"):
            with rados.WriteOpCtx() as op:
                op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
                self._limited.operate_write_op(op, BUS)
            with rados.ReadOpCtx() as read:
                found, _ = self._limited.get_omap_vals(read, "", ANSWERS, MOST_ANSWERS)
                self._limited.operate_read_op(read, BUS)
                old = answers_to_earlier_runs([key for key, _ in found], self._who)
            if old:
                self._remove(tuple(old))

    # -- being asked -------------------------------------------------------------------------

    def _on_message(self, message: bytes, acknowledge: Acknowledge) -> None:
        """In a thread of Ceph's."""
        question, request = decode_question(message), decode_message(message)
        if question is not None and question.author == author_of(self._who):
            self._in_background(self._say_here, question, acknowledge)
        elif request is not None and not request.number.startswith(asked_by(self._who)):
            self._on_request(request, acknowledge)
        else:
            acknowledge()

    def _on_request(self, request: Request, acknowledge: Acknowledge) -> None:
        until = time.monotonic() + LIMIT_SECONDS[request.manner]
        try:
            given = self._release(request.image, request.manner)
        except Exception:
            log.exception("giving image %s back", request.image)
            acknowledge()
        else:
            self._in_background(self._reply, request, until, given, acknowledge)

    def _in_background(self, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have a call made in a thread that may wait for the cluster."""
        try:
            self._answering.submit(call, *args, **kwargs)
        except RuntimeError:  # it is being closed: whoever asks finds nobody here
            log.debug("a question is not answered")

    def _say_here(self, question: Question, acknowledge: Acknowledge) -> None:
        """Acknowledge the question only with an answer: without one, this run is taken for dead."""
        try:
            self._answer(question, Answer.HERE)
        except BockdError as error:
            log.warning("%s", error)
        else:
            acknowledge()

    def _reply(
        self, request: Request, until: float, given: Future[bool], acknowledge: Acknowledge
    ) -> None:
        """Say how it is, and acknowledge the question then."""
        done, _ = wait([given], AT_ONCE_SECONDS)
        try:
            if not done:
                self._answer(request, Answer.HEARD)
            elif _is_kept(request, given):
                self._answer(request, Answer.KEEPS)
        except BockdError as error:
            log.warning("%s", error)
        finally:
            acknowledge()
        if not done:
            given.add_done_callback(
                lambda given: self._in_background(self._change_answer, request, until, given)
            )

    def _change_answer(self, request: Request, until: float, given: Future[bool]) -> None:
        try:
            # Later than that, who asked has gone, and would not remove it.
            if _is_kept(request, given) and time.monotonic() < until:
                self._answer(request, Answer.KEEPS)
            else:
                self._remove((self._key(request),))
        except BockdError as error:
            log.warning("%s", error)

    def _answer(self, request: Request | Question, answer: Answer) -> None:
        with named("answering another gateway"), rados.WriteOpCtx() as op:
            self._limited.set_omap(op, (self._key(request),), (answer.encode(),))
            self._limited.operate_write_op(op, BUS)

    def _key(self, request: Request | Question) -> str:
        return request.answers + self._who.gateway

    def silent_seconds(self) -> float | None:
        """Return how long ago it was certain that this gateway hears who asks for its run. None: it
        is not, as there is no watch, or a new one: that may have been made between two questions,
        of which it has heard neither. Nobody asks before the first watch of a run is there. For any
        thread."""
        watch, now = self._watch, boot_seconds()
        silent = None if watch is None else watch.silent_seconds()
        if watch is None or silent is None:
            return None
        is_new = watch is not self._first and now - silent - watch.made_at <= GAP_SECONDS
        return None if is_new else silent

    # -- the watch ---------------------------------------------------------------------------

    def _try_to_watch(self) -> None:
        """Watch the bus, in place of an earlier watch. If that cannot be, it is tried again later:
        a full cluster refuses new watches and tells of the loss of others, though messages reach
        these still (Ceph 16.2); so what there is ends last."""
        try:
            made = Watching(self._ioctx, BUS, self._on_message, self._on_loss, WATCH_SECONDS)
        except BockdError as error:
            log.warning("this gateway may not hear what others ask: %s", error)
            self._deaf = True
            self._troubled.set()
            return
        self._deaf = False
        self._end_watch()
        self._watch = made

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _on_loss(self, *_details: object) -> None:
        """In a thread of Ceph's."""
        self._troubled.set()

    def _keep(self) -> None:
        """Watch the bus again whenever the watch is lost."""
        while True:
            self._troubled.wait()
            if self._deaf:
                self._ending.wait(AGAIN_SECONDS)
            if self._ending.is_set():
                return
            self._troubled.clear()
            log.warning("the bus is watched again")
            self._try_to_watch()


def _is_kept(request: Request, given: Future[bool]) -> bool:
    """Return whether an image was not given back, and who asked for it is to be told so."""
    if (error := given.exception()) is not None:
        log.error("giving image %s back", request.image, exc_info=error)
        return False
    return not given.result()
