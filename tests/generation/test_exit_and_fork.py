"""Processes that end or fork while threads work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXIT = """
import slmq, sys, threading, time
model = slmq.load(sys.argv[1], n_ctx=100000)
began = threading.Event()
def work():
{work}
threading.Thread(target=work, daemon=True).start()
began.wait(30); time.sleep(0.3)
sys.exit(3)
"""

WORK = {
    "stream": """
    for _ in model.stream([5, 6], max_tokens=90000, ignore_eos=True): began.set()
""",
    "generate": """
    began.set(); model.generate([5, 6], max_tokens=90000, ignore_eos=True)
""",
    "masks": """
    drawn = {"regex": "[a-z]{15000}", "temperature": 1.0, "max_tokens": 90000}
    for _ in model.stream([5, 6], **drawn): began.set()
""",
    "logits": """
    began.set()
    while True: model.logits([5] * 2000)
""",
    "pack": """
    import numpy as np
    import slmq._native as native
    values = np.random.default_rng(0).standard_normal((512, 512), np.float32).view(np.uint8)
    began.set()
    while True:
        native.Matrix.pack("f32", values.reshape(-1), 512, 512, "q4g32s", None, None, 1)
""",
}


@pytest.mark.parametrize("work", WORK.values(), ids=list(WORK))
def test_a_thread_at_work_does_not_abort_the_end(work: str, tiny_model_path: Path) -> None:
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-c", EXIT.format(work=work), tiny_model_path],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        said = [line for line in run.stderr.splitlines() if not line.startswith("n_ctx=")]
        assert (run.returncode, said) == (3, [])


FORK = """
import os, signal, slmq, sys, threading, time
model = slmq.load(sys.argv[1], n_ctx=100000)
short = {"max_tokens": 2, "regex": "[a-z]{15000}", "temperature": 1.0, "seed": 1}
want = model.generate([5], **short).tokens
long = {**(short if sys.argv[2] == "constrained" else {"ignore_eos": True}), "max_tokens": 15000}
threading.Thread(target=lambda: model.generate([5], **long), daemon=True).start()
time.sleep(0.3)
child = os.fork()
if child == 0:
    os._exit(7 if model.generate([5], **short).tokens == want else 8)
for _ in range(300):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        os._exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, signal.SIGKILL)
os._exit(9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("kind", ["free", "constrained"])
def test_a_child_answers_that_was_forked_while_a_thread_worked(
    tiny_model_path: Path, kind: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, tiny_model_path, kind],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 7, run.stderr
