"""The chat page in a real browser, against a real server of the tiny model.

    python -m pytest tests/server/test_page.py

needs Chromium (`apt-get install chromium`, or SLMQ_CHROMIUM=/path/to/it). With SLMQ_PICTURES=FOLDER
it leaves screenshots there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, chromium
from live_server import LiveServer, live_server, wait_until
from thinking_model import BIAS, thinking_folder

import slmq
from slmq.generation.model import Model
from slmq.server.limits import Limits

needs_chromium = pytest.mark.skipif(
    chromium() is None or sys.platform == "win32",
    reason="needs Chromium: apt-get install chromium, or SLMQ_CHROMIUM=/path/to/it",
)
ANSWERS = "[...document.querySelectorAll('.turn.assistant > .text')].map(e => e.textContent)"
CALL = ".turn.assistant details:not([hidden])"
IDLE = "document.querySelector('#stop').hidden"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
LIKE_A_BROWSER = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(window: Browser, server: LiveServer) -> Iterator[Browser]:
    """The page as a new visitor finds it."""
    window.size(1100, 750)
    window.open(f"{server.url}/")
    window.run("localStorage.clear(); sessionStorage.clear()")
    window.open(f"{server.url}/?again")
    window.wait("document.querySelector('#model').options.length")
    window.faults.clear()
    yield window
    assert not window.faults


def visit(page: Browser, server: LiveServer) -> None:
    """Open the page of a server of this test's own; leave it before that server ends."""
    page.open(f"{server.url}/")
    page.wait("document.querySelector('#model').options.length")


def leave(page: Browser) -> None:
    page.call("Page.navigate", url="about:blank")
    page.wait("location.href === 'about:blank'")


def fill(page: Browser, name: str, value: str) -> None:
    """Fill a box of the settings."""
    page.run(
        f"(e => {{ e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('input', {bubbles: true})) })"
        f"(document.getElementById('{name}'))"
    )


def say(page: Browser, text: str, answers: int = 1) -> str:
    """Type a message, press Enter, and wait for the answer."""
    page.run("document.querySelector('#ask').focus()")
    page.type(text)
    page.press("Enter")
    page.wait(f"{IDLE} && {ANSWERS}.length === {answers}")
    return str(page.run(f"{ANSWERS}.at(-1)"))


def wanted(server: LiveServer, *messages: str, **params: Any) -> str:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
    return server.model.generate(turns, **params).text


def test_browsers_get_the_page_and_others_a_line(server: LiveServer) -> None:
    answered = server.ask("/", headers=LIKE_A_BROWSER)
    assert answered.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in answered.headers["content-security-policy"]
    text = answered.data.decode()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    plain = server.ask("/")
    assert plain.data == b"slmq is running; see /v1/models"
    assert server.ask("/", method="HEAD").data == b""


@needs_chromium
def test_a_conversation(page: Browser, server: LiveServer) -> None:
    fill(page, "max_tokens", "24")
    first = say(page, "Hello")
    assert first == wanted(server, "Hello", max_tokens=24)
    second = say(page, "And you?", 2)
    assert second == wanted(server, "Hello", first, "And you?", max_tokens=24)
    facts = page.run("[...document.querySelectorAll('.facts')].at(-1).textContent")
    for part in ("24 tokens", "tokens/s", "cached)", "first token after", "waited"):
        assert part in facts
    page.wait("/0 running, 0 waiting/.test(document.querySelector('#load').textContent)")
    page.open(f"{server.url}/?reloaded")
    assert page.run(ANSWERS) == [first, second]


