"""Adapters as models of a server, by OpenAI's client: mixed in one step, loaded and unloaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live_server import Answered, LiveServer, live_server, wait_until
from lora_files import layer_modules, mlx_folder, peft_folder, random_pairs
from numpy_weights import read_safetensors
from typer.testing import CliRunner

import slmq
from slmq.batch.receipts import check_receipt
from slmq.cli.app import app
from slmq.cli.serve import adapters_of
from slmq.errors import CheckpointError
from slmq.generation.model import Model
from slmq.server.adapters import adapter_book
from slmq.server.limits import Limits
from slmq.server.shelf import Book, Loaded, Shelf

CHAT = "/v1/chat/completions"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
HI: Any = [{"role": "user", "content": "Hi, what is your name?"}]
N = 20


@pytest.fixture(scope="module")
def folder(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters of the tiny model, and one of another."""
    weights = read_safetensors(tiny_model_path / "model.safetensors")
    modules, root = layer_modules(weights), tmp_path_factory.mktemp("adapters")
    for i in range(3):
        peft_folder(root / f"style-{i}", random_pairs(weights, modules, rank=4, seed=i))
    pairs = {
        name: (a[:, :-1], b) for name, (a, b) in random_pairs(weights, modules, rank=2).items()
    }
    peft_folder(root / "stranger", pairs)
    return root


@pytest.fixture(scope="module")
def alone(tiny_model_path: Path, folder: Path) -> dict[str, str]:
    """What each says in a model that knows nothing of the others."""
    found = {}
    for name in ("tiny", "style-0", "style-1", "style-2"):
        with slmq.load(tiny_model_path, n_ctx=2048) as fresh:
            adapter = None if name == "tiny" else fresh.load_adapter(folder / name)
            found[name] = fresh.generate(HI, max_tokens=N, adapter=adapter).text
    assert len(set(found.values())) == 4
    return found


@pytest.fixture
def served(model: Model, folder: Path) -> Iterator[LiveServer]:
    adapters = {name: folder / name for name in ("style-0", "style-1")}
    with live_server({"tiny": model}, Limits(adapters=folder), adapters=adapters) as server:
        yield server
    for name in model.adapters:
        model.unload_adapter(name)


