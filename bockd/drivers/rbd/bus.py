"""The bus: an object that all gateways watch, by which they ask each other for images.

A message reaches all who watch the object, and whoever sent it goes on when all have acknowledged
it, or a limit is over. What is said is in bockd.drivers.rbd.messages.

Two connections take part. The watch has one of its own, on which messages come one after the other;
each is acknowledged when this gateway has given the image back (bockd.drivers.rbd.watching), so
that many images are given back at once. Messages are sent, and answers are written and read, on the
connection with limits; and no call of the cluster waits in a callback of Ceph's.

A watch that is lost is not told of messages any more. It is made again by a thread, since the
callback that tells of the loss may not.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rados
from bockd.drivers.rbd.connection import connect, open_pool
from bockd.drivers.rbd.errors import CEPH_ERRORS, errno_of, from_ceph_error, named
from bockd.drivers.rbd.messages import (
    ALIVE_SECONDS,
    BUSY_PREFIX,
    HERE_PREFIX,
    LIMIT_SECONDS,
    Manner,
    Question,
    Request,
    asked_by,
    author_of,
    busy_of_earlier_runs,
    decode_message,
    decode_question,
    here_of_earlier_runs,
)
from bockd.drivers.rbd.records import Identity
from bockd.drivers.rbd.settings import index_options
from bockd.drivers.rbd.watching import Acknowledge, Watching
from bockd.errors import BockdError

log = logging.getLogger(__name__)

BUS = "bus"
"""The object's name."""

WATCH_SECONDS = 5
"""How long one that has died is waited for by those who ask; how long the network may be gone."""

AGAIN_SECONDS = 1.0
"""Between attempts to watch the bus again, and between looks whether the watch still is one."""

ANSWERS_AT_ONCE = 4
"""Threads that write answers."""

MOST_ANSWERS = 10_000
"""Keys that are looked at at a start; there are as many as gateways died, or were too late."""

Release = Callable[[str, Manner], "Future[bool]"]
"""Gives an image back, if this gateway has it. Called in a thread of Ceph's; all it does there is
to hand over to the owner thread. False: it is kept, since clients use it."""


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
        self._closing = False
        self._watch: Watching | None = None
        self._answering = ThreadPoolExecutor(ANSWERS_AT_ONCE, "bus answer")
        self._cluster = connect(settings, index_options(settings))
        try:
            self._ioctx = open_pool(self._cluster, settings)
            self._forget_earlier_runs()
            self._begin_watch()
        except BaseException:
            self._cluster.shutdown()
            raise
        self._keeper = threading.Thread(target=self._keep, name="bus", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Leave the bus. Blocks. Nobody asks meanwhile."""
        self._closing = True
        self._troubled.set()
        self._keeper.join()
        self._end_watch()
        self._answering.shutdown()
        self._ioctx.close()
        self._cluster.shutdown()

    # -- asking ------------------------------------------------------------------------------

    def ask(self, image: str, manner: Manner) -> str | None:
        """Ask whoever has an image to give it back, and wait until all have acknowledged that, or
        the manner's limit is over. Return the name of the gateway that keeps it, if one says so.
        Blocks. Raises BockdError."""
        number = f"{asked_by(self._who)}{next(self._numbers)}"
        request = Request(image, manner, number)
        try:
            self._limited.notify(BUS, request.encode(), int(LIMIT_SECONDS[manner] * 1000))
        except CEPH_ERRORS as error:
            if errno_of(error) != errno.ETIMEDOUT:
                raise from_ceph_error(error, "asking the other gateways") from error
        return self._take_answer(request.busy_key)

    def is_alive(self, author: str) -> bool:
        """Ask whether a run of a gateway, `GATEWAY/RUN`, lives: it does if it answers. Blocks, for
        three seconds if it is dead. Raises BockdError: nobody can be asked."""
        question = Question(author, f"{asked_by(self._who)}{next(self._numbers)}")
        try:
            self._limited.notify(BUS, question.encode(), ALIVE_SECONDS * 1000)
        except CEPH_ERRORS as error:
            if errno_of(error) != errno.ETIMEDOUT:
                raise from_ceph_error(error, "asking the other gateways") from error
        return self._take_answer(question.key) is not None

    def _take_answer(self, key: str) -> str | None:
        with named("looking for an answer of another gateway"):
            with rados.ReadOpCtx() as op:
                found, _ = self._limited.get_omap_vals_by_keys(op, (key,))
                self._limited.operate_read_op(op, BUS)
                answer: bytes | None = dict(found).get(key)
            if answer is None:
                return None
            self._remove((key,))
        return answer.decode(errors="replace")

    def _remove(self, keys: tuple[str, ...]) -> None:
        with rados.WriteOpCtx() as op:
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
                found, _ = self._limited.get_omap_vals(read, "", BUSY_PREFIX, MOST_ANSWERS)
                self._limited.operate_read_op(read, BUS)
                old = busy_of_earlier_runs([key for key, _ in found], self._who)
            with rados.ReadOpCtx() as read:
                found, _ = self._limited.get_omap_vals(read, "", HERE_PREFIX, MOST_ANSWERS)
                self._limited.operate_read_op(read, BUS)
                old += here_of_earlier_runs([key for key, _ in found], self._who)
            if old:
                self._remove(tuple(old))

    # -- being asked -------------------------------------------------------------------------

    def _on_message(self, message: bytes, acknowledge: Acknowledge) -> None:
        """In a thread of Ceph's."""
        if (question := decode_question(message)) is not None:
            if question.author == author_of(self._who):
                self._write(question.key, question.author, acknowledge)
            else:
                acknowledge()
            return
        request = decode_message(message)
        if request is None or request.number.startswith(asked_by(self._who)):
            acknowledge()
            return
        try:
            given = self._release(request.image, request.manner)
        except Exception:
            log.exception("giving image %s back", request.image)
            acknowledge()
        else:
            given.add_done_callback(lambda done: self._on_given(request, done, acknowledge))

    def _on_given(self, request: Request, given: Future[bool], acknowledge: Acknowledge) -> None:
        """In any thread: an image is given back, or is not. That may be later than who asked for it
        has waited."""
        if (error := given.exception()) is not None:
            log.error("giving image %s back", request.image, exc_info=error)
        elif not given.result():
            self._write(request.busy_key, self._who.gateway, acknowledge)
            return
        acknowledge()

    def _write(self, key: str, answer: str, acknowledge: Acknowledge) -> None:
        """Leave an answer, and acknowledge the question then, in another thread."""

        def write() -> None:
            try:
                with named("answering another gateway"), rados.WriteOpCtx() as op:
                    self._limited.set_omap(op, (key,), (answer.encode(),))
                    self._limited.operate_write_op(op, BUS)
            except BockdError as error:
                log.warning("%s", error)
            finally:
                acknowledge()

        try:
            self._answering.submit(write)
        except RuntimeError:  # it is being closed, or there can be no more threads
            acknowledge()

    # -- the watch ---------------------------------------------------------------------------

    def _begin_watch(self) -> None:
        self._watch = Watching(self._ioctx, BUS, self._on_message, self._on_loss, WATCH_SECONDS)

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
            if self._closing:
                return
            self._troubled.clear()
            log.warning("the bus is watched again")
            self._end_watch()
            try:
                self._begin_watch()
            except BockdError as error:
                log.warning("the bus cannot be watched: %s", error)
                self._troubled.wait(AGAIN_SECONDS)
                self._troubled.set()
