"""`model="auto"`: two models of the server and a stub of a remote one, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from encoder_files import sentence_folder
from live_server import LiveServer, live_server, wait_until
from openai import OpenAI
from stub_openai import StubOpenAI, stub_openai
from tiny_heads import EASY, HARD, tiny_heads

import slmq
from slmq import Router
from slmq.embedding.routing.ledger import read_log, report_of

CONFIG = """
heads = "heads.npz"
log = "log.jsonl"
log_text = true
{top}
[policy]
target = 0.6
timeout_s = 1
{policy}
[[models]]
name = "tiny"
target = "x"
quality = 0.5
[[models]]
name = "other"
target = "y"
quality = 0.45
price_in = 0.1
price_out = 0.1
[[models]]
name = "far"
url = "{url}"
model = "far-1"
key_env = "FAR_KEY"
price_in = 2.5
price_out = 10
quality = 0.9
[[rules]]
name = "named"
match = "other, please"
use = ["other"]
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slmq.Encoder]:
    with slmq.load_encoder(sentence_folder(tmp_path_factory.mktemp("e") / "m")) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(longer_model_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(longer_model_path) as opened:
        yield opened


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubOpenAI]:
    monkeypatch.setenv("FAR_KEY", "secret")
    with stub_openai() as stub:
        yield stub


@contextmanager
def serving(
    folder: Path,
    encoder: slmq.Encoder,
    model: slmq.Model,
    url: str,
    top: str = "",
    policy: str = "",
) -> Iterator[LiveServer]:
    tiny_heads(encoder).save(folder / "heads.npz")
    path = folder / "router.toml"
    path.write_text(CONFIG.format(url=url, top=top, policy=policy), "utf-8")
    with ExitStack() as stack:
        router = stack.enter_context(Router.open(path, encoder))
        models = {"tiny": model, "other": model}
        yield stack.enter_context(live_server(models, router=router))


@pytest.fixture
def server(
    tmp_path: Path, encoder: slmq.Encoder, model: slmq.Model, far: StubOpenAI
) -> Iterator[LiveServer]:
    with serving(tmp_path, encoder, model, far.url) as running:
        yield running


def asked(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "auto", "messages": messages, "max_tokens": 4, "temperature": 0, **more}


def entries(folder: Path, count: int) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    wait_until(lambda: log.exists() and len(read_log(log)) >= count)
    return read_log(log)


def test_each_request_finds_its_model(
    server: LiveServer, far: StubOpenAI, tmp_path: Path, model: slmq.Model
) -> None:
    easy = server.ask("/v1/chat/completions", asked(EASY[0]))
    assert (easy.status, easy.headers["x-slmq-route"], easy.body["model"]) == (200, "tiny", "tiny")
    assert easy.headers["x-slmq-route-reason"] == "the cheapest that is right with at least 60%"
    direct = server.ask("/v1/chat/completions", asked(EASY[0], model="tiny"))
    assert direct.body["choices"] == easy.body["choices"]
    assert "x-slmq-route" not in direct.headers
    hard = server.ask("/v1/chat/completions", asked(HARD[0]))
    assert (hard.headers["x-slmq-route"], hard.body["model"]) == ("far", "far-1")
    assert hard.body["choices"][0]["message"]["content"] == "From afar."
    named = server.ask("/v1/chat/completions", asked("cat other, please"))
    assert (named.headers["x-slmq-route"], named.body["model"]) == ("other", "other")
    ((headers, body),) = far.requests
    assert headers["authorization"] == "Bearer secret"
    assert (body["path"], body["model"], body["max_tokens"]) == ("/v1/chat/completions", "far-1", 4)
    one, two, three = entries(tmp_path, 3)
    usage = easy.body["usage"]
    assert (one["chosen"], one["answered"], one["text"]) == ("tiny", "tiny", EASY[0])
    assert (one["tokens_in"], one["tokens_out"]) == (
        usage["prompt_tokens"], usage["completion_tokens"],
    )  # fmt: skip
    assert (two["answered"], two["tokens_in"], two["tokens_out"]) == ("far", 7, 3)
    assert two["cost"] == two["reference_cost"] == pytest.approx((7 * 2.5 + 3 * 10) / 1e6)
    assert (three["rule"], three["cost"] > 0) == ("named", True)
    found = report_of([one, two, three], tmp_path)
    assert 0 < found.saving < 1
    assert 0 < found.quality_kept <= 1


