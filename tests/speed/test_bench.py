"""Bench: what is counted, what is reported, and shapes with random weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from small_shapes import small_shape

from slmq.checkpoint import open_checkpoint
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.formats import FORMATS, format_named
from slmq.hub import catalogue
from slmq.models.loading import load_weights
from slmq.models.registry import ENCODERS
from slmq.speed import bench as b
from slmq.speed import shapes
from slmq.speed.bench import Loaded, Trial, Work, bench, make_row
from slmq.speed.limits import MOST, REFUSED, Limits, told

SMALL = small_shape(positions=128)


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits themselves are tested elsewhere."""
    monkeypatch.setattr("slmq.speed.limits.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("slmq.speed.limits.PROBE_S", 0.01)


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> Loaded:
    return b.load(str(tiny_model_path), LoadOptions(n_threads=1, format="int8"))


def test_the_json_has_the_documented_shape(tiny: Loaded) -> None:
    found = bench(tiny, prompt=20, gen=5, threads=[1, 2], repeat=2).as_json()
    assert list(found) == [
        "model",
        "format",
        "isa",
        "tuning",
        "limits",
        "rows",
        "load_s",
        "peak_memory_bytes",
    ]
    assert found["model"] == "tiny-llama"
    assert found["format"] == "q8g32s"
    assert [list(limit) for limit in found["limits"]] == [
        ["threads", "read_gb_per_s", "integer_peak_gmac_per_s"]
    ] * 2
    assert [(row["test"], row["threads"]) for row in found["rows"]] == [
        ("pp20", 1),
        ("tg5", 1),
        ("pp20", 2),
        ("tg5", 2),
    ]
    for row in found["rows"]:
        speed = row["tokens_per_s"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert row["read_fraction"] > 0
        assert row["integer_fraction"] > 0
    assert found["load_s"] > 0
    assert found["peak_memory_bytes"] > 1 << 20


def test_progress_is_told_to_its_end(tiny: Loaded) -> None:
    told: list[tuple[int, int, str]] = []
    bench(tiny, prompt=4, gen=0, repeat=2, progress=lambda *step: told.append(step))
    assert [step[0] for step in told] == list(range(5))
    assert {step[1] for step in told} == {5}
    assert told[0][2] == "pp4, 1 thread, warming up"


def test_a_test_can_be_left_out(tiny: Loaded) -> None:
    assert [row.test for row in bench(tiny, prompt=0, gen=3, repeat=1).rows] == ["tg3"]
    assert [row.test for row in bench(tiny, prompt=3, gen=0, repeat=1).rows] == ["pp3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": -1}, "prompt: expected 0 to"),
        ({"prompt": 10**6}, "the context of tiny-llama"),
        ({"gen": -1}, "gen: expected 0 to"),
        ({"prompt": 0, "gen": 0}, "nothing to measure"),
        ({"batch": []}, "batch: expected numbers from 1 to 64"),
        ({"batch": [1, 65]}, "batch: expected numbers from 1 to 64, got .1, 65."),
        ({"repeat": 0}, "repeat: expected at least 1, got 0"),
        ({"threads": []}, "threads: expected at least one"),
        ({"threads": [0]}, "threads"),
    ],
)
def test_numbers_out_of_range(tiny: Loaded, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench(tiny, **{"prompt": 4, "gen": 4, "repeat": 1, **options})  # type: ignore[arg-type]


def test_work_is_counted_from_the_plan(tiny_model_path: Path) -> None:
    with open_checkpoint(tiny_model_path) as checkpoint:
        weights = load_weights(checkpoint, threads=1, format="int8")
    config = weights.config
    plan = record_plan(weights, LoadOptions(n_threads=1))
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    body = config.n_layers * config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size)
    head = config.vocab_size * config.hidden_size
    step = Work.of(plan, Trial("tg10", 10, whole=False))
    assert step.macs_per_token == body + head
    kv_bytes = plan.native.page_bytes / 64
    read_by_step = sum(s.weight_bytes for s in plan.steps)
    # Token i attends to i positions: 5.5 of 10 on average.
    assert step.read_bytes_per_token == pytest.approx(read_by_step + 5.5 * kv_bytes)
    prompt = Work.of(plan, Trial("pp10", 10, whole=True))
    assert prompt.macs_per_token == pytest.approx(body + head / 10)
    assert prompt.read_bytes_per_token == pytest.approx(read_by_step / 10 + kv_bytes)
    long = 2 * plan.native.max_rows + 1
    three_runs = Work.of(plan, Trial("pp", long, whole=True))
    head_bytes = plan.steps[-1].weight_bytes
    read = 3 * (read_by_step - head_bytes) + head_bytes
    positions = plan.native.max_rows * 3 + long
    assert three_runs.read_bytes_per_token == pytest.approx((read + positions * kv_bytes) / long)


def test_sequences_of_a_step_share_its_weights(tiny_model_path: Path) -> None:
    with open_checkpoint(tiny_model_path) as checkpoint:
        plan = record_plan(
            load_weights(checkpoint, threads=1, format="int8"), LoadOptions(n_threads=1)
        )
    alone = Work.of(plan, Trial("tg10", 10, whole=False))
    four = Work.of(plan, Trial("tg10x4", 10, whole=False, sequences=4))
    assert four.macs_per_token == alone.macs_per_token
    weights = sum(s.weight_bytes for s in plan.steps)
    saved = alone.read_bytes_per_token - four.read_bytes_per_token
    assert saved == pytest.approx(weights * 3 / 4)


def test_every_number_of_sequences_has_a_row(tiny: Loaded) -> None:
    rows = bench(tiny, prompt=0, gen=3, batch=[1, 4], repeat=1).rows
    assert [row.test for row in rows] == ["tg3", "tg3x4"]


