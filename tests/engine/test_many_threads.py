"""Python threads that share models, and those that do not: nothing tears, nothing hangs.

The free-threaded CPython runs these without a GIL, and must not switch it on again for our modules.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import slmq

THREADS = 6


def together(work: Callable[[int], object]) -> list[object]:
    """Results of ``work(0)`` to ``work(THREADS - 1)``, begun at the same moment."""
    start = threading.Barrier(THREADS)

    def one(i: int) -> object:
        start.wait(timeout=60)
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return [f.result(timeout=120) for f in [pool.submit(one, i) for i in range(THREADS)]]


def test_one_model_for_all_threads(tiny_model_path: Path) -> None:
    with slmq.load(str(tiny_model_path)) as model:

        def work(i: int) -> object:
            tokens = [list(model.generate("abc", max_tokens=6, seed=i % 2).tokens)]
            tokens += [list(model.generate("xyz", max_tokens=3, temperature=0.0).tokens)]
            return tokens, model.logits("abc").tobytes()

        alone = {i: work(i) for i in (0, 1)}
        assert together(work) == [alone[i % 2] for i in range(THREADS)]


def test_a_model_for_each_thread(tiny_model_path: Path) -> None:
    """Loading (recording, packing) and closing at the same time, over one pool of workers."""

    def work(i: int) -> object:
        with slmq.load(str(tiny_model_path), format="int8", n_threads=1 + i % 2) as model:
            return list(model.generate("abc", max_tokens=6, seed=3).tokens)

    alone = work(0)
    assert together(work) == [alone] * THREADS


def test_closing_under_the_others(tiny_model_path: Path) -> None:
    """Whoever still runs ends early with the same tokens, or is told."""
    with slmq.load(str(tiny_model_path)) as model:
        whole = list(model.generate("abc", max_tokens=40, seed=1, ignore_eos=True).tokens)
    model = slmq.load(str(tiny_model_path))

    def work(i: int) -> object:
        if i == 0:
            model.close()
            return []
        try:
            return list(model.generate("abc", max_tokens=40, seed=1, ignore_eos=True).tokens)
        except slmq.ClosedError:
            return []

    for said in together(work):
        assert isinstance(said, list)
        assert said == whole[: len(said)]
    assert model.closed


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded CPython"
)
def test_our_modules_need_no_gil() -> None:
    code = "import sys; from slmq import _native, _sampling; print(sys._is_gil_enabled())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False"