@needs_chromium
@pytest.mark.parametrize(
    "stop",
    [
        "document.querySelector('#stop').click()",
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))",
    ],
)
def test_an_answer_is_streamed_and_stopped(page: Browser, model: Model, stop: str) -> None:
    endless = {"max_tokens": 1900, "ignore_eos": True}
    with live_server({"tiny": model}, suggested=endless) as server:
        visit(page, server)
        # The page itself stops when it has seen enough: from here it might come too late.
        page.run(
            "new MutationObserver((_, seen) => {"
            f"  if (({ANSWERS}[0] ?? '').length > 20) {{ seen.disconnect(); {stop} }}"
            "}).observe(document.querySelector('#log'), {subtree: true, childList: true})"
        )
        shown = say(page, "Go on and on")
        assert "stopped" in page.run("document.querySelector('.facts').textContent")
        leave(page)
        wait_until(lambda: server.idle)
    whole = wanted(server, "Go on and on", **endless)
    assert whole.startswith(shown)
    assert 20 < len(shown) < len(whole)


@needs_chromium
def test_regenerate_and_edit(page: Browser, server: LiveServer) -> None:
    fill(page, "max_tokens", "12")
    first = say(page, "One")
    last = "[...document.querySelectorAll('.turn button')].at(-1)"
    assert page.run(f"{last}.textContent") == "Regenerate"
    fill(page, "temperature", "1")
    fill(page, "seed", "7")
    page.run(f"{last}.click()")
    page.wait(f"{IDLE} && {ANSWERS}[0] !== {json.dumps(first)}")
    drawn = wanted(server, "One", max_tokens=12, temperature=1.0, seed=7)
    assert page.run(ANSWERS) == [drawn]
    page.click(".turn.user button")
    page.run("document.querySelector('.turn.user textarea').select()")
    page.type("Two")
    page.press("Enter")
    page.wait(f"document.querySelector('.turn.user .text')?.textContent === 'Two' && {IDLE}")
    assert page.run(ANSWERS) == [wanted(server, "Two", max_tokens=12, temperature=1.0, seed=7)]


@needs_chromium
def test_enter_that_ends_a_composition_does_not_send(page: Browser) -> None:
    """Japanese input: Enter takes what the input method offers."""
    fill(page, "max_tokens", "4")
    page.run("document.querySelector('#ask').focus()")
    page.compose("にほん")
    page.press("Enter", code=229)  # what browsers tell of keys that an input method takes
    assert page.run("document.querySelectorAll('.turn').length") == 0
    page.type("日本")
    assert page.run("document.querySelector('#ask').value") == "日本"
    page.press("Enter", shift=True)
    page.type("語")
    page.press("Enter")
    page.wait(f"{IDLE} && {ANSWERS}.length === 1")
    assert page.run("document.querySelector('.turn.user .text').textContent") == "日本\n語"