def test_fractions_are_those_of_the_median() -> None:
    row = make_row("tg4", [10.0, 50.0, 20.0], Work(2e8, 3e9), Limits(1, 8.0, 120.0))
    assert (row.tokens_per_s.min, row.tokens_per_s.median, row.tokens_per_s.max) == (10, 20, 50)
    assert row.read_fraction == pytest.approx(2e8 * 20 / 8e9)
    assert row.integer_fraction == pytest.approx(3e9 * 20 / 120e9)


def test_a_fraction_past_its_limit_is_refused() -> None:
    assert told(MOST, 3) == "1.050"
    assert told(1.06) == REFUSED


# ------------------------------------------------------------------ shapes


@pytest.mark.parametrize("name", FORMATS)
def test_random_weights_are_plausible_weights(name: str) -> None:
    fmt = format_named(name)
    whole = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    shape = SMALL if fmt.run == 1 else shapes.Shape("whole runs", {**SMALL.config, **whole})
    loaded = shapes.build_weights(shape, fmt)
    assert loaded.formats == {name: shape.packed_bytes(fmt)}
    assert loaded.weight_bytes == shape.packed_bytes(fmt)
    layer = loaded.weights.layers[1]
    for linear in (layer.q, layer.down, loaded.weights.embed):
        w = linear.matrix.dequantize(0, linear.n)
        assert w.shape == (linear.n, linear.k)
        assert abs(w.mean()) < 0.003
        assert 0.015 < w.std() < 0.025
        assert linear.matrix.packed.ctypes.data % 64 == 0
    plan = record_plan(loaded, LoadOptions(n_threads=1))
    sequence = plan.cache.sequence()
    plan.run(np.arange(40, dtype=np.int32), [(sequence, 40)], np.array([39], np.int32))
    logits = plan.logits()
    assert logits.shape == (1, 300)
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_matrices_do_not_overlap() -> None:
    loaded = shapes.build_weights(SMALL, format_named("q4g32s"))
    spans = []
    for layer in loaded.weights.layers:
        for linear in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down):
            packed = linear.matrix.packed
            spans.append((packed.ctypes.data, packed.nbytes))
    spans.sort()
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(spans))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (
        shapes.build_weights(SMALL, format_named("q4g32a"), seed).weights.embed.matrix.packed
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_every_model_of_the_catalogue_has_a_shape() -> None:
    """Those that generate fit into 20 GB at int4, and are of the family that the catalogue says."""
    found = {name: shape.config["model_type"] for name, shape in shapes.SHAPES.items()}
    # Of those that also see pictures the text model runs.
    text = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "ministral3"}
    text["qwen3_5"] = "qwen3_5_text"
    assert found == {
        name: text.get(entry.architecture, entry.architecture)
        for name, entry in catalogue().items()
        if entry.architecture not in ENCODERS
    }


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_have_the_published_sizes(name: str) -> None:
    """The family asks for as many weights as the model has: no matrix, norm or bias is missing."""
    shape = shapes.SHAPES[name]
    assert shape.parameters() == catalogue()[name].parameters
    assert shape.packed_bytes(FORMATS["q4g32a"]) < 20e9


def test_a_family_records_its_own_shape() -> None:
    """Qwen2 with its biases, Phi-3 without the fused matrices: not a Llama of that size."""
    qwen = [w.name for w in shapes.SHAPES["qwen2.5-0.5b-instruct"].weights()]
    assert "model.layers.0.self_attn.q_proj.bias" in qwen
    assert "lm_head.weight" not in qwen
    phi = {w.name: w.tensor.shape for w in shapes.SHAPES["phi-4"].weights()}
    assert phi["model.layers.39.self_attn.qkv_proj.weight[5120:6400]"] == (1280, 5120)


def test_shapes_go_by_the_start_of_a_name() -> None:
    assert shapes.shape_named("tinyllama").name == "tinyllama-1.1b-chat"
    assert shapes.shape_named("phi-4").name == "phi-4"
    with pytest.raises(ValueError, match=r"mean 'qwen3-0\.6b' or 'qwen3-1\.7b' or 'qwen3-4b'"):
        shapes.shape_named("qwen3")


def test_unknown_shapes_and_formats_are_named() -> None:
    with pytest.raises(ValueError, match=r"got 'tinylama'; did you mean 'tinyllama-1\.1b-chat'"):
        shapes.random_weights("tinylama")
    with pytest.raises(ValueError, match=r"shape: expected one of .*, got ''$"):
        shapes.random_weights("")
    with pytest.raises(ValueError, match="weight format"):
        shapes.random_weights("smollm2-135m", "q3")


def test_a_shape_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "available_memory_bytes", lambda: 10**9)
    with pytest.raises(
        MemoryError, match=r"phi-4 in q8g32s needs 16\.6 GB .* 1\.0 GB are free; choose"
    ):
        shapes.random_weights("phi-4", "q8g32s")


def test_a_shape_whose_activation_has_parameters_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**SMALL.config, "model_type": "apertus", "hidden_act": "xielu"}
    monkeypatch.setattr(shapes, "SHAPES", {"small": shapes.Shape("small", config)})
    found = bench(b.load_shape("small", "int4"), prompt=8, gen=2, repeat=1)
    assert [row.test for row in found.rows] == ["pp8", "tg2"]


def test_a_shape_is_benched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {"small": SMALL})
    found = bench(b.load_shape("small", "int4"), prompt=8, gen=2, repeat=1)
    assert (found.model, found.format) == ("shape:small", "q4g32a")
    assert [row.test for row in found.rows] == ["pp8", "tg2"]
