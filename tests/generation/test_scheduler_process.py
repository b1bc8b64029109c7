"""A scheduler and its process: forks, exits and collectors while answers are being made."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import pytest

import slmq

PROMPT = [5, 17, 3, 60, 21, 9, 44]


def ran(tiny_model_path: Path, program: str) -> str:
    """What a program printed that ended well, and in time."""
    begin = f"""
        import atexit, os, sys, threading, time
        def say(model, n=20):
            return model.generate({PROMPT}, max_tokens=n, ignore_eos=True).tokens
        import slmq
        path = {str(tiny_model_path)!r}
        """
    source = textwrap.dedent(begin) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", source],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("n_ctx=")]
    assert (done.returncode, said) == (0, [])
    return done.stdout


FOREVER = """
def talk(model, begun):
    while True:
        with model.stream([7, 8], max_tokens=4000, ignore_eos=True) as stream:
            for _ in stream:
                begun.set()
def busy(model, n=3):
    for _ in range(n):
        begun = threading.Event()
        threading.Thread(target=talk, args=(model, begun), daemon=True).start()
        assert begun.wait(30)
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def test_the_interpreter_ends_while_answers_run(tiny_model_path: Path) -> None:
    program = FOREVER + "model = slmq.load(path, n_ctx=4096)\nbusy(model)\nprint('end')\n"
    for _ in range(3):
        assert ran(tiny_model_path, program) == "end\n"


def test_the_interpreter_ends_with_open_streams(tiny_model_path: Path) -> None:
    program = """
    model = slmq.load(path, n_ctx=4096)
    stream = model.stream([1, 2], max_tokens=4000, ignore_eos=True)
    next(stream)
    print("end")
    """
    assert ran(tiny_model_path, program) == "end\n"


def test_an_answer_while_the_interpreter_ends(tiny_model_path: Path) -> None:
    """No thread makes runs any more: whoever waits makes them."""
    program = """
    import slmq.generation.driver as driver
    model = slmq.load(path)
    said = say(model)
    driver._stop_all()
    assert say(model) == said
    stream = model.stream([1], max_tokens=3)
    print(len(list(stream)))
    """
    assert ran(tiny_model_path, program) == "3\n"


@needs_fork
def test_forks_while_answers_run(tiny_model_path: Path) -> None:
    """Parent and child go on, each with its own, and both say what they said before."""
    program = (
        FOREVER
        + """
model = slmq.load(path, n_ctx=4096, n_threads=2)
before = say(model)
busy(model)
for _ in range(8):
    child = os.fork()
    if child == 0:
        ok = say(model) == before and model.generate([9], max_tokens=1).tokens
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert say(model) == before
with model.exclusive() as engine:
    child = os.fork()
    if child == 0:
        sequence = engine.sequence()
        engine.feed(sequence, [1, 2])
if child == 0:
    os._exit(0 if say(model) == before else 1)
assert os.waitpid(child, 0)[1] == 0
print("end")
"""
    )
    assert ran(tiny_model_path, program) == "end\n"


@needs_fork
def test_two_threads_fork_beside_two_models(tiny_model_path: Path) -> None:
    program = (
        FOREVER
        + """
models = [slmq.load(path, n_ctx=4096) for _ in range(2)]
before = say(models[0])
for model in models:
    busy(model, 1)
codes = []
def forks():
    for _ in range(6):
        child = os.fork()
        if child == 0:
            os._exit(0 if all(say(model) == before for model in models) else 1)
        codes.append(os.waitpid(child, 0)[1])
threads = [threading.Thread(target=forks) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
print(codes, say(models[1]) == before)
"""
    )
    assert ran(tiny_model_path, program) == f"{[0] * 12} True\n"


def test_a_model_that_is_dropped_frees_everything(tiny_model_path: Path) -> None:
    """Without close(), with answers that nobody reads and one that is half read."""
    model = slmq.load(tiny_model_path, n_ctx=4096)
    streams = [model.stream([i], max_tokens=3000, ignore_eos=True) for i in range(3)]
    next(streams[0])
    scheduler, engine = weakref.ref(model._scheduler), weakref.ref(model.engine)
    del streams, model
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "slmq-driver":
            thread.join(30)
    assert scheduler() is None
    assert engine() is None


def test_streams_that_the_collector_takes(tiny_model_path: Path) -> None:
    """In a cycle, taken at any moment, also while this thread or the driver holds a lock."""

    class Holder:
        def __init__(self, stream: object) -> None:
            self.stream, self.me = stream, self

    with slmq.load(tiny_model_path, n_ctx=4096) as model:
        whole = model.generate(PROMPT, max_tokens=10, ignore_eos=True)
        threshold = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            for i in range(40):
                holder = Holder(model.stream([i], max_tokens=3000, ignore_eos=True))
                next(holder.stream)  # type: ignore[call-overload]
                del holder
                again = model.generate(PROMPT, max_tokens=10, ignore_eos=True)
                assert again.tokens == whole.tokens
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        model.generate(PROMPT, max_tokens=1)
        stats = model.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.submitted == stats.finished + stats.cancelled == 82


def test_an_idle_model_has_no_thread(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path) as model:
        model.generate(PROMPT, max_tokens=3)
        for thread in threading.enumerate():
            if thread.name == "slmq-driver":
                thread.join(10)
        assert not any(t.name == "slmq-driver" for t in threading.enumerate())
        assert len(model.generate(PROMPT, max_tokens=3, ignore_eos=True).tokens) == 3