@needs_chromium
def test_probabilities_by_pointer_and_by_keys(page: Browser, server: LiveServer) -> None:
    page.run("document.querySelector('#probabilities').click()")
    fill(page, "max_tokens", "8")
    text = say(page, "Hello")
    assert text == wanted(server, "Hello", max_tokens=8)
    tokens = page.run("[...document.querySelectorAll('.token')].map(e => e.textContent)")
    assert "".join(tokens) == text
    page.hover(".token")
    assert page.wait("!document.querySelector('#tip').hidden")
    rows = page.run("[...document.querySelectorAll('#tip tr')].map(e => e.textContent)")
    assert len(rows) >= 5
    assert all("%" in row for row in rows)
    page.hover("h1")
    page.run("document.querySelector('.turn.assistant > .text').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.run("document.querySelectorAll('.token')[1].classList.contains('here')")
    assert "%" in page.run("document.querySelector('#said').textContent")


@needs_chromium
def test_a_schema_and_tools(page: Browser, server: LiveServer) -> None:
    fill(page, "max_tokens", "200")
    fill(page, "schema", "{nonsense")
    assert page.run("document.querySelector('#schema').getAttribute('aria-invalid')") == "true"
    fill(page, "schema", json.dumps(SCHEMA))
    assert set(json.loads(say(page, "Is it?"))) == {"ok"}
    page.run("document.querySelector('#new').click()")
    fill(page, "schema", "")
    tools = [{"name": "measure", "parameters": SCHEMA}]
    fill(page, "tools", json.dumps(tools))
    fill(page, "tool_choice", "required")
    say(page, "Measure it")
    assert page.run(f"document.querySelector('{CALL} summary').textContent") == "Call of measure"
    assert not page.run(f"document.querySelector('{CALL}').open")
    told = page.run(f"document.querySelector('{CALL} pre').textContent")
    assert set(json.loads(told)) == {"ok"}
    fill(page, "tool_choice", "none")
    page.run("document.querySelector('.turn.assistant textarea').value = '12'")
    page.run("[...document.querySelectorAll('.turn button')].at(-1).click()")
    page.wait(f"{IDLE} && {ANSWERS}.length === 2")
    assert page.run("document.querySelector('.turn.tool pre').textContent") == "12"


@needs_chromium
def test_reasoning_is_folded(window: Browser, tiny_model_path: Path, tmp_path: Path) -> None:
    folder = thinking_folder(tiny_model_path, tmp_path / "thinker")
    given = {"temperature": 1.0, "seed": 3, "logit_bias": BIAS, "max_tokens": 200}
    with (
        slmq.load(folder, n_ctx=2048) as model,
        live_server({"thinker": model}, suggested=given) as server,
    ):
        visit(window, server)
        text = say(window, "hi")
        result = model.generate([{"role": "user", "content": "hi"}], **given)
        assert text == result.text
        thought = "document.querySelector('.turn details')"
        assert window.run(f"{thought}.querySelector('.text').textContent") == result.reasoning
        assert not window.run(f"{thought}.open || {thought}.hidden")
        leave(window)


@needs_chromium
def test_faults_are_told(page: Browser, server: LiveServer) -> None:
    fill(page, "max_tokens", "999999")
    say(page, "Hello")
    assert "2048" in page.run("document.querySelector('.turn .fault').textContent")
    page.faults.clear()  # the browser notes the status, too


@needs_chromium
def test_a_key_is_asked_for(window: Browser, model: Model) -> None:
    with live_server({"tiny": model}, Limits(keys=("open-sesame",))) as server:
        window.open(f"{server.url}/")
        window.wait("document.querySelector('#key-dialog').open")
        window.type("open-sesame")
        window.press("Enter")
        window.wait("document.querySelector('#model').options.length")
        fill(window, "max_tokens", "4")
        say(window, "Hello")
        leave(window)


@needs_chromium
def test_a_screen_reader_finds_its_way(page: Browser) -> None:
    fill(page, "max_tokens", "4")
    say(page, "Hello")
    page.click("#open-settings")
    names = page.names()
    for pair in (
        ("log", "Conversation"),
        ("textbox", "Message"),
        ("combobox", "Model"),
        ("button", "Send"),
        ("button", "Regenerate"),
        ("complementary", "Settings"),
        ("spinbutton", "Temperature"),
        ("textbox", "System prompt"),
    ):
        assert pair in names
    nameless = [role for role, name in names if role in ("button", "textbox") and not name]
    assert not nameless


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1100, 390])
def test_nothing_is_wider_than_the_window(page: Browser, width: int, dark: bool) -> None:
    page.size(width, 750, dark=dark, phone=width < 500)
    page.run("document.querySelector('#probabilities').click()")
    fill(page, "max_tokens", "60")
    say(page, "What is the capital of Japan? " + "A" * 200)
    for settings in (False, True):
        if settings:
            page.click("#open-settings")
        assert page.run("document.documentElement.scrollWidth") <= width
        colours = page.run(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body)"
            ".backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).map(Number))"
        )
        assert (sum(colours[0]) > sum(colours[1])) == dark
        if folder := os.environ.get("SLMQ_PICTURES"):
            name = f"page-{'dark' if dark else 'light'}-{width}{'-settings' * settings}.png"
            page.picture(Path(folder) / name)
