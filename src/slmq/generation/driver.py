"""The thread that steps a scheduler, only as long as there is something to do.

It begins with the first request and ends when nobody can go on: an idle model has no thread, so
nothing wakes up, nothing has to be stopped, and a fork of the process at rest loses nothing.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

__all__ = ["Driver", "Turn", "guard_at_fork"]


class Driver:
    """Calls `step` until it returns False and nothing has changed since.

    Parameters
    ----------
    lock : threading.Lock
        Of the scheduler; `wake` and `fail` are called with it held, `stop` without.
    step : callable
        Returns whether there was anything to do.
    fail : callable
        Gets an error that `step` raised, which none of its own ends in.
    """

    def __init__(
        self,
        lock: threading.Lock,
        step: Callable[[], bool],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._lock = lock
        self._step = weakref.WeakMethod(step)
        self._fail = weakref.WeakMethod(fail)
        self._thread: threading.Thread | None = None
        self._changes = 0
        self._stopped = False
        _all.add(self)

    def wake(self) -> bool:
        """Something has changed: steps may be possible again.

        False if no thread makes them: the caller has to. While the interpreter shuts down that is
        the main thread; others wait for their end, which must not find them in native code.
        """
        self._changes += 1
        if self._stopped:
            return threading.current_thread() is not threading.main_thread()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="slmq-driver", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def stop(self) -> None:
        """Step no more, and wait until the step that is under way has ended.

        Called without the lock, which is held where a thread is started.
        """
        with self._lock:
            self._stopped = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """In a forked child: the thread is not here."""
        self._thread = None

    def _run(self) -> None:
        while True:
            with self._lock:
                seen = self._changes
                if self._stopped:
                    self._thread = None
                    return
            if self._one_step():
                continue
            with self._lock:
                if seen == self._changes:
                    self._thread = None
                    return

    def _one_step(self) -> bool:
        """Holds the scheduler for one step only, so that a model nobody holds can go."""
        step, fail = self._step(), self._fail()
        if step is None or fail is None:
            return False
        try:
            return step()
        except BaseException as error:
            with self._lock:
                fail(error)
            return False


class Turn:
    """A lock that is not taken twice by one thread while another waits for it.

    An ordinary one goes to whoever asks first once it is free, so a thread that makes one step
    after the other may keep it. Here who waits stands in the door, past which all must go.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._room = threading.Lock()

    def __enter__(self) -> None:
        with self._door:
            self._room.acquire()

    def __exit__(self, *_: object) -> None:
        self._room.release()

    def forked(self) -> None:
        """In a child of a fork: whoever stood in the door is not here."""
        self._door = threading.Lock()


class Resting(Protocol):
    """What can be held still while the process forks."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Nothing runs within the block."""

    def forked(self) -> None:
        """In the child: forget the other threads."""


class Held(threading.local):
    """What a thread that forks holds still: two may fork at a time."""

    def __init__(self) -> None:
        self.all = ExitStack()


_all: weakref.WeakSet[Driver] = weakref.WeakSet()
_guarded: weakref.WeakSet[Resting] = weakref.WeakSet()
_held = Held()


def guard_at_fork(scheduler: Resting) -> None:
    """Let no run be under way when the process forks: a child could never end it."""
    _guarded.add(scheduler)


@atexit.register
def _stop_all() -> None:
    """No thread may run native code while the interpreter is taken apart."""
    for driver in list(_all):
        driver.stop()


def _before_fork() -> None:
    for scheduler in sorted(_guarded, key=id):  # in one order, for threads that fork
        _held.all.enter_context(scheduler.at_rest())


def _after_fork_in_parent() -> None:
    _held.all.close()


def _after_fork_in_child() -> None:
    _held.all.close()
    for scheduler in list(_guarded):
        scheduler.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
