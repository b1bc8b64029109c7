"""Threads that ask the network, and the end of the program.

A name lookup or a silent server may hang longer than anybody wants to wait, so these threads are
daemons: the program may end while they live. Yet OpenSSL tears its tables down when the process
ends, and a thread that is reading certificates at that moment crashes it. So the end of the program
waits a moment for those that are about to finish.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable

__all__ = ["in_background"]

LAST_WAIT_S = 2.0
"""Seconds that the end of the program waits for all these threads together. One that is busy in
OpenSSL (certificates are read, a handshake is worked out) takes a fraction of it; one that waits
for the network does no harm."""

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def in_background(work: Callable[[], None]) -> None:
    """Run `work` in a thread of its own that does not keep the program from ending.

    Parameters
    ----------
    work : callable
        Takes nothing, raises nothing.
    """
    thread = threading.Thread(target=work, daemon=True)
    _threads.add(thread)
    thread.start()


@atexit.register
def _wait_for_the_last() -> None:
    until = time.monotonic() + LAST_WAIT_S
    for thread in list(_threads):
        if thread.ident is not None:
            thread.join(max(0.0, until - time.monotonic()))
