"""The reference held against independent truth: closed forms, exact sums, transformers' goldens.

And its error bounds: plain float32 must stay inside each, and a kernel with a small defect (one
term left out, a neighbour's scale) must not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
import stories
from golden import golden_names, read_golden
from numpy_llama import LlamaConfig, NumpyLlama, rope_inv_freq
from numpy_weights import load_hf_folder, unpermute_rope
from tokenizers import Tokenizer

LLAMA_CASES = golden_names("llama")
GOLDEN_TOLERANCE = 1e-4  # float32 against float32; four times what is seen
needs_stories = pytest.mark.skipif(
    not stories.STORIES_BIN.exists(), reason="../shared/data/stories260k is absent"
)


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- quantization ---------------------------------------------------------------------------


def test_q4g32s_puts_the_peak_at_code_0() -> None:
    w = np.linspace(-4, 3.75, 32)[None]  # steps of a quarter, scale -4 / -8 = 0.5
    q = ref.quantize(w, "q4g32s")
    assert q.scale[0, 0] == 0.5
    assert q.codes[0, 0, [0, 2, 31]].tolist() == [0, 1, 15]  # 3.75 is past the 7 steps above 0
    assert q.dequantize()[0, [0, 2, 31]].tolist() == [-4.0, -3.5, 3.5]
    assert ref.quantize(-w, "q4g32s").scale[0, 0] == -0.5


def test_q4g32a_and_q8g32s_hit_their_grids() -> None:
    grid = 2 + 0.25 * np.arange(32)[None] % 4
    q = ref.quantize(grid, "q4g32a")
    assert (q.scale[0, 0], q.minimum) == (0.25, np.float16(2))
    assert np.array_equal(q.dequantize(), grid)
    codes = np.array([[-127, 127, 0, *range(29)]])
    assert np.array_equal(ref.quantize(codes * 0.5, "q8g32s").dequantize(), codes * 0.5)


@pytest.mark.parametrize("fmt", ["q4g32s", "q4g32a", "q8g32s"])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e4])
def test_quantization_error_is_within_its_bound_and_reaches_half_of_it(
    fmt: str, size: float
) -> None:
    w = size * normal(64, 77)
    w[3], w[4], w[5, :40] = 0, size, np.tile([size, -size], 20)
    error = np.abs(ref.quantize(w, fmt).dequantize() - w)
    bound = ref.quantization_bound(w, fmt)
    assert error.shape == w.shape
    assert (error <= bound).all()
    assert (error / np.maximum(bound, 1e-300)).max() > 0.5


def test_activation_codes_scales_and_sums() -> None:
    x = np.zeros((2, 40))
    x[0, :4] = [127, -127, 63.4, 0.6]
    x[1, 32:] = 1e-3
    codes, scale, sums = ref.quantize_activations(x)
    assert scale.tolist() == [[1.0, 0.0], [0.0, 1e-3 / 127]]
    assert codes[0, 0, :4].tolist() == [127, -127, 63, 1]
    assert sums.tolist() == [[64, 0], [0, 8 * 127]]
    x = ref.f64(normal(5, 77))
    codes, scale, _ = ref.quantize_activations(x)
    back = (codes * scale[..., None]).reshape(5, -1)[:, :77]
    assert (np.abs(back - x) <= ref.activation_bound(x)).all()


# --- definitions ---------------------------------------------------------------------------


def test_linear_is_the_exact_sum() -> None:
    w, x = normal(3, 37), normal(2, 37, seed=1)
    y = ref.linear(w, x)
    for i, j in np.ndindex(2, 3):
        pairs = zip(x[i].tolist(), w[j].tolist(), strict=True)
        exact = sum(Fraction(a) * Fraction(b) for a, b in pairs)
        assert y[i, j] == pytest.approx(float(exact), rel=1e-13)


def test_norms_in_closed_form() -> None:
    w = np.array([1.0, 2.0, -3.0, 0.5])
    assert ref.rmsnorm(np.full(4, 3.0), w, 16.0) == pytest.approx(w * 0.6)  # 3 / sqrt(9 + 16)
    assert ref.rmsnorm([1.0, 2, 3, 4], w, 0) == pytest.approx(w * [1, 2, 3, 4] / math.sqrt(7.5))
    y = ref.layernorm([7.0, 13.0, 7.0, 13.0], w, np.ones(4), 7.0)  # mean 10, variance 9 + 7
    assert y == pytest.approx(1 + w * np.array([-0.75, 0.75, -0.75, 0.75]))


def test_rope_turns_pairs_as_complex_numbers() -> None:
    x, positions = normal(6, 3, 10), np.array([0, 1, 2, 7, 100, 5000])
    inv_freq = rope_inv_freq(8, 10000.0, {})
    y = ref.rope(x, positions, inv_freq)
    pairs = ref.f64(x[..., :4]) + 1j * x[..., 4:8]
    turned = pairs * np.exp(1j * np.multiply.outer(positions, inv_freq))[:, None]
    assert y[..., :4] == pytest.approx(turned.real, abs=1e-10)
    assert y[..., 4:8] == pytest.approx(turned.imag, abs=1e-10)
    assert np.array_equal(y[..., 8:], x[..., 8:])
    assert np.array_equal(y[0], x[0])
    quarter = ref.rope([[[1.0, 2.0]]], [1], [math.pi / 2])
    assert quarter[0, 0] == pytest.approx([-2.0, 1.0])


def test_llama3_frequencies_keep_blend_and_slow() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    plain = rope_inv_freq(16, 10000.0, {})
    ratio = rope_inv_freq(16, 10000.0, scaling) / plain
    assert ratio[0] == 1  # 5.1 turns in 32 positions
    keep = (32 * plain[1] / (2 * math.pi) - 1) / 3  # 1.6 turns
    assert ratio[1] == pytest.approx(keep + (1 - keep) / 8)
    assert ratio[2:] == pytest.approx(1 / 8)
    assert rope_inv_freq(16, 10000.0, {"type": "linear", "factor": 4.0}) == pytest.approx(plain / 4)
    with pytest.raises(ValueError, match="yarn"):
        rope_inv_freq(16, 10000.0, {"rope_type": "yarn", "factor": 4.0})


def test_activation_functions_at_known_points() -> None:
    x = np.array([-1000.0, -88.0, -1.0, 0.0, 1.0, 30.0, 1000.0])
    e = math.e
    silu = [0.0, -88 * math.exp(-88), -1 / (1 + e), 0, e / (1 + e), 30 / (1 + math.exp(-30)), 1000]
    assert ref.silu(x) == pytest.approx(silu, rel=1e-14)
    assert ref.swiglu(x, np.full(7, -2.0)) == pytest.approx(-2 * ref.silu(x))
    grid = np.linspace(-5, 5, 101)
    by_erf = [t / 2 * (1 + math.erf(t / math.sqrt(2))) for t in grid]
    assert ref.gelu(grid) == pytest.approx(by_erf, abs=5e-4)  # how good the tanh form is
    assert ref.gelu(grid) - ref.gelu(-grid) == pytest.approx(grid)
    assert ref.gelu_exact(grid) == pytest.approx(by_erf, abs=1e-15)


def test_softmax_in_closed_form() -> None:
    assert ref.softmax([0.0, math.log(3), -np.inf]) == pytest.approx([0.25, 0.75, 0])
    assert ref.softmax([1e6, 1e6 + math.log(3) * 2], scale=0.5) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_matches_its_definition_written_as_loops(
    window: int | None, softcap: float | None
) -> None:
    q, k, v = normal(4, 6, 5), normal(9, 2, 5, seed=1), normal(9, 2, 5, seed=2)
    positions = np.array([0, 3, 4, 8])
    out = ref.attention(q, k, v, positions, scale=0.7, window=window, softcap=softcap)
    for i, h in np.ndindex(4, 6):
        last = int(positions[i])
        first = 0 if window is None else max(0, last - window + 1)
        weights = []
        for t in range(first, last + 1):
            s = 0.7 * math.fsum(
                float(a) * float(b) for a, b in zip(q[i, h], k[t, h // 3], strict=True)
            )
            weights.append(math.exp(s if softcap is None else softcap * math.tanh(s / softcap)))
        for c in range(5):
            terms = (p * float(v[first + t, h // 3, c]) for t, p in enumerate(weights))
            assert out[i, h, c] == pytest.approx(math.fsum(terms) / math.fsum(weights), rel=1e-12)


# --- bounds --------------------------------------------------------------------------------


def sequential_f32(terms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The sum over the last axis, one float32 addition after another: the worst usual order."""
    return np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1]


def test_linear_bound_holds_for_float32_and_catches_a_missing_term() -> None:
    w, x = normal(20, 576), normal(8, 576, seed=1)
    exact, bound = ref.linear(w, x), ref.linear_bound(np.abs(w), x, grouped=False)
    assert (np.abs(sequential_f32(x[:, None] * w) - exact) <= bound).all()
    short = ref.linear(w[:, :-1], x[:, :-1])
    assert (np.abs(short - exact) > bound).mean() > 0.9


@pytest.mark.parametrize("fmt", ["q4g32s", "q4g32a", "q8g32s"])
def test_grouped_linear_bound_holds_and_catches_an_off_by_one_code(fmt: str) -> None:
    q = ref.quantize(normal(20, 576), fmt)
    a, a_scale, a_sum = ref.quantize_activations(normal(8, 576, seed=1))
    scale = a_scale.astype(np.float32)
    x = (a * ref.f64(scale)[..., None]).reshape(8, -1)
    dots = np.einsum("mgi,ngi->mng", a.astype(np.int64), (q.codes - q.zero).astype(np.int64))
    terms = dots.astype(np.float32) * (q.scale.astype(np.float32) * scale[:, None])
    if q.minimum is not None:
        terms = terms + q.minimum.astype(np.float32) * (a_sum * scale).astype(np.float32)[:, None]
    exact = ref.linear(q.dequantize(), x)
    bound = ref.linear_bound(q.magnitude(), x, grouped=True)
    assert (np.abs(sequential_f32(terms) - exact) <= bound).all()
    wrong = q.dequantize()
    wrong[:, 100] += ref.f64(q.scale)[:, 3]
    assert (np.abs(ref.linear(wrong, x) - exact) > bound)[a.reshape(8, -1)[:, 100] != 0].all()


def f32_rmsnorm(x: npt.NDArray[np.float32], w: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mean = sequential_f32(x * x)[:, None] / np.float32(x.shape[1])
    return np.asarray(x / np.sqrt(mean + np.float32(1e-5)) * w)


def f32_layernorm(
    x: npt.NDArray[np.float32], w: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    centred = x - sequential_f32(x)[:, None] / np.float32(x.shape[1])
    variance = sequential_f32(centred * centred)[:, None] / np.float32(x.shape[1])
    return np.asarray(centred / np.sqrt(variance + np.float32(1e-5)) * w + w)


@pytest.mark.parametrize("k", [1, 15, 33, 576])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_norm_bounds_hold_for_float32_and_catch_small_defects(k: int, offset: float) -> None:
    x, w = normal(50, k) + np.float32(offset), normal(k, seed=1)
    exact, bound = ref.rmsnorm(x, w, 1e-5), ref.rmsnorm_bound(x, w, 1e-5)
    assert (np.abs(f32_rmsnorm(x, w) - exact) <= bound).all()
    if offset == 0:  # where eps and the variance are not small beside the mean
        assert (np.abs(ref.rmsnorm(x, w, 1.2e-3) - exact) > bound).mean() > 0.9
    exact, bound = ref.layernorm(x, w, w, 1e-5), ref.layernorm_bound(x, w, w, 1e-5)
    assert (np.abs(f32_layernorm(x, w) - exact) <= bound).all()
    if offset == 0 and k > 1:
        sample_variance = ref.layernorm(x, w * math.sqrt(1 - 1 / k), w, 1e-5)
        assert (np.abs(sample_variance - exact) > bound).mean() > 0.9


def test_elementwise_bounds_hold_for_float32() -> None:
    x = np.concatenate([np.linspace(-86, 86, 4001), 10.0 ** np.arange(-8, 2)]).astype(np.float32)
    one, two = np.float32(1), np.float32(2)
    silu = x / (one + np.exp(-x)) * two
    assert (np.abs(silu - ref.swiglu(x, np.full_like(x, 2))) <= ref.swiglu_bound(x, two)).all()
    u = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    gelu = x / two * (one + np.tanh(u))
    assert (np.abs(gelu - ref.gelu(x)) <= ref.gelu_bound(x)).all()
    assert ref.swiglu_bound(x, two).max() < 1e-4  # and is not so wide that all would pass
    assert ref.gelu_bound(x).max() < 1e-4


def test_rope_bound_holds_for_float32_and_catches_a_position() -> None:
    x, positions, inv_freq = normal(40, 2, 12), np.arange(40) * 97, rope_inv_freq(8, 1e4, {})
    exact, bound = ref.rope(x, positions, inv_freq), ref.rope_bound(x, 8)
    angle = np.multiply.outer(positions, inv_freq)[:, None]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b, rest = np.split(x, [4, 8], axis=-1)
    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    assert (np.abs(turned - exact) <= bound).all()
    late = np.abs(ref.rope(x, positions + 1, inv_freq) - exact)[..., :8] > bound[..., :8]
    assert late.mean() > 0.99


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (None, 5.0)])
def test_softmax_and_attention_bounds_hold_for_float32_and_catch_a_position(
    window: int | None, softcap: float | None
) -> None:
    q, k, v = 2 * normal(9, 4, 16), normal(65, 2, 16, seed=1), normal(65, 2, 16, seed=2)
    positions = np.array([1, 14, 15, 16, 17, 62, 63, 64, 64])
    how: dict[str, Any] = {"scale": 0.25, "window": window, "softcap": softcap}
    exact = ref.attention(q, k, v, positions, **how)
    bound = ref.attention_bound(q, k, v, positions, **how)
    keys, values = (np.repeat(t, 2, axis=1) for t in (k, v))
    s = sequential_f32(q.transpose(1, 0, 2)[:, :, None] * keys.transpose(1, 0, 2)[:, None])
    s = s * np.float32(0.25)
    if softcap is not None:
        s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
    visible = np.isfinite(ref.attention_scores(q, k, positions, **how).value)
    s = np.where(visible, s, np.float32(-np.inf))
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    p = e / sequential_f32(e)[..., None]
    assert (np.abs(p - ref.softmax(s)) <= ref.softmax_bound(s)).all()
    out = sequential_f32(p[:, :, None] * values.transpose(1, 2, 0)[:, None])  # [heads, m, d]
    assert (np.abs(out.transpose(1, 0, 2) - exact) <= bound).all()
    for p_other, k_other in ((positions - 1, k), (positions, k[::-1])):
        other = ref.attention(q, k_other, v, p_other, **how)
        assert (np.abs(other - exact) > bound).mean() > 0.95


# --- whole models --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LLAMA_CASES)
def test_numpy_llama_agrees_with_transformers(name: str) -> None:
    golden = read_golden("llama", name)
    config, weights = load_hf_folder(golden.folder)
    model = NumpyLlama(config, weights)
    for tokens, logits in zip(golden.tokens, golden.logits, strict=True):
        assert np.abs(model.logits(tokens) - logits).max() < GOLDEN_TOLERANCE
    if golden.v4_config is not None:
        old = LlamaConfig.from_hf(json.loads(golden.v4_config.read_text("utf-8")))
        assert np.array_equal(old.inv_freq, config.inv_freq)


def test_there_is_a_golden_for_each_trait() -> None:
    configs = [
        json.loads((read_golden("llama", n).folder / "config.json").read_text())
        for n in LLAMA_CASES
    ]
    heads = {(c["num_attention_heads"], c["num_key_value_heads"]) for c in configs}
    assert any(h == kv for h, kv in heads)
    assert any(h > kv > 1 for h, kv in heads)
    assert any(h > kv == 1 for h, kv in heads)
    assert {c["tie_word_embeddings"] for c in configs} == {True, False}
    assert {c["rope_parameters"]["rope_type"] for c in configs} == {"default", "linear", "llama3"}
    assert {c["dtype"] for c in configs} == {"float32", "float16", "bfloat16"}
    assert any(c["hidden_size"] % 16 and c["intermediate_size"] % 32 for c in configs)
    assert any(c["head_dim"] * c["num_attention_heads"] != c["hidden_size"] for c in configs)


@pytest.mark.parametrize("name", LLAMA_CASES)
def test_goldens_notice_every_part_of_the_model(name: str) -> None:
    """Each small defect moves some logit by far more than any tolerance in use."""
    golden = read_golden("llama", name)
    config, weights = load_hf_folder(golden.folder)
    tokens, logits = golden.tokens[1], golden.logits[1]

    def moved(config: LlamaConfig, changed: dict[str, npt.NDArray[np.float32]]) -> float:
        return float(np.abs(NumpyLlama(config, weights | changed).logits(tokens) - logits).max())

    faster = LlamaConfig(**(vars(config) | {"inv_freq": config.inv_freq * 1.02}))
    assert moved(faster, {}) > 0.2
    last_pair = config.inv_freq.copy()
    last_pair[-1] *= 1.5  # the slowest pair, which short texts hardly turn
    assert moved(LlamaConfig(**(vars(config) | {"inv_freq": last_pair})), {}) > 0.02
    changes: dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]] = {
        "norm.weight": np.ones_like,
        ".bias": np.zeros_like,
        "_proj.weight": lambda w: np.roll(w, 1, axis=0),
        "lm_head.weight": lambda w: np.roll(w, 1, axis=1),
    }
    for key, weight in weights.items():
        for ending, change in changes.items():
            if key.endswith(ending):
                assert moved(config, {key: change(weight)}) > 0.1, key
    for i in range(config.n_layers):
        key = f"model.layers.{i}.self_attn.o_proj.weight"
        for head in range(config.n_heads):
            dropped = weights[key].copy()
            dropped[:, head * config.head_dim : (head + 1) * config.head_dim] = 0
            assert moved(config, {key: dropped}) > 0.5


def test_perplexity_scores_the_second_half_of_each_window() -> None:
    golden = read_golden("llama", "gqa_untied")
    config, weights = load_hf_folder(golden.folder)
    model = NumpyLlama(config, weights, np.float64)
    tokens, scores = golden.tokens[1], []  # 67 tokens: 4 windows of 16, and 3 left over
    for start in range(0, 64, 16):
        logits = model.logits(tokens[start : start + 16])
        for at in range(8, 15):
            row = logits[at].tolist()
            log_sum = math.log(math.fsum(map(math.exp, row)))
            scores.append(row[tokens[start + at + 1]] - log_sum)
    got = model.perplexity(tokens, ctx=16, chunks=99)
    assert got.tokens == 28
    assert got.perplexity == pytest.approx(math.exp(-math.fsum(scores) / 28))
    spread = np.std(scores, ddof=1) / math.sqrt(28)
    assert got.standard_error == pytest.approx(got.perplexity * spread)
    assert model.perplexity(tokens, ctx=16, chunks=2).tokens == 14
    assert config.bos_token_id == 1
    first = model.perplexity(tokens, ctx=16, chunks=1, add_bos=True)
    assert first == model.perplexity([1, *tokens[1:16]], ctx=16, chunks=1)
    with pytest.raises(ValueError, match="at least 16"):
        model.perplexity(tokens[:9], ctx=16)


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary() -> None:
    config, weights = load_hf_folder(read_golden("llama", "gqa_untied").folder)
    blank = weights | {"lm_head.weight": np.zeros_like(weights["lm_head.weight"])}
    got = NumpyLlama(config, blank).perplexity(list(range(64)), ctx=32)
    assert got.perplexity == pytest.approx(96)
    assert got.standard_error == pytest.approx(0, abs=1e-9)


def test_unpermute_rope_turns_interleaved_pairs_into_halves() -> None:
    rows = np.arange(12)[:, None] * np.ones((1, 5))  # two heads of six rows
    assert unpermute_rope(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


@needs_stories
def test_stories_tokenizer_json_encodes_as_run_c_does() -> None:
    run = stories.RunTokenizer.read()
    converted = Tokenizer.from_str(json.dumps(stories.tokenizer_json(run)))
    texts = [
        *stories.tinystories(12),
        "",
        " ",
        "  a  b ",
        "\t\n <0x0A> | \x01\x7f",
        "naïve 日本 🙂",
    ]
    texts += ["heheheh hehe", "a" * 50, "«Once upon a time»\r\n"]
    for text in texts:
        ids = run.encode(text)
        assert converted.encode(text).ids == ids
        assert run.decode(ids) == text
        assert converted.decode(ids) == text


@needs_stories
def test_stories_folder_tells_a_story(tmp_path: Path) -> None:
    folder = stories.convert(tmp_path / "stories260k")
    model = NumpyLlama(*load_hf_folder(folder))
    run = stories.RunTokenizer.read()
    told = run.decode(model.greedy([stories.BOS], 40))
    assert told.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside"
    )
    scores = [model.log_probs(run.encode(text)) for text in stories.tinystories(5)]
    assert 3.2 < math.exp(-np.concatenate(scores).mean()) < 4.4  # trained to e ** 1.297 = 3.66