def client_of(server: LiveServer, kind: str = "OpenAI") -> Any:
    module = pytest.importorskip("openai")
    return getattr(module, kind)(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def said(server: LiveServer, name: str, **more: Any) -> str:
    asked = {"model": name, "messages": HI, "max_tokens": N, **more}
    return str(server.ask(CHAT, asked).body["choices"][0]["message"]["content"])


def test_openai_finds_adapters_as_models(served: LiveServer, alone: dict[str, str]) -> None:
    client = client_of(served)
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["tiny", "style-0", "style-1"]
    assert listed["style-0"].parent == client.models.retrieve("style-1").parent == "tiny"
    for name in listed:
        answer = client.chat.completions.create(model=name, messages=HI, max_completion_tokens=N)
        assert (answer.model, answer.choices[0].message.content) == (name, alone[name])
        stream = client.chat.completions.create(
            model=name, messages=HI, max_completion_tokens=N, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == alone[name]
        assert (
            client.responses.create(model=name, input=HI, max_output_tokens=N).output_text
            == (alone[name])
        )


def test_other_apis_know_them(served: LiveServer, alone: dict[str, str]) -> None:
    asked = {"model": "style-1", "messages": HI, "max_tokens": N}
    assert served.ask("/v1/messages", asked).body["content"][0]["text"] == alone["style-1"]
    asked = {"model": "style-0", "messages": HI, "stream": False, "options": {"num_predict": N}}
    assert served.ask("/api/chat", asked).body["message"]["content"] == alone["style-0"]
    tags = [model["name"] for model in served.ask("/api/tags").body["models"]]
    assert tags == ["tiny", "style-0", "style-1"]
    text = served.ask("/metrics").data.decode()
    assert 'slmq:model_loaded{model_name="style-0"} 1' in text
    assert 'slmq:steps_total{model_name="style-0"}' not in text  # the model's own, told once


def test_requests_of_all_are_mixed(served: LiveServer, alone: dict[str, str]) -> None:
    """Many at once, cold and warm: each says what it says alone, and one step runs several."""
    pytest.importorskip("openai")
    runs = served.model.stats().runs

    async def ask_all() -> list[tuple[str, str]]:
        client = client_of(served, "AsyncOpenAI")

        async def ask(i: int, name: str) -> tuple[str, str]:
            # A part of the cache of its own keeps requests that are the same from being one.
            answer = await client.chat.completions.create(
                model=name, messages=HI, max_completion_tokens=N, extra_body={"cache_salt": f"{i}"}
            )
            return name, answer.choices[0].message.content

        names = ["tiny", "style-0", "style-1"] * 4
        return list(await asyncio.gather(*(ask(i, name) for i, name in enumerate(names))))

    for _ in range(2):
        for name, text in asyncio.run(ask_all()):
            assert text == alone[name]
    assert served.model.stats().runs - runs < 24 * N / 3  # steps that 24 answers take in turn, / 3


def test_names_tell_adapters_apart(served: LiveServer, tiny_model_path: Path, folder: Path) -> None:
    asked = {"messages": HI, "max_tokens": N, "temperature": 1.0}
    answers = {
        name: served.ask(CHAT, {**asked, "model": name}) for name in ("tiny", "style-0", "style-1")
    }
    assert len({one.body["system_fingerprint"] for one in answers.values()}) == 3
    receipts = {name: receipt_of(served, one) for name, one in answers.items()}
    assert receipts["tiny"]["adapter"] is None
    with slmq.load(tiny_model_path, n_ctx=2048) as fresh:
        assert check_receipt(fresh, receipts["tiny"]).same
        with pytest.raises(ValueError, match=r"with the adapter .*, which is not loaded"):
            check_receipt(fresh, receipts["style-0"])
        fresh.load_adapter(folder / "style-0", "whatever it is called here")
        checked = check_receipt(fresh, receipts["style-0"])
        assert checked.same, checked.text
        mixed = {
            **receipts["style-0"],
            "system_fingerprint": receipts["style-1"]["system_fingerprint"],
        }
        assert not check_receipt(fresh, mixed).same


def receipt_of(server: LiveServer, answered: Answered) -> Any:
    path = f"/v1/receipts/{answered.headers['x-request-id']}"
    wait_until(lambda: server.ask(path).status == 200)
    return server.ask(path).body


def test_slmq_verify_takes_the_adapter(
    served: LiveServer, tiny_model_path: Path, folder: Path, tmp_path: Path
) -> None:
    receipt = receipt_of(served, served.ask(CHAT, {"model": "style-1", "messages": HI}))
    assert receipt["model"] == "tiny"
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({**receipt, "loading": {"n_ctx": 2048}}))
    command = ["verify", str(path), "--model", str(tiny_model_path)]
    done = CliRunner().invoke(app, [*command, "--adapter", str(folder / "style-1")])
    assert done.exit_code == 0, done.output
    assert "the same bytes" in done.output
    for more in ([], ["--adapter", str(folder / "style-0")]):
        assert CliRunner().invoke(app, [*command, *more]).exit_code != 0


def test_loading_and_unloading(served: LiveServer, alone: dict[str, str]) -> None:
    assert served.ask(CHAT, {"model": "mine", "messages": HI}).status == 404
    asked = {"lora_name": "mine", "lora_path": "style-2"}
    assert served.ask(LOAD, asked).status == 200
    assert said(served, "mine") == alone["style-2"]
    again = served.ask(LOAD, asked)
    assert again.status == 400
    assert "served already" in again.body["error"]["message"]
    # Another takes its place while an answer runs, which ends with what it began with.
    with ThreadPoolExecutor(1) as pool:
        long = {"max_tokens": 400, "ignore_eos": True}
        whole = said(served, "mine", **long)
        running = pool.submit(said, served, "mine", **long, temperature=0.0, seed=1)
        wait_until(lambda: served.model.stats().running > 0)
        replacing = {**asked, "lora_path": "style-0", "load_inplace": True}
        assert served.ask(LOAD, replacing).status == 200
        assert said(served, "mine") == alone["style-0"]
        assert running.result() == whole
    wait_until(lambda: len(served.model.adapters) == 1)  # the old one went with its last answer
    assert served.ask(UNLOAD, {"lora_name": "mine"}).status == 200
    wait_until(lambda: served.model.adapters == {})
    assert served.ask(CHAT, {"model": "mine", "messages": HI}).status == 404
    assert served.ask(UNLOAD, {"lora_name": "mine"}).status == 404
    assert said(served, "tiny") == alone["tiny"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"lora_name": "x", "lora_path": "stranger"}, 400, "is it for another model?"),
        ({"lora_name": "x", "lora_path": "../"}, 400, "there is no '../' in the folder"),
        ({"lora_name": "x", "lora_path": "/etc/passwd"}, 400, "there is no"),
        ({"lora_name": "x", "lora_path": "nothing"}, 400, "there is no 'nothing'"),
        ({"lora_name": "x", "lora_path": "a\0b"}, 400, "there is no"),
        ({"lora_name": "x", "lora_path": "."}, 400, "expected an adapter"),
        ({"lora_name": "x"}, 400, "lora_path: expected a text"),
        ({"lora_name": 3, "lora_path": "style-0"}, 400, "lora_name: expected a text"),
        ({"lora_name": "tiny", "lora_path": "style-0"}, 400, "served already"),
        ({"lora_name": "auto", "lora_path": "style-0"}, 400, "'auto' is taken"),
        ({"lora_name": "x", "lora_path": "style-0", "base_model_name": "y"}, 404, "not served"),
        ({"lora_name": "x", "lora_path": "style-0", "base_model_name": "style-1"}, 400, "itself"),
        ({"lora_name": "x", "lora_path": "style-0", "rank": 3}, 400, "rank: is not supported"),
    ],
)
def test_what_is_not_loaded(
    served: LiveServer, body: dict[str, Any], status: int, message: str
) -> None:
    answered = served.ask(LOAD, body)
    assert answered.status == status, answered.body
    assert message in answered.body["error"]["message"]
    names = [model["id"] for model in served.ask("/v1/models").body["data"]]
    assert names == ["tiny", "style-0", "style-1"]


