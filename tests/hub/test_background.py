"""The program ends while threads still ask the network."""

from __future__ import annotations

import subprocess
import sys

import pytest

READING = """
import ssl
from slmq.hub.background import in_background

def read():
    ssl.create_default_context()
    print("read", flush=True)

in_background(read)
"""

HANGING = """
import time
from slmq.hub.background import in_background
in_background(lambda: time.sleep(600))
"""


@pytest.mark.parametrize(("program", "said"), [(READING, "read\n"), (HANGING, "")])
def test_the_program_ends_with_threads_that_ask(program: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr
