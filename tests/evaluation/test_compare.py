"""slmq.compare against NumPy over whole matrices of logits."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.evaluation.divergence import compare_logits
from slmq.evaluation.metrics import exp_of_mean, mean, root_of_mean
from slmq.evaluation.windows import scored_blocks

TEXT = "Some text, \u00fcber tiny models.\r\n" * 12
CTX, WINDOWS = 40, 3


@pytest.fixture(scope="module")
def full(tiny_model_path: Path) -> Iterator[Engine]:
    opened = open_engine(tiny_model_path, LoadOptions(format="f32", kv_dtype="f32", n_ctx=400))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def rounded(tiny_model_path: Path) -> Iterator[Engine]:
    opened = open_engine(tiny_model_path, LoadOptions(format="int4", n_threads=2, n_ctx=400))
    yield opened
    opened.close()


def logits_by_hand(engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the second halves of all windows, and the tokens that follow."""
    ids = engine.tokenizer.encode(TEXT, add_special=False)
    logits, tokens = [], []
    for i in range(WINDOWS):
        window = ids[i * CTX : (i + 1) * CTX]
        rows = engine.feed(engine.sequence(), window, logits="all")
        logits.append(rows[CTX // 2 : CTX - 1].astype(np.float64))
        tokens += window[CTX // 2 + 1 :]
    return np.concatenate(logits), np.array(tokens)


def test_every_number_is_that_of_the_whole_matrices(full: Engine, rounded: Engine) -> None:
    a, tokens = logits_by_hand(full)
    b, _ = logits_by_hand(rounded)
    at = np.arange(len(tokens))
    p = np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)
    q = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
    kl = (p * np.log(p / q)).sum(axis=1)
    n = len(tokens)
    found = slmq.compare(full, rounded, TEXT, ctx=CTX, chunks=WINDOWS)
    assert (found.tokens, found.windows) == (n, WINDOWS)
    assert n == WINDOWS * (CTX - 1 - CTX // 2)
    assert kl.mean() > 1e-6  # int4 is not float32
    assert found.kl_mean.value == pytest.approx(kl.mean(), rel=1e-8)
    assert found.kl_mean.standard_error == pytest.approx(kl.std(ddof=1) / math.sqrt(n), rel=1e-6)
    assert found.kl_median == pytest.approx(np.median(kl), rel=1e-7)
    assert found.kl_p90 == pytest.approx(np.quantile(kl, 0.9), rel=1e-7)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-7)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-7)
    agree = a.argmax(axis=1) == b.argmax(axis=1)
    assert found.top1_agreement.value == agree.mean()
    ca, cb = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    assert found.logit_rms.value == pytest.approx(np.sqrt(((ca - cb) ** 2).mean()), rel=1e-9)
    relative = np.sqrt(((ca - cb) ** 2).mean() / (ca**2).mean())
    assert found.logit_rms_relative == pytest.approx(relative, rel=1e-9)
    change = q[at, tokens] - p[at, tokens]
    assert found.token_probability_rms.value == pytest.approx(np.sqrt((change**2).mean()), rel=1e-7)
    log_ratio = np.log(p[at, tokens] / q[at, tokens])
    assert found.perplexity_ratio.value == pytest.approx(np.exp(log_ratio.mean()), rel=1e-9)
    wanted_error = np.exp(log_ratio.mean()) * log_ratio.std(ddof=1) / math.sqrt(n)
    assert found.perplexity_ratio.standard_error == pytest.approx(wanted_error, rel=1e-6)


def test_perplexities_are_those_of_perplexity(full: Engine, rounded: Engine) -> None:
    found = slmq.compare(full, rounded, TEXT, ctx=CTX)
    for metric, engine in ((found.perplexity_a, full), (found.perplexity_b, rounded)):
        alone = slmq.perplexity(engine, TEXT, ctx=CTX)
        assert (metric.value, metric.standard_error) == (alone.perplexity, alone.standard_error)
        assert (found.tokens, found.windows) == (alone.tokens, alone.windows)


def test_a_model_is_no_distance_from_itself(full: Engine, tiny_model_path: Path) -> None:
    twin = open_engine(tiny_model_path, LoadOptions(format="f32", kv_dtype="f32", n_threads=2))
    found = slmq.compare(full, twin, TEXT, ctx=CTX)
    twin.close()
    assert (found.kl_mean.value, found.kl_max, found.logit_rms.value) == (0, 0, 0)
    assert found.top1_agreement.value == 1
    assert found.perplexity_ratio.value == 1


def test_exact_activations_are_nearer(full: Engine, tiny_model_path: Path) -> None:
    weights = open_engine(
        tiny_model_path, LoadOptions(format="int8", kv_dtype="f32", activations="exact")
    )
    mixed = open_engine(tiny_model_path, LoadOptions(format="int8", kv_dtype="f32"))
    found = slmq.compare(weights, mixed, TEXT, ctx=CTX)
    far = slmq.compare(full, mixed, TEXT, ctx=CTX)
    near = slmq.compare(full, weights, TEXT, ctx=CTX)
    for engine in (weights, mixed):
        engine.close()
    assert 0 < found.logit_rms.value < far.logit_rms.value
    assert near.kl_mean.value < far.kl_mean.value
    with pytest.raises(ValueError, match="activations: expected one of 'mixed', 'exact'; got 'x'"):
        open_engine(tiny_model_path, LoadOptions(activations="x"))


def test_a_constant_added_to_logits_is_no_difference() -> None:
    rng = np.random.default_rng(5)
    a = rng.standard_normal((6, 700)).astype(np.float32)
    rows = compare_logits(a, a + np.float32(4), rng.integers(0, 700, 6))
    assert rows["kl"].max() < 1e-12
    assert np.sqrt(rows["square_change"]).max() < 1e-6
    assert rows["same"].all()


def test_blocks_may_be_cut_differently(full: Engine, rounded: Engine) -> None:
    """A larger model takes a window in smaller chunks; the numbers stay."""
    wanted = slmq.compare(full, rounded, TEXT, ctx=300, chunks=1)
    chunk = rounded.chunk
    rounded.chunk = 37
    try:
        found = slmq.compare(full, rounded, TEXT, ctx=300, chunks=1)
    finally:
        rounded.chunk = chunk
    assert wanted.tokens == 149
    assert found.as_json() | {"seconds": 0} == wanted.as_json() | {"seconds": 0}


def test_few_logits_are_in_memory_at_a_time(full: Engine) -> None:
    ids = full.tokenizer.encode(TEXT, add_special=False)[:300]
    blocks = list(scored_blocks(full, ids))
    assert [logits.shape for logits, _ in blocks] == [(n, full.n_vocab) for n in (64, 64, 21)]
    assert np.concatenate([tokens for _, tokens in blocks]).tolist() == ids[151:]


def test_token_ids_are_taken_as_they_are(full: Engine, rounded: Engine) -> None:
    ids = full.tokenizer.encode(TEXT, add_special=False)
    one = slmq.compare(full, rounded, TEXT, ctx=CTX, chunks=1)
    other = slmq.compare(full, rounded, ids, ctx=CTX, chunks=1)
    assert other.kl_mean == one.kl_mean
    alone = slmq.perplexity(full, ids, ctx=CTX, chunks=1)
    assert alone.perplexity == one.perplexity_a.value


def test_models_need_one_vocabulary(full: Engine, tiny_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_model_path, folder)
    spec = json.loads(byte_tokenizer().to_str())
    vocabulary = spec["model"]["vocab"]
    first, second = list(vocabulary)[65:67]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with (
        slmq.load(folder) as other,
        pytest.raises(ValueError, match=r"token 65 of .* is b'.' and b'.'"),
    ):
        slmq.compare(full, other, TEXT, ctx=CTX)


def test_what_cannot_be_compared_is_refused(full: Engine, rounded: Engine) -> None:
    with pytest.raises(ValueError, match="the same one twice"):
        slmq.compare(full, full, TEXT)
    with pytest.raises(TypeError, match=r"expected a model from slmq\.load, got str"):
        slmq.compare("smollm2", full, TEXT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too few for one window of 40"):
        slmq.compare(full, rounded, "short", ctx=CTX)
    with pytest.raises(ValueError, match="ctx: expected 8 to"):
        slmq.compare(full, rounded, TEXT, ctx=7)


def test_standard_errors() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    error = values.std(ddof=1) / 2
    assert mean(values).value == 4
    assert mean(values).standard_error == pytest.approx(error)
    assert mean([3.0]).standard_error is None
    assert exp_of_mean(values).standard_error == pytest.approx(math.exp(4) * error)
    assert root_of_mean(values).value == 2
    assert root_of_mean(values).standard_error == pytest.approx(error / 4)
    assert root_of_mean([0.0, 0.0]).standard_error is None


def test_the_command_prints_what_the_library_finds(
    full: Engine, tiny_model_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text"
    file.write_text(TEXT, "utf-8", newline="")
    arguments = ["compare", str(tiny_model_path), str(tiny_model_path), "--file", str(file)]
    arguments += ["--ctx", "40", "--format-a", "f32", "--kv-dtype-a", "f32", "--format-b", "int4"]
    shown = CliRunner().invoke(app, [*arguments, "--json"])
    with slmq.load(tiny_model_path, format="int4") as b:
        wanted = slmq.compare(full, b, TEXT, ctx=40).as_json()
    found = json.loads(shown.stdout)
    assert found["a"] == found["b"] == str(tiny_model_path)
    assert found["kl_mean_stderr"] > 0
    assert {**found, "seconds": 0} == {
        **wanted, "seconds": 0, "a": found["a"], "b": found["b"],
    }  # fmt: skip
    people = CliRunner().invoke(app, [*arguments, "--chunks", "99"])
    assert "same most likely token" in people.stdout
    assert "windows of 40 tokens, not 99" in people.stderr


def test_a_batch_gives_what_single_sequences_give(full: Engine) -> None:
    ids = full.tokenizer.encode(TEXT, add_special=False)
    cuts = [(0, 90, 80), (5, 7, 0), (9, 10, 1), (20, 60, 3)]
    wanted = []
    for start, stop, rows in cuts:
        logits = full.feed(full.sequence(), ids[start:stop], logits="all")
        wanted.append(logits[len(logits) - rows :])
    batch = [(full.sequence(), ids[start:stop], rows) for start, stop, rows in cuts]
    blocks = list(full.run(batch) or ())
    assert [len(block) for block in blocks] == [64, 20]
    assert (np.concatenate(blocks) == np.concatenate(wanted)).all()
    assert [list(sequence.tokens) for sequence, _, _ in batch] == [ids[i:j] for i, j, _ in cuts]
    assert list(full.run([(batch[1][0], ids[:3], 0)]) or ()) == []
    assert list(batch[1][0].tokens) == ids[5:7] + ids[:3]
    with pytest.raises(ValueError, match="expected distinct sequences"):
        full.run([batch[0], batch[0]])
