"""Generation over the real engine and a tiny random model: answers, limits, errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import slmq
from slmq.generation.model import Model
from slmq.generation.results import GenerationResult, StreamChunk

PROMPT = [5, 17, 3, 60, 21, 9, 44]
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=96) as loaded:
        yield loaded


def varied(**more: Any) -> dict[str, Any]:
    """Parameters that make a tiny random model say something with variety in it."""
    return {"max_tokens": 40, "temperature": 1.5, "seed": 11, "ignore_eos": True, **more}


def greedy_by_hand(model: Model, prompt: list[int], count: int) -> list[int]:
    sequence = model.engine.sequence()
    tokens: list[int] = []
    logits = model.engine.feed(sequence, prompt)
    while len(tokens) < count:
        tokens.append(int(np.argmax(logits)))
        logits = model.engine.feed(sequence, tokens[-1:])
    sequence.close()
    return tokens


# ------------------------------------------------------------------ answers


def test_greedy_takes_the_greatest_logit_each_time(model: Model) -> None:
    result = model.generate(PROMPT, max_tokens=12, ignore_eos=True)
    assert result.tokens == greedy_by_hand(model, PROMPT, 12)
    assert result.text == model.tokenizer.decode(result.tokens)
    assert (result.finish_reason, result.stopped_by) == ("length", None)
    assert (result.prompt_tokens, result.generated_tokens) == (len(PROMPT), 12)
    assert result.logprobs is None
    assert result.seed is None
    assert str(result) == result.text


def test_the_result_tells_time_and_memory(model: Model) -> None:
    result = model.generate(PROMPT, max_tokens=3, ignore_eos=True)
    assert result.prompt_tps > 0
    assert result.generation_tps > 0
    assert result.time_to_first_token > 0
    assert result.peak_memory_bytes is None or result.peak_memory_bytes > 2**20
    assert model.generate(PROMPT, max_tokens=1).generation_tps == 0


def test_chunks_join_to_the_result(model: Model) -> None:
    stream = model.stream(PROMPT, **varied(logprobs=2))
    chunks = list(stream)
    result = stream.result
    assert result is not None
    assert "".join(chunk.text for chunk in chunks) == result.text != ""
    assert [chunk.token for chunk in chunks] == result.tokens
    assert [chunk.logprobs for chunk in chunks] == result.logprobs
    assert [chunk.generated_tokens for chunk in chunks] == list(range(1, 41))
    assert all(chunk.finish_reason is None and chunk.tokens == [] for chunk in chunks[:-1])
    last = chunks[-1]
    assert last.result is result
    for name in ("finish_reason", "tokens", "prompt_tokens", "prompt_tps", "generation_tps"):
        assert getattr(last, name) == getattr(result, name)
    assert last.time_to_first_token == result.time_to_first_token
    assert last.peak_memory_bytes == result.peak_memory_bytes


def test_the_seed_fixes_the_answer_and_is_reported(model: Model) -> None:
    free = model.generate(PROMPT, max_tokens=20, temperature=1.5, ignore_eos=True)
    assert free.seed is not None
    again = model.generate(PROMPT, **varied(max_tokens=20, seed=free.seed))
    assert again.tokens == free.tokens
    other = model.generate(PROMPT, **varied(max_tokens=20, seed=free.seed ^ 1))
    assert other.tokens != free.tokens


def test_reusing_the_cache_changes_no_bit(model: Model, tiny_model_path: Path) -> None:
    args = varied(max_tokens=10, logprobs=3)
    with slmq.load(tiny_model_path, n_ctx=96) as fresh:
        expected = fresh.generate(PROMPT, **args)
    model.generate([*PROMPT[:4], 1, 2, 3], max_tokens=2)
    first = model.generate(PROMPT, **args)
    second = model.generate(PROMPT, **args)
    assert [first.cached_tokens, second.cached_tokens] == [4, len(PROMPT) - 1]
    for result in (first, second):
        assert result.tokens == expected.tokens
        assert result.logprobs == expected.logprobs
    longer = model.generate([*PROMPT, *expected.tokens[:9], 8], max_tokens=1)
    assert longer.cached_tokens == len(PROMPT) + 9


def test_kinds_of_prompts(model: Model) -> None:
    ids = model.tokenizer.encode("Hello there")
    expected = model.generate("Hello there", max_tokens=5).tokens
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)):
        assert model.generate(prompt, max_tokens=5).tokens == expected


def test_messages_go_through_the_chat_template(model: Model) -> None:
    ids = model.tokenizer.encode_chat(CHAT)
    result = model.generate(CHAT, max_tokens=5)
    assert result.prompt_tokens == len(ids)
    assert result.tokens == model.generate(ids, max_tokens=5).tokens


# ------------------------------------------------------------------ log-probabilities and logits


def test_logprobs_are_those_of_the_raw_logits(model: Model) -> None:
    result = model.generate(PROMPT, **varied(max_tokens=6, top_k=5, logprobs=3))
    assert result.logprobs is not None
    rows = model.logits(PROMPT + result.tokens)[len(PROMPT) - 1 : -1].astype(np.float64)
    for row, token, found in zip(rows, result.tokens, result.logprobs, strict=True):
        exact = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert found.token == token
        assert found.logprob == pytest.approx(exact[token], abs=1e-9)
        best = np.argsort(-row, kind="stable")[:3]
        assert [other for other, _ in found.top] == best.tolist()
        np.testing.assert_allclose([value for _, value in found.top], exact[best], atol=1e-9)


def test_logits_of_every_token(model: Model) -> None:
    rows = model.logits(PROMPT)
    assert (rows.shape, rows.dtype) == ((len(PROMPT), model.n_vocab), np.float32)
    sequence = model.engine.sequence()
    for token, row in zip(PROMPT, rows, strict=True):
        assert np.array_equal(model.engine.feed(sequence, [token]), row)
    assert np.array_equal(model.logits("Hello"), model.logits(model.tokenizer.encode("Hello")))


# ------------------------------------------------------------------ where an answer ends


def test_the_default_goes_on_until_the_context_is_full(model: Model) -> None:
    result = model.generate(PROMPT, ignore_eos=True)
    assert result.finish_reason == "length"
    assert result.prompt_tokens + result.generated_tokens == model.n_ctx
    full = model.generate(PROMPT, ignore_eos=True, max_tokens=model.n_ctx - len(PROMPT))
    assert full.tokens == result.tokens


def test_max_tokens_zero_only_reads_the_prompt(model: Model) -> None:
    chunks = list(model.stream(PROMPT, max_tokens=0))
    assert [(c.text, c.token, c.finish_reason) for c in chunks] == [("", None, "length")]
    assert chunks[0].tokens == []
    assert model.generate(PROMPT, max_tokens=1).cached_tokens == len(PROMPT) - 1


def test_an_end_token_ends_the_answer(model: Model) -> None:
    end = min(model.tokenizer.eos_ids)
    result = model.generate(PROMPT, logit_bias={end: 1e4})
    assert (result.text, result.tokens) == ("", [end])
    assert (result.finish_reason, result.stopped_by) == ("stop", end)
    on = model.generate(PROMPT, logit_bias={end: 1e4}, ignore_eos=True, max_tokens=4)
    assert (on.tokens, on.finish_reason) == ([end] * 4, "length")


def test_a_stop_token_ends_the_answer_even_without_end_tokens(model: Model) -> None:
    result = model.generate(PROMPT, logit_bias={7: 1e4}, stop=7, ignore_eos=True)
    assert (result.text, result.tokens, result.stopped_by) == ("", [7], 7)


def test_a_stop_string_is_cut_and_never_half_shown(model: Model) -> None:
    text = model.generate(PROMPT, **varied()).text
    assert len(text) > 8
    stop = text[3:7]
    chunks = list(model.stream(PROMPT, **varied(stop=["never said", stop])))
    expected = text[: text.index(stop)]
    shown = ""
    for chunk in chunks:
        shown += chunk.text
        assert expected.startswith(shown)
    result = chunks[-1].result
    assert result is not None
    assert result.text == shown == expected
    assert (result.finish_reason, result.stopped_by) == ("stop", stop)
    assert result.generated_tokens < 40


def test_held_back_text_is_released_at_the_end(model: Model) -> None:
    text = model.generate(PROMPT, **varied()).text
    result = model.generate(PROMPT, **varied(stop=text[-2:] + "\0never"))
    assert (result.text, result.finish_reason) == (text, "length")


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("prompt", ["", [], (), np.zeros(0, np.int64)])
def test_empty_prompts_are_refused(model: Model, prompt: Any) -> None:
    for call in (model.generate, model.stream, model.logits):
        with pytest.raises(ValueError, match="empty prompt"):
            call(prompt)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (None, TypeError, "got NoneType"),
        (5, TypeError, "got int"),
        (b"bytes", TypeError, "got bytes"),
        ({"role": "user"}, TypeError, "got dict"),
        (iter([1]), TypeError, "got list_iterator"),
        ([1.0], TypeError, "got float"),
        ([True], TypeError, "got bool"),
        ([1, "a"], TypeError, "got str"),
        ([1, {"role": "user"}], TypeError, "got dict"),
        (np.zeros(3), TypeError, "got float64.3."),
        (np.zeros((1, 3), np.int64), TypeError, "got int64.1, 3."),
        ([-1], ValueError, "got -1"),
        ([10**9], ValueError, "got 1000000000"),
        ("\ud800", ValueError, "surrogate"),
        ([{"content": "no role"}], (ValueError, TypeError), "role"),
        ([{"role": "user", "content": "x"}, 3], TypeError, "int"),
    ],
)
def test_malformed_prompts_are_refused(
    model: Model, prompt: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.stream(prompt)


def test_invalid_parameters_are_refused_before_any_work(model: Model) -> None:
    with pytest.raises(ValueError, match="temperature"):
        model.stream(PROMPT, temperature=-1)
    with pytest.raises(TypeError, match="did you mean 'top_k'"):
        model.stream(PROMPT, topk=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=f"logit_bias: .* got {model.n_vocab}"):
        model.stream(PROMPT, logit_bias={model.n_vocab: 1.0})
    assert model.generate(PROMPT, max_tokens=1).cached_tokens == 0


def test_a_prompt_beyond_the_context_is_refused_before_any_work(model: Model) -> None:
    long = [1] * 97
    with pytest.raises(slmq.ContextOverflowError, match=r"prompt has 97 tokens, but .* holds 96"):
        model.stream(long)
    with pytest.raises(slmq.ContextOverflowError, match="97 tokens"):
        model.logits(long)
    with pytest.raises(slmq.ContextOverflowError, match="there is no room for an answer"):
        model.stream(long[:96])
    with pytest.raises(slmq.ContextOverflowError, match=r"max_tokens asks for 90 more.*lower max"):
        model.stream(PROMPT, max_tokens=90)
    assert model.generate(long[:96], max_tokens=0).prompt_tokens == 96
    assert model.generate(long[:95], ignore_eos=True).generated_tokens == 1


def test_nan_weights_end_in_an_error_that_says_so(tiny_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model_path, folder)
    tensors = load_file(folder / "model.safetensors")
    norm = tensors["model.norm.weight"].copy()
    norm[0] = np.nan
    save_file({**tensors, "model.norm.weight": norm}, folder / "model.safetensors")

    def answer() -> None:
        with slmq.load(folder, n_ctx=64) as model:
            model.generate(PROMPT, max_tokens=2)

    with pytest.raises(slmq.Error, match="NaN"):
        answer()


# ------------------------------------------------------------------ the end of a model


def test_a_closed_model_refuses_everything(tiny_model_path: Path) -> None:
    model = slmq.load(tiny_model_path, n_ctx=64)
    unread = model.stream(PROMPT)
    assert "n_ctx=64" in repr(model)
    model.close()
    model.close()
    assert model.closed
    assert "closed" in repr(model)
    assert list(unread) == []
    for call in (model.generate, model.stream, model.logits):
        with pytest.raises(ValueError, match="closed"):
            call(PROMPT)
    with pytest.raises(ValueError, match="closed"):
        model.chat()


def test_closing_the_model_cancels_an_open_stream(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path, n_ctx=64) as model:
        stream = model.stream(PROMPT, ignore_eos=True)
        next(stream)
    assert isinstance(stream.result, GenerationResult)
    assert stream.result.finish_reason == "cancelled"
    assert list(stream) == []


def test_public_names() -> None:
    assert slmq.StreamChunk is StreamChunk
    assert slmq.GenerationResult is GenerationResult
    assert slmq.Model is Model
