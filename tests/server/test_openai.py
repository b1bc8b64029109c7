"""Chat and text completions in OpenAI's words; real server, real engine, tiny model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import LiveServer, wait_until

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
LONG: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}
DRAWN: dict[str, Any] = {**LONG, "temperature": 1.2, "seed": 5}


def said(events: list[Any]) -> dict[int, str]:
    """The texts of a stream, by choice."""
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return texts


def test_a_chat_is_what_the_model_says(server: LiveServer) -> None:
    answered = server.ask(CHAT, {"model": "tiny", "messages": HI, **DRAWN})
    body, wanted = answered.body, server.model.generate(HI, **DRAWN)
    (choice,) = body["choices"]
    assert answered.status == 200
    assert choice["message"] == {
        "role": "assistant", "content": wanted.text, "refusal": None, "annotations": [],
    }  # fmt: skip
    assert choice["finish_reason"] == "length"
    assert body["object"] == "chat.completion"
    assert body["id"] == "chatcmpl-" + answered.headers["x-request-id"].removeprefix("req_")
    assert body["usage"]["prompt_tokens"] == wanted.prompt_tokens
    assert body["usage"]["completion_tokens"] == 24
    assert body["usage"]["total_tokens"] == wanted.prompt_tokens + 24
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] <= wanted.prompt_tokens


def test_a_prompt_is_counted_as_it_is_answered(server: LiveServer) -> None:
    asked = {"messages": HI, "max_tokens": 1, "id_slot": 0, "cache_prompt": True}
    answered = server.ask(CHAT, {**asked, "timings_per_token": True, "return_progress": True})
    assert answered.headers["x-slmq-ignored"] == (
        "cache_prompt, id_slot, return_progress, timings_per_token"
    )
    counted = server.ask(f"{CHAT}/input_tokens", {"messages": HI})
    assert counted.body == {"input_tokens": answered.body["usage"]["prompt_tokens"]}
    assert server.ask("/chat/completions/input_tokens", {"messages": HI}).body == counted.body
    assert server.ask(f"{CHAT}/input_tokens", {"messages": "Hi"}).status == 400


def test_a_stream_has_the_form_that_clients_expect(server: LiveServer) -> None:
    asked = {"messages": HI, **DRAWN, "stream": True, "stream_options": {"include_usage": True}}
    answered = server.ask(CHAT, asked)
    events = answered.events
    assert answered.headers["content-type"].startswith("text/event-stream")
    assert {(e["id"], e["created"], e["model"], e["object"]) for e in events} == {
        (events[0]["id"], events[0]["created"], "tiny", "chat.completion.chunk")
    }
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 24
    assert all(event["usage"] is None for event in events[:-1])
    reasons = [choice["finish_reason"] for e in events for choice in e["choices"]]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert events[-2]["choices"][0]["delta"] == {}
    # Every other event says something.
    assert all(event["choices"][0]["delta"]["content"] for event in events[1:-2])
    assert said(events) == {0: server.model.generate(HI, **DRAWN).text}


def test_a_stream_tells_no_usage_that_nobody_asked_for(server: LiveServer) -> None:
    events = server.ask(CHAT, {"messages": HI, **LONG, "stream": True}).events
    assert all("usage" not in event and event["choices"] for event in events)


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_have_seeds_one_after_another(server: LiveServer, stream: bool) -> None:
    asked = {"messages": HI, **DRAWN, "n": 3, "stream": stream}
    answered = server.ask(CHAT, asked)
    if stream:
        texts = said(answered.events)
    else:
        texts = {c["index"]: c["message"]["content"] for c in answered.body["choices"]}
        usage = answered.body["usage"]
        assert usage["completion_tokens"] == 3 * 24
        assert usage["prompt_tokens"] == server.model.generate(HI, max_tokens=1).prompt_tokens
    wanted = {i: server.model.generate(HI, **{**DRAWN, "seed": 5 + i}).text for i in range(3)}
    assert texts == wanted


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_belong_to_the_text_beside_them(server: LiveServer, stream: bool) -> None:
    asked = {"messages": HI, **LONG, "logprobs": True, "top_logprobs": 2, "stream": stream}
    answered = server.ask(CHAT, asked)
    wanted = server.model.generate(HI, **LONG, logprobs=2)
    assert wanted.logprobs is not None
    if not stream:
        entries = answered.body["choices"][0]["logprobs"]["content"]
    else:
        entries, spelled, text = [], b"", ""
        for event in answered.events[1:]:
            (choice,) = event["choices"]
            if choice["logprobs"] is not None:
                entries += choice["logprobs"]["content"]
                spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
            text += choice["delta"].get("content", "")
            assert spelled.decode("utf-8", "replace").startswith(text)
        assert text == wanted.text
    assert [entry["logprob"] for entry in entries] == [entry.logprob for entry in wanted.logprobs]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_stop_strings_end_an_answer_and_are_not_in_it(server: LiveServer) -> None:
    whole = server.model.generate(HI, **LONG).text
    stop = whole[10:13]
    for stream in (False, True):
        answered = server.ask(CHAT, {"messages": HI, **LONG, "stop": [stop], "stream": stream})
        if stream:
            text, reason = (
                said(answered.events)[0],
                answered.events[-1]["choices"][0]["finish_reason"],
            )
        else:
            (choice,) = answered.body["choices"]
            text, reason = choice["message"]["content"], choice["finish_reason"]
        assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_prompts_of_all_kinds_are_completed(server: LiveServer) -> None:
    for prompt in ("Once", [5, 6, 7]):
        body = server.ask(TEXT, {"prompt": prompt, **LONG}).body
        assert body["object"] == "text_completion"
        assert body["choices"][0]["text"] == server.model.generate(prompt, **LONG).text
    several = server.ask(TEXT, {"prompt": ["Once", "Twice"], **DRAWN, "n": 2}).body
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    asked = zip(("Once", "Once", "Twice", "Twice"), range(5, 9), strict=True)
    wanted = [server.model.generate(p, **{**DRAWN, "seed": s}).text for p, s in asked]
    assert [choice["text"] for choice in several["choices"]] == wanted
    events = server.ask(TEXT, {"prompt": ["Once", "Twice"], **LONG, "stream": True}).events
    assert said(events) == {
        i: server.model.generate(p, **LONG).text for i, p in enumerate(("Once", "Twice"))
    }


def test_offsets_of_a_stream_go_on(server: LiveServer) -> None:
    asked = {"prompt": "Once", **LONG, "logprobs": 1}
    whole = server.ask(TEXT, asked).body["choices"][0]["logprobs"]
    events = server.ask(TEXT, {**asked, "stream": True}).events
    parts = [event["choices"][0]["logprobs"] for event in events]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for part in parts for entry in part[name]] == whole[name]


def test_a_developer_is_the_system(server: LiveServer) -> None:
    system = [{"role": "system", "content": "A\n\nB"}, *HI]
    two = [{"role": "developer", "content": "A"}, {"role": "system", "content": "B"}, *HI]
    texts = [
        server.ask(CHAT, {"messages": messages, **LONG}).body["choices"][0]["message"]["content"]
        for messages in (system, two)
    ]
    assert texts[0] == texts[1]


def test_the_same_request_gives_the_same_text_alone_and_among_others(server: LiveServer) -> None:
    def ask(i: int) -> str:
        body = {"messages": [{"role": "user", "content": f"Hi {i}"}], **DRAWN, "seed": i}
        stream = i % 2 == 0
        answered = server.ask(CHAT, {**body, "stream": stream})
        if stream:
            return said(answered.events)[0]
        return str(answered.body["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(33) as pool:
        together = list(pool.map(ask, range(33)))
    assert together == [ask(i) for i in range(33)]
    wait_until(lambda: server.idle)


def test_fields_without_effect_are_reported(server: LiveServer) -> None:
    asked = {"model": "tiny", "messages": HI, **LONG, "user": "me", "metadata": {"a": "b"}}
    answered = server.ask(CHAT, {**asked, "store": False, "service_tier": None})
    assert answered.headers["x-slmq-ignored"] == "metadata, user"
    assert "x-slmq-ignored" not in server.ask(CHAT, {"messages": HI, "max_tokens": 1}).headers


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, None),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"store": True}, "store"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs"),
        ({"model": 7}, None),
    ],
)
def test_what_is_wrong_is_named(server: LiveServer, change: dict[str, Any], param: str) -> None:
    answered = server.ask(CHAT, {"model": "tiny", "messages": HI, "max_tokens": 2, **change})
    error = answered.body["error"]
    assert answered.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert (param or "expected") in error["message"]


def test_errors_have_the_status_that_clients_understand(server: LiveServer) -> None:
    lost = server.ask(CHAT, {"model": "gpt-5", "messages": HI})
    assert (lost.status, lost.body["error"]["code"]) == (404, "model_not_found")
    assert "'tiny'" in lost.body["error"]["message"]
    long = server.ask(TEXT, {"prompt": "x" * 4000, "max_tokens": 10})
    assert (long.status, long.body["error"]["code"]) == (400, "context_length_exceeded")
    assert "2048" in long.body["error"]["message"]
    assert server.ask("/v1/nothing").status == 404
    assert server.ask(CHAT).status == 405
    assert server.ask(CHAT).headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "JSON"),
        (b'{"messages": "\xff"}', "UTF-8"),
        (b"[1]", "object"),
        (b'{"messages": NaN}', "NaN"),
        (b"[" * 100_000, "nesting"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nesting"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    ],
)
def test_malformed_bodies_are_refused(server: LiveServer, data: bytes, message: str) -> None:
    answered = server.ask(CHAT, data)
    assert answered.status == 400
    assert message in answered.body["error"]["message"]


def test_texts_and_tokens(server: LiveServer) -> None:
    tokenizer = server.model.tokenizer
    found = server.ask("/tokenize", {"content": "Hé", "with_pieces": True}).body
    ids = tokenizer.encode("Hé", add_special=False)
    assert [entry["id"] for entry in found["tokens"]] == ids
    assert found["count"] == len(ids)
    assert server.ask("/tokenize", {"content": "Hé"}).body["tokens"] == ids
    assert server.ask("/detokenize", {"tokens": ids}).body["content"] == "Hé"
    prompt = server.ask("/apply-template", {"messages": HI}).body["prompt"]
    assert prompt == tokenizer.render_chat(HI)
    closed = {"messages": HI, "add_generation_prompt": False, "tools": []}
    wanted = tokenizer.render_chat(HI, add_generation_prompt=False)
    assert server.ask("/apply-template", closed).body["prompt"] == wanted != prompt
    for path, body in (
        ("/tokenize", {}),
        ("/detokenize", {"tokens": [10**9]}),
        ("/apply-template", {}),
        ("/apply-template", {"messages": HI, "tools": "all"}),
        ("/apply-template", {"messages": HI, "add_generation_prompt": 1}),
        ("/apply-template", {"messages": HI, "toools": []}),
    ):
        assert server.ask(path, body).status == 400


def test_what_the_server_tells_of_itself(server: LiveServer) -> None:
    (entry,) = server.ask("/v1/models").body["data"]
    assert (entry["id"], entry["object"], entry["meta"]["n_ctx"]) == ("tiny", "model", 2048)
    assert server.ask("/v1/models/tiny").body == entry
    assert server.ask("/v1/models/tiny:latest").body == entry
    assert server.ask("/v1/models/other/name").status == 404
    for path in ("/health", "/v1/health", "/livez", "/readyz"):
        assert server.ask(path).body == {"status": "ok"}
    assert server.ask("/version").body["version"]


def test_metrics_count_what_was_done(server: LiveServer) -> None:
    def value(name: str) -> float:
        lines = server.ask("/metrics").data.decode().splitlines()
        (found,) = [x for x in lines if x.startswith(f'{name}{{model_name="tiny"}} ')]
        return float(found.rpartition(" ")[2])

    before = value("vllm:generation_tokens_total"), value("vllm:time_to_first_token_seconds_count")
    server.ask(CHAT, {"messages": HI, **LONG})
    wait_until(lambda: server.idle)
    assert value("vllm:generation_tokens_total") == before[0] + 24
    assert value("llamacpp:tokens_predicted_total") == before[0] + 24
    assert value("vllm:time_to_first_token_seconds_count") == before[1] + 1
    text = server.ask("/metrics").data.decode()
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_a_deadline_is_504_and_not_repeated(server: LiveServer) -> None:
    from dataclasses import replace

    service = server.service
    limits, service.limits = service.limits, replace(service.limits, answer_s=1e-4)
    try:
        answered = server.ask(CHAT, {"messages": HI, **LONG})
        events = server.ask(CHAT, {"messages": HI, **LONG, "stream": True}).events
    finally:
        service.limits = limits
    assert answered.status == 504
    assert answered.headers["x-should-retry"] == "false"
    assert events[-1]["error"]["code"] == "deadline_exceeded"


def test_readers_get_signs_of_life(server: LiveServer) -> None:
    from dataclasses import replace

    service = server.service
    limits, service.limits = service.limits, replace(service.limits, ping_s=0.01)
    held = threading.Event()

    def hold() -> None:
        with server.model.exclusive():
            held.set()
            assert done.wait(30)

    done = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    try:
        with server.send(CHAT, {"messages": HI, **LONG, "stream": True}) as client:
            seen = b""
            while seen.count(b": ping\n\n") < 3:
                seen += client.recv(4096)
            done.set()
            while b"[DONE]" not in seen:
                seen += client.recv(4096)
    finally:
        service.limits = limits
        done.set()
        thread.join()


def test_echo_begins_with_the_prompt(server: LiveServer) -> None:
    ids = server.model.tokenizer.encode("Once")
    asked = {"prompt": ["Once", ids], "n": 2, "echo": True, **DRAWN}
    plain = server.ask(TEXT, {**asked, "echo": False}).body["choices"]
    spelled = server.model.tokenizer.decode(ids, skip_special=False)
    wanted = [
        text + choice["text"]
        for text, choice in zip(["Once"] * 2 + [spelled] * 2, plain, strict=True)
    ]
    whole = server.ask(TEXT, asked).body["choices"]
    assert [choice["text"] for choice in whole] == wanted
    assert list(said(server.ask(TEXT, {**asked, "stream": True}).events).values()) == wanted
    for wrong in ({"echo": "yes"}, {"logprobs": 1}):
        answered = server.ask(TEXT, {**asked, **wrong})
        assert (answered.status, answered.body["error"]["param"]) == (400, "echo")


def test_the_version_may_be_left_out(server: LiveServer) -> None:
    asked = {"messages": HI, **DRAWN}
    wanted = server.ask(CHAT, asked).body["choices"]
    assert server.ask("/chat/completions", asked).body["choices"] == wanted
    assert server.ask("/models").body == server.ask("/v1/models").body
