"""Perplexity: the protocol, its arithmetic, and text that it must refuse."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.errors import CheckpointError, DataError
from slmq.evaluation import perplexity, read_text
from slmq.evaluation.likelihood import Request, log_probabilities, score
from slmq.evaluation.windows import leading_bos

TEXT = "Some text, \u00fcber tiny models.\r\n" * 12


@pytest.fixture(scope="module")
def engine(tiny_model_path: Path) -> Iterator[Engine]:
    opened = open_engine(tiny_model_path, LoadOptions(n_ctx=256))
    yield opened
    opened.close()


def scores_by_hand(engine: Engine, ids: list[int], ctx: int, windows: int) -> np.ndarray:
    """Log-probabilities of the tokens at ctx // 2 + 1 ... ctx - 1, from all logits at once."""
    scores = []
    for i in range(windows):
        window = ids[i * ctx : (i + 1) * ctx]
        logits = engine.feed(engine.sequence(), window, logits="all").astype(np.float64)
        for position in range(ctx // 2, ctx - 1):
            row = logits[position]
            scores.append(row[window[position + 1]] - np.log(np.exp(row).sum()))
    return np.array(scores)


@pytest.mark.parametrize(("ctx", "windows"), [(8, 3), (33, 2), (48, 1), (200, 1)])
def test_the_second_half_of_each_window_is_scored(engine: Engine, ctx: int, windows: int) -> None:
    ids = engine.tokenizer.encode(TEXT, add_special=False)
    wanted = scores_by_hand(engine, ids, ctx, windows)
    found = perplexity(engine, TEXT, ctx=ctx, chunks=windows)
    assert found.tokens == len(wanted) == windows * (ctx - 1 - ctx // 2)
    assert found.windows == windows
    assert found.perplexity == pytest.approx(math.exp(-wanted.mean()), rel=1e-9)
    error = found.perplexity * math.sqrt(wanted.var() / (len(wanted) - 1))
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert found.seconds > 0


def test_without_chunks_every_window_counts(engine: Engine) -> None:
    ids = engine.tokenizer.encode(TEXT, add_special=False)
    told: list[tuple[int, int]] = []
    found = perplexity(engine, TEXT, ctx=64, progress=lambda done, of, _: told.append((done, of)))
    assert found.windows == len(ids) // 64
    assert told == [(i + 1, found.windows) for i in range(found.windows)]
    assert perplexity(engine, TEXT, ctx=64, chunks=10_000).tokens == found.tokens


def test_bos_takes_the_place_of_the_first_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = engine.tokenizer
    assert leading_bos(tokenizer) is None
    bos = tokenizer.bos_id
    assert bos is not None
    ids = tokenizer.encode(TEXT, add_special=False)
    plain = tokenizer.encode

    def with_bos(text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        found = plain(text, add_special=False, parse_special=parse_special)
        return [bos, *found] if add_special else found

    without = perplexity(engine, TEXT, ctx=40, chunks=2)
    monkeypatch.setattr(tokenizer, "encode", with_bos)
    assert leading_bos(tokenizer) == bos
    found = perplexity(engine, TEXT, ctx=40, chunks=2)
    replaced = [bos if i % 40 == 0 else token for i, token in enumerate(ids)]
    wanted = scores_by_hand(engine, replaced, 40, 2)
    assert found.perplexity == pytest.approx(math.exp(-wanted.mean()), rel=1e-9)
    assert found.perplexity != without.perplexity


def test_special_tokens_written_in_the_text_stay_text(engine: Engine) -> None:
    text = "<|im_end|>" * 8
    assert perplexity(engine, text, ctx=40).tokens == 2 * 19


def test_log_probabilities_are_those_of_float64() -> None:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((5, 301)) * 30).astype(np.float32)
    tokens = rng.integers(0, 301, 5)
    wide = logits.astype(np.longdouble)
    wanted = wide[np.arange(5), tokens] - np.log(np.exp(wide).sum(axis=1))
    np.testing.assert_allclose(log_probabilities(logits, tokens), wanted.astype(float), rtol=1e-13)
    high = np.array([[3e38, 3e38, -3e38]], np.float32)
    assert log_probabilities(high, np.array([0]))[0] == pytest.approx(-math.log(2))


@pytest.mark.parametrize("ctx", [-1, 0, 7, 10**6])
def test_a_window_must_fit_the_context(engine: Engine, ctx: int) -> None:
    with pytest.raises(ValueError, match=rf"ctx: expected 8 to {engine.n_ctx} tokens, got {ctx}"):
        perplexity(engine, TEXT, ctx=ctx)


def test_bad_chunks_and_short_texts_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="chunks: expected at least 1, got 0"):
        perplexity(engine, TEXT, ctx=8, chunks=0)
    with pytest.raises(ValueError, match="5 tokens, too few for one window of 8"):
        perplexity(engine, "short", ctx=8)
    with pytest.raises(ValueError, match="0 tokens"):
        perplexity(engine, "", ctx=8)


def test_files_are_read_byte_by_byte(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("a\r\nb\n\u00e9\r".encode())
    assert read_text(file) == "a\r\nb\n\u00e9\r"


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin1"
    file.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match="expected UTF-8 text, found byte 0xe9 at offset 3"):
        read_text(file)
    with pytest.raises(DataError, match=r"cannot read .*missing"):
        read_text(tmp_path / "missing")
    with pytest.raises(DataError, match="cannot read"):
        read_text(tmp_path)


@pytest.mark.slow
def test_the_real_model_scores_as_float32_does(smollm2_path: Path, shared_data: Path) -> None:
    """21.2799: a float32 NumPy forward of the dequantized weights over the same windows."""
    engine = open_engine(smollm2_path)
    try:
        text = read_text(shared_data / "wikitext2" / "wiki.test.raw")
        found = perplexity(engine, text, ctx=512, chunks=2)
    finally:
        engine.close()
    assert found.tokens == 510
    assert found.perplexity == pytest.approx(21.2799, rel=0.003)


def test_a_model_whose_logits_overflow_is_damaged(tiny_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model_path, folder)
    tensors = load_file(folder / "model.safetensors")
    norm = np.full(tensors["model.norm.weight"].shape, 3e38, np.float32)
    save_file({**tensors, "model.norm.weight": norm}, folder / "model.safetensors")
    damaged = open_engine(folder, LoadOptions(n_ctx=256))
    with pytest.raises(CheckpointError, match="produced NaN or infinite logits; its weights are"):
        perplexity(damaged, TEXT, ctx=32)
    with pytest.raises(CheckpointError, match="produced NaN"):
        list(score(damaged, [Request([1, 2], [[3], [4]])]))
    damaged.close()