def test_links_do_not_lead_out(served: LiveServer, folder: Path, tmp_path: Path) -> None:
    (folder / "out").symlink_to(tmp_path)
    try:
        answered = served.ask(LOAD, {"lora_name": "x", "lora_path": "out"})
    finally:
        (folder / "out").unlink()
    assert answered.status == 400
    assert "there is no 'out'" in answered.body["error"]["message"]


def test_it_is_the_operator_who_allows_it(model: Model, folder: Path) -> None:
    with live_server({"tiny": model}, adapters={"style-0": folder / "style-0"}) as server:
        for path in (LOAD, UNLOAD):
            answered = server.ask(path, {"lora_name": "style-0", "lora_path": "style-0"})
            assert answered.status == 403
            assert "--adapter-dir" in answered.body["error"]["message"]
        refused = server.ask(CHAT, {"model": "tiny", "messages": HI, "adapter": "style-0"})
        assert refused.status == 400
        assert refused.body["error"]["param"] == "adapter"


def test_unloading_a_model_is_refused(served: LiveServer) -> None:
    answered = served.ask(UNLOAD, {"lora_name": "tiny"})
    assert answered.status == 400
    assert "is a model, not an adapter" in answered.body["error"]["message"]


def test_adapters_share_the_budget(tiny_model_path: Path, folder: Path) -> None:
    """An adapter that nobody uses makes room, and all go with their model."""

    async def run() -> None:
        def load() -> Loaded:
            return Loaded(slmq.load(tiny_model_path, n_ctx=256, kv_bytes=1 << 20))

        base, other = (Book(name, load, tiny_model_path, 0) for name in ("tiny", "else"))
        books = [adapter_book(name, folder / name, base) for name in ("style-0", "style-1")]
        with ThreadPoolExecutor(2) as pool:
            probe = Shelf([base, *books], pool=pool)
            async with probe.used(books[0]):
                size, one = base.memory_bytes, books[0].memory_bytes
            probe.close()
            base.loaded = books[0].loaded = None
            other.disk_bytes = size
            assert 0 < one < size
            shelf = Shelf([base, other, *books], budget_bytes=size + one + one // 2, pool=pool)
            for book in books:
                async with shelf.used(book):
                    assert base.users == 1
            assert (books[0].loaded, base.users) == (None, 0)
            assert base.loaded is not None
            assert list(base.loaded.model.adapters) == ["style-1"]
            async with shelf.used(other):
                assert (base.loaded, books[1].loaded) == (None, None)
            async with shelf.used(books[1]) as book:
                assert book.loaded is not None
            shelf.close()

    asyncio.run(run())


def test_adapters_of_the_command(folder: Path, tmp_path: Path) -> None:
    books = [Book(name, Loaded, Path(name), 0) for name in ("a", "b:latest")]  # type: ignore[arg-type]
    path = str(folder / "style-0")
    found = adapters_of([f"x={path}", f"y@b:latest={path}"], books)
    assert [(name, base.name) for name, _, base in found] == [("x", "a"), ("y", "b:latest")]
    for wrong, message in (
        (path, "expected NAME=PATH"),
        ("=x", "expected NAME=PATH"),
        (f"a={path}", "a name that is free"),
        (f"x@c={path}", r"one of the models \(a, b:latest\), got 'c'"),
        (f"x={tmp_path / 'nothing'}", "there is no"),
    ):
        with pytest.raises(ValueError, match=message):
            adapters_of([wrong], books)
    with pytest.raises(ValueError, match="a name that is free"):
        adapters_of([f"x={path}", f"x={path}"], books)


def test_an_adapter_that_does_not_fit_ends_the_start(tiny_model_path: Path, folder: Path) -> None:
    command = ["serve", str(tiny_model_path), "--port", "0", "--n-ctx", "256"]
    done = CliRunner().invoke(app, [*command, "--adapter", f"x={folder / 'stranger'}"])
    assert isinstance(done.exception, CheckpointError | SystemExit)
    assert "is it for another model?" in done.output + str(done.exception)


def test_files_of_two_kinds_are_one_adapter(tiny_model_path: Path, tmp_path: Path) -> None:
    """What is the same to the bit has the same name, and shares what was computed."""
    weights = read_safetensors(tiny_model_path / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights), rank=4)
    peft_folder(tmp_path / "peft", pairs, lora_alpha=4.0)
    mlx_folder(tmp_path / "mlx", pairs, 1.0)
    with slmq.load(tiny_model_path, n_ctx=512) as model:
        for name in ("peft", "mlx"):
            model.load_adapter(tmp_path / name)
        assert len(set(model.adapters.values())) == 1
        model.generate([5] * 100, max_tokens=1, adapter="peft")
        assert model.generate([5] * 100, max_tokens=1, adapter="mlx").cached_tokens > 0
