"""Chromium without a window, driven over a pipe: no driver, no further package.

Commands are those of the DevTools protocol, each a line of JSON that ends with NUL.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
    "--force-color-profile=srgb", "--hide-scrollbars",
)  # fmt: skip
# The browser looks for its pipes at the descriptors 3 and 4.
WITH_PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in zip((3, 4), ends):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
TEXTS = {"Enter": "\r"}
CODES = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}


def chromium() -> str | None:
    """Where it is; None if it is not installed."""
    return os.environ.get("SLMQ_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A page in a browser.

    Attributes
    ----------
    faults : list of str
        What the page's scripts failed with, or its policy forbade.
    """

    def __init__(self, send: int, receive: int) -> None:
        self.faults: list[str] = []
        self._out = os.fdopen(send, "wb", buffering=0)
        self._in = os.fdopen(receive, "rb", buffering=0)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._out.close()
        self._in.close()

    def call(self, method: str, /, **params: Any) -> Any:
        """Send a command and wait for what it gives."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression; of a promise, what it resolves to."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true."""
        end_s = time.monotonic() + LONGEST_S
        while not (value := self.run(script)):
            assert time.monotonic() < end_s, f"never true: {script}; {self.faults}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Text as a keyboard gives it to what has the focus."""
        self.call("Input.insertText", text=text)

    def compose(self, text: str) -> None:
        """Text that an input method shows, and has not finished."""
        self.call(
            "Input.imeSetComposition", text=text, selectionStart=len(text), selectionEnd=len(text)
        )

    def press(self, key: str, *, shift: bool = False, code: int | None = None) -> None:
        """A key, down and up; `code` in place of its own."""
        pressed: dict[str, Any] = {
            "key": key, "code": key, "modifiers": 8 if shift else 0,
            "windowsVirtualKeyCode": CODES[key] if code is None else code,
        }  # fmt: skip
        if code is None and key in TEXTS:
            pressed["text"] = TEXTS[key]
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed)
        pressed.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str) -> None:
        x, y = self._middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def names(self) -> list[tuple[str, str]]:
        """Role and name of all that a screen reader tells of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Of the window, and what its user likes."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def picture(self, path: Path) -> None:
        """A screenshot, as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _middle(self, selector: str) -> tuple[float, float]:
        quoted = json.dumps(selector)
        self.run(f"document.querySelector({quoted}).scrollIntoView({{block: 'nearest'}})")
        box = self.run(
            f"(r => [r.x, r.y, r.width, r.height])(document.querySelector({quoted})"
            ".getClientRects()[0])"
        )
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def _receive(self) -> dict[str, Any]:
        """The next answer; what else the browser tells is looked at on the way."""
        while b"\0" not in self._rest:
            data = self._in.read(1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        self._note(found.get("method"), found.get("params", {}))
        return found

    def _note(self, method: str | None, params: Mapping[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.faults.append(str(params["exceptionDetails"]))
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(params["entry"]["text"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`."""
    program = chromium()
    assert program is not None
    command = [program, *OPTIONS, f"--user-data-dir={folder}"]
    if hasattr(os, "getuid") and os.getuid() == 0:
        command.append("--no-sandbox")
    theirs_in, send = os.pipe()
    receive, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_PIPES, str(theirs_in), str(theirs_out), *command],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Browser(send, receive)
        try:
            yield page
        finally:
            page.close()
    finally:
        process.terminate()
        process.wait(LONGEST_S)
