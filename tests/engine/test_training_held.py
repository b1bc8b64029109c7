"""Training's operators that are held: broken off, shared by threads, given arrays that change."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np
import pytest
from kernel_cases import normal, pack
from training_cases import rows

import slmq._native as _native


@pytest.mark.skipif(sys.platform == "win32", reason="no signal reaches a process by itself there")
def test_ctrl_c_ends_what_was_held() -> None:
    """Minutes of work were asked for; what is left of it is forgotten."""
    o = _native.Operators(1)
    x, y = rows(normal(512, 512, seed=1)), rows(np.zeros((512, 512)))
    o.hold()
    for _ in range(50_000):
        o.multiply(x, x, y, 512, 512)
    ctrl_c = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        o.run_held()
    ctrl_c.join()
    y.fill(0.0)
    o.run_held()
    assert not y.any()
    o.multiply(x, x, y, 512, 512)
    assert y.any()


def test_what_a_broken_pass_left_is_forgotten() -> None:
    o = _native.Operators(1)
    x, y = rows(np.ones((4, 32))), rows(np.zeros((4, 32)))
    o.hold()
    o.add(x, y)
    o.hold()  # nobody has run or dropped it
    o.add(x, y)
    o.run_held()
    assert (y == 1.0).all()


def test_only_the_thread_that_holds_waits() -> None:
    o = _native.Operators(1)
    x, y = rows(np.ones((4, 32))), rows(np.zeros((4, 32)))
    refused = []

    def other() -> None:
        o.add(x, y)
        for call in (o.hold, o.run_held, o.drop_held):
            with pytest.raises(RuntimeError, match="another thread holds") as e:
                call()
            refused.append(e)

    o.hold()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (y == 1.0).all()
    assert len(refused) == 3
    o.drop_held()


def test_held_calls_keep_the_numbers_that_were_checked() -> None:
    o = _native.Operators(1)
    x, y = rows(normal(5, 32, seed=1)), rows(np.zeros((2, 32)))
    picked = np.array([1, 3], np.int32)
    o.hold()
    o.select(x, picked, y)
    picked[:] = 1 << 30
    o.run_held()
    assert (y == x[[1, 3]]).all()


def test_a_loss_is_not_held() -> None:
    o = _native.Operators(1)
    head = _native.Head(pack(normal(32, 32), "f32"), None, "a16g32", 0.0)
    o.hold()
    with pytest.raises(RuntimeError, match="run_held"):
        o.loss(head, rows(normal(2, 32)), np.array([1, 2], np.int32), 1.0, None)
    o.drop_held()
