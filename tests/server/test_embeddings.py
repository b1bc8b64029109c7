"""`/v1/embeddings` and `/v1/rerank`, over HTTP and through OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import encoder_folder, sentence_folder
from live_server import LiveServer, live_server
from places import GOLDENS

import slmq
from slmq.embedding.encoder import Encoder
from slmq.server.shelf import Book, EncoderBook, Loaded, LoadedEncoder, Shelf

TEXTS = ["A man is playing the guitar.", "the cat eats", "rain in paris"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    folder = tmp_path_factory.mktemp("encoders")
    settings = {"prompts": {"query": "a dog "}}
    return {
        "sentences": slmq.load_encoder(sentence_folder(folder / "s", settings=settings)),
        "pairs": slmq.load_encoder(encoder_folder(folder / "p", "pairs_one_score")),
        "judge": slmq.load_encoder(GOLDENS / "rerankers" / "official"),
    }


@pytest.fixture
def server(encoders: dict[str, Encoder]) -> Iterator[LiveServer]:
    with live_server({}, encoders=encoders) as running:
        yield running


def vectors_of(answered: Any) -> Any:
    assert answered.status == 200, answered.data
    assert [one["index"] for one in answered.body["data"]] == list(range(len(TEXTS)))
    return [one["embedding"] for one in answered.body["data"]]


def test_vectors(server: LiveServer, encoders: dict[str, Encoder]) -> None:
    want = encoders["sentences"].embed(TEXTS)
    answered = server.ask("/v1/embeddings", {"model": "sentences", "input": TEXTS})
    assert np.array_equal(np.array(vectors_of(answered), np.float32), want)
    body = answered.body
    assert (body["object"], body["model"], body["data"][0]["object"]) == (
        "list",
        "sentences",
        "embedding",
    )
    tokens = sum(len(encoders["sentences"].tokenizer.encode(text)) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    coded = server.ask("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})
    found = [np.frombuffer(base64.b64decode(v), "<f4") for v in vectors_of(coded)]
    assert np.array_equal(np.stack(found), want)


def test_one_text_a_prompt_and_fewer_dimensions(
    server: LiveServer, encoders: dict[str, Encoder]
) -> None:
    answered = server.ask(
        "/v1/embeddings", {"input": "eats", "prompt": "query", "dimensions": 8, "user": "me"}
    )
    want = encoders["sentences"].embed("eats", prompt="query", dimensions=8)
    assert np.array_equal(np.float32(answered.body["data"][0]["embedding"]), want)
    assert answered.headers["x-slmq-ignored"] == "user"


def test_rankings(server: LiveServer, encoders: dict[str, Encoder]) -> None:
    for name, encoder in encoders.items():
        want = encoder.rerank("the cat", TEXTS)
        given = {"model": name, "query": "the cat", "documents": TEXTS}
        body = server.ask("/v1/rerank", given).body
        assert body["results"] == [{"index": r.index, "relevance_score": r.score} for r in want]
        documents = [{"text": text} for text in TEXTS]
        more = {"documents": documents, "top_n": 1, "return_documents": True}
        (best,) = server.ask("/v1/rerank", given | more).body["results"]
        assert best["document"] == {"text": want[0].text}


def test_an_instruction(server: LiveServer, encoders: dict[str, Encoder]) -> None:
    given = {"query": "the cat", "documents": TEXTS, "instruction": "Be strict."}
    want = encoders["judge"].rerank("the cat", TEXTS, instruction="Be strict.")
    results = server.ask("/v1/rerank", {"model": "judge", **given}).body["results"]
    assert results == [{"index": r.index, "relevance_score": r.score} for r in want]
    refused = server.ask("/v1/rerank", {"model": "pairs", **given})
    assert refused.status == 400
    assert "instruction: expected none" in refused.body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/embeddings", {"input": []}, 400, "input: expected a text or 1..2048 texts"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 400, "ids of tokens are those of another"),
        ("/v1/embeddings", {"input": "a", "model": "none"}, 404, "is not served here, only"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, 400, "dimensions: expected 1..64"),
        ("/v1/embeddings", {"input": "a", "colour": 1}, 400, "colour: is not supported"),
        ("/v1/embeddings", {"input": "the cat " * 99}, 400, "text 0 has 200 tokens"),
        ("/v1/rerank", {"query": 1, "documents": ["a"]}, 400, "query: expected a text"),
        ("/v1/rerank", {"query": "a", "documents": "b"}, 400, "documents: expected a list"),
        ("/v1/rerank", {"query": "a", "documents": [{}]}, 400, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "instruction": 5}, 400, "instruction"),
    ],
)
def test_refusals(server: LiveServer, path: str, body: Any, status: int, message: str) -> None:
    answered = server.ask(path, body)
    assert answered.status == status, answered.data
    assert message in answered.body["error"]["message"]


def test_a_server_without_encoders() -> None:
    with live_server({}) as running:
        answered = running.ask("/v1/embeddings", {"input": "a"})
    assert answered.status == 404
    assert "slmq serve --encoder" in answered.body["error"]["message"]


def test_the_client_of_openai(server: LiveServer, encoders: dict[str, Encoder]) -> None:
    """Which asks for base64 by itself."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    found = client.embeddings.create(model="sentences", input=TEXTS)
    got = np.array([one.embedding for one in found.data], np.float32)
    assert np.array_equal(got, encoders["sentences"].embed(TEXTS))


def test_encoders_are_listed(server: LiveServer, encoders: dict[str, Encoder]) -> None:
    listed = {one["id"]: one for one in server.ask("/v1/models").body["data"]}
    assert set(listed) == set(encoders)
    assert not listed["sentences"]["loaded"]
    server.ask("/v1/embeddings", {"model": "sentences", "input": "a"})
    found = server.ask("/v1/models/sentences").body
    assert found["loaded"]
    assert found["max_model_len"] == 64
    assert found["meta"] == {"n_embd": 64, "size": encoders["sentences"].weight_bytes}
    assert server.ask("/v1/models/nothing").status == 404


def test_encoders_and_models_share_a_budget(tmp_path: Path, tiny_model_path: Path) -> None:
    """Each makes room for the other; what is in use stays."""
    folder = sentence_folder(tmp_path / "m")
    made: list[Encoder] = []

    def load() -> LoadedEncoder:
        made.append(slmq.load_encoder(folder))
        return LoadedEncoder(made[-1])

    def load_model() -> Loaded:
        return Loaded(slmq.load(tiny_model_path, n_ctx=256, kv_bytes=1 << 20))

    async def run() -> None:
        with ThreadPoolExecutor(1) as pool:
            model = Book("model", load_model, tiny_model_path, 1 << 20)
            encoder = EncoderBook("encoder", load, folder, 1 << 19)
            shelf = Shelf([model], budget_bytes=1 << 20, pool=pool, encoders=[encoder])
            for _ in range(2):
                async with shelf.used(shelf.find_encoder(None)) as book:
                    assert book is encoder
                    assert book.loaded is not None
                    assert book.memory_bytes == made[-1].weight_bytes > 10_000
                    assert model.loaded is None
                async with shelf.use("model"):
                    assert encoder.loaded is None
            assert len(made) == 2
            async with shelf.used(encoder):
                pass
            shelf.close()

    asyncio.run(run())
    for encoder in made:
        with pytest.raises(slmq.ClosedError):
            encoder.embed("a")
