"""Files and batches through the official client; real server, real engine, tiny model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import LiveServer, wait_until

HI = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Any:
    openai = pytest.importorskip("openai")
    pytest.importorskip("python_multipart")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def lines(count: int, **body: Any) -> bytes:
    found = [
        {
            "custom_id": f"line {i}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "tiny", "messages": HI, "seed": i, "max_tokens": 8, **body},
        }
        for i in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in found)


def begin(client: Any, data: bytes) -> Any:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"a": "b"}
    )


def over(client: Any, batch: Any) -> Any:
    states = ("completed", "failed", "cancelled")
    wait_until(lambda: client.batches.retrieve(batch.id).status in states)
    return client.batches.retrieve(batch.id)


def test_lists_name_their_ends(client: Any, server: LiveServer) -> None:
    empty = server.ask("/v1/batches").body
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], "", "")
    ids = [client.files.create(file=("a", b"{}"), purpose="batch").id for _ in range(2)]
    listed = server.ask("/v1/files").body
    assert [one["id"] for one in listed["data"]] == ids[::-1]
    assert (listed["first_id"], listed["last_id"]) == (ids[1], ids[0])
    for name in ids:
        client.files.delete(name)


def test_a_batch_is_answered_in_its_order(client: Any, server: LiveServer) -> None:
    data = lines(9, temperature=1.0) + b"broken\n"
    done = over(client, begin(client, data))
    assert done.status == "completed"
    assert done.metadata == {"a": "b"}
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 9, 1)
    answers = [json.loads(x) for x in client.files.content(done.output_file_id).text.splitlines()]
    texts = [a["response"]["body"]["choices"][0]["message"]["content"] for a in answers[:9]]
    params: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0}
    assert texts == [server.model.generate(HI, seed=i, **params).text for i in range(9)]
    assert answers[9]["error"]["code"] == "invalid_line"
    assert done.id in [batch.id for batch in client.batches.list()]


def test_what_cannot_be_a_batch(client: Any) -> None:
    module = pytest.importorskip("openai")
    lost = over(client, begin(client, lines(2, model="gpt-5")))
    assert lost.status == "failed"
    assert "not served" in lost.errors.data[0].message
    with pytest.raises(module.NotFoundError):
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    with pytest.raises(module.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"b"), purpose="fine-tune")


def test_a_batch_can_be_cancelled(client: Any, server: LiveServer) -> None:
    batch = begin(client, lines(200, ignore_eos=True, max_tokens=40))
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert over(client, batch).status == "cancelled"
    wait_until(lambda: server.idle)


def test_files_come_and_go(client: Any) -> None:
    module = pytest.importorskip("openai")
    file = client.files.create(file=("in.jsonl", b"abc"), purpose="batch")
    assert (file.bytes, file.filename) == (3, "in.jsonl")
    assert client.files.content(file.id).read() == b"abc"
    assert file.id in [found.id for found in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(module.NotFoundError):
        client.files.retrieve(file.id)