def test_streams(server: LiveServer, far: StubOpenAI, tmp_path: Path) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    for text, expected in ((HARD[0], "Fromafar."), (EASY[0], None)):
        messages: Any = [{"role": "user", "content": text}]
        chunks = list(
            client.chat.completions.create(
                model="auto", messages=messages, stream=True, max_tokens=4, temperature=0
            )
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        whole = server.ask("/v1/chat/completions", asked(text)).body
        assert said == (expected or whole["choices"][0]["message"]["content"])
    assert far.requests[0][1]["stream_options"] == {"include_usage": True}
    asked_for = asked(HARD[0], stream=True, stream_options={"include_usage": True})
    events = server.ask("/v1/chat/completions", asked_for).events
    assert events[-1]["usage"]["total_tokens"] == 10
    found = entries(tmp_path, 5)
    assert [(e["answered"], e["tokens_out"]) for e in found if e["answered"] == "far"] == [
        ("far", 3)
    ] * 3
    assert all(e["tokens_out"] == 4 for e in found if e["answered"] == "tiny")


def test_a_dry_run_asks_nobody(server: LiveServer, far: StubOpenAI, tmp_path: Path) -> None:
    messages = asked(HARD[0])["messages"]
    body = server.ask("/v1/route", {"messages": messages}).body
    assert (body["model"], body["order"]) == ("far", ["far", "tiny", "other"])
    assert body["labels"]["task"] == "hard"
    assert set(body["costs"]) == set(body["p_right"]) == {"tiny", "other", "far"}
    body = server.ask("/v1/route", {"input": HARD[0], "model": "auto:balanced"}).body
    assert "times its cost" in body["reason"]
    assert far.requests == []
    assert not (tmp_path / "log.jsonl").exists()
    for wrong in (
        {},
        {"messages": 5},
        {"input": "x", "model": "auto:best"},
        {"input": "x", "y": 1},
    ):
        assert server.ask("/v1/route", wrong).status == 400
    names = [one["id"] for one in server.ask("/v1/models").body["data"]]
    assert names == ["auto", "tiny", "other"]


@pytest.mark.parametrize(
    "what", ["500", "429", "401", "302", "nonsense", "hangs", "gone", "no key"]
)
def test_the_next_one_answers_if_a_model_fails(
    what: str,
    server: LiveServer,
    far: StubOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = f"it answers {what}"
    if what == "nonsense":
        far.body, expected = b"<html>", "its answer cannot be read"
    elif what == "hangs":
        far.hang, expected = True, "it cannot be reached: "
    elif what == "gone":
        assert server.service.routing is not None
        config = server.service.routing.router.config
        object.__setattr__(config.model("far"), "url", "http://127.0.0.1:9")
        expected = "it cannot be reached: "
    elif what == "no key":
        monkeypatch.delenv("FAR_KEY")
        expected = "the environment variable FAR_KEY with its key is not set"
    else:
        far.status = int(what)
    found = server.ask("/v1/chat/completions", asked(HARD[0]))
    assert (found.status, found.headers["x-slmq-route"]) == (200, "tiny")
    assert found.headers["x-slmq-route-reason"] == "far does not answer"
    (entry,) = entries(tmp_path, 1)
    assert (entry["chosen"], entry["answered"]) == ("far", "tiny")
    assert entry["failures"]["far"].startswith(expected)
    assert report_of([entry], tmp_path).fallbacks == 1


def test_faults_of_the_client_are_told_at_once(server: LiveServer, far: StubOpenAI) -> None:
    far.status, far.body = 400, b'{"error": {"message": "max_tokens is too large"}}'
    found = server.ask("/v1/chat/completions", asked(HARD[0]))
    assert found.status == 400
    assert "far: it answers 400" in found.body["error"]["message"]
    assert server.ask("/v1/chat/completions", asked(EASY[0], top_p=7)).status == 400
    assert server.ask("/v1/chat/completions", asked(EASY[0], messages=5)).status == 400
    assert server.ask("/v1/completions", {"model": "auto", "prompt": "x"}).status == 404


def test_nobody_answers(
    tmp_path: Path, encoder: slmq.Encoder, model: slmq.Model, far: StubOpenAI
) -> None:
    far.status = 503
    rule = '[[rules]]\nname = "far"\nmatch = "prove"\nuse = ["far"]\n'
    with serving(tmp_path, encoder, model, far.url, policy=rule) as server:
        found = server.ask("/v1/chat/completions", asked(HARD[0]))
        assert found.status == 503
        assert "no model answers: far: it answers 503" in found.body["error"]["message"]
        (entry,) = entries(tmp_path, 1)
        assert (entry["answered"], report_of([entry], tmp_path).failed) == (None, 1)


def test_shadow(tmp_path: Path, encoder: slmq.Encoder, model: slmq.Model, far: StubOpenAI) -> None:
    with serving(tmp_path, encoder, model, far.url, policy="shadow = true") as server:
        found = server.ask("/v1/chat/completions", asked(EASY[0]))
        assert found.headers["x-slmq-route"] == "far"
        assert found.headers["x-slmq-route-reason"] == "shadow: tiny would be chosen"
        (entry,) = entries(tmp_path, 1)
        assert (entry["chosen"], entry["answered"], entry["cost"]) == ("tiny", "far", 0.0)
        told = report_of([entry], tmp_path)
        assert (told.shadowed, told.saving, told.fallbacks) == (1, 1.0, 0)
