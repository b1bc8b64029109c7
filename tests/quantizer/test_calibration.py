"""Calibration: layers taken apart are the whole model; a text makes choices better."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from golden import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ISAS
from llama_files import build, logits_of, relative_error

import slmq
from slmq import _native, hub
from slmq.checkpoint import open_checkpoint
from slmq.formats import FORMATS
from slmq.quantizer.calibration import Moments, collect, read_calibration
from slmq.quantizer.grids import GRIDS, fits, pack_rounded
from slmq.quantizer.methods import METHODS, Inputs, OutputErrors, round_with
from slmq.quantizer.mix import Choice, choose_formats
from slmq.quantizer.source import FloatSource, name_of
from slmq.quantizer.stages import StageRun, survey

F32 = npt.NDArray[np.float32]
FAMILIES = ("llama/biases", "mistral/window", "qwen2/biases", "qwen3/head_norms")
FAMILIES += (
    "phi3/fused_gqa",
    "gemma/wide_heads",
    "gemma2/untied_biases_no_caps",
    "gemma3_text/two_ropes_and_linear_scaling",
    "gpt2/untied",
    "hunyuan_v1_dense/norms_behind_rope",
    "apertus/three_layers",
    "ministral3/queries_grow",
    "lfm2/three_taps",
    "qwen3_5_text/shared_keys",
)
TEXT = "Once upon a time there was a llama. It sat on a hill, and the sun was red. " * 12


@pytest.fixture
def text_path(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


# --- stages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_the_model(family: str) -> None:
    """Bit for bit: the input of the head, and so the logits."""
    tokens = np.random.default_rng(0).integers(0, 40, (2, 24)).astype(np.int32)
    whole = build(GOLDENS / family, format="f32", kv_dtype="f32")
    with open_checkpoint(GOLDENS / family) as checkpoint:
        source = FloatSource(checkpoint, "f32", 1)
        stages = survey(source)
        hidden = None
        for stage in stages:
            run = StageRun(source, stage, stages[-1].number, tokens, hidden, 1, source.linear_of)
            reads = [
                [read(None), *(read(tap.handle) for tap in run.taps)] for read in run.windows()
            ]
            hidden = np.concatenate([values[0] for values in reads])
        names = [wish.tensor.name for stage in stages for wish in stage.wishes]
        assert set(names) == {wish.tensor.name for wish in source.wishes if wish.is_matrix}
        (head,) = run.taps[0].wishes
        matrix = source.linear_of(head).matrix
        for window, (_, x) in zip(tokens, reads, strict=True):
            whole.run(window, [(whole.cache.sequence(), 24)], np.arange(24, dtype=np.int32))
            assert (matrix.matmul(x)[:, : head.n] == whole.logits()[:, : head.n]).all()


def test_stored_vectors_keep_their_names_and_computed_ones_have_none() -> None:
    """A norm whose weights are used as they are stored can take channel scales; others cannot."""
    with open_checkpoint(GOLDENS / "llama/biases") as checkpoint:
        source = FloatSource(checkpoint, "f32", 1)
    norm = source.weights.norm
    assert name_of(norm) == "model.norm.weight"
    assert np.array_equal(norm, source.vectors["model.norm.weight"])
    for computed in (norm + 1, norm[:4], np.tile(norm, 2), np.concatenate([norm]), norm.copy()):
        assert name_of(computed) == ""


def test_moments_are_those_of_the_inputs(tiny_model_path: Path, text_path: Path) -> None:
    with open_checkpoint(tiny_model_path) as checkpoint:
        source = FloatSource(checkpoint, "f32", 2)
        stages = survey(source)
        tokens = read_calibration(text_path, checkpoint, 64).tokens
        assert tokens.shape[1] == 64
        first = StageRun(source, stages[0], stages[-1].number, tokens, None, 2, source.linear_of)
        hidden = collect(first, len(tokens), 2).passed_on
        run = StageRun(source, stages[1], stages[-1].number, tokens, hidden, 2, source.linear_of)
        inputs = [np.stack([read(tap.handle) for tap in run.taps[:1]])[0] for read in run.windows()]
        moments = collect(run, len(tokens), 2).moments
    fit = np.concatenate([x for i, x in enumerate(inputs) if i % 5 != 4]).astype(np.float64)
    assert np.allclose(moments[0].gram, fit.T @ fit / len(fit), rtol=1e-4, atol=1e-6)
    held_back = np.concatenate([x for i, x in enumerate(inputs) if i % 5 == 4])
    assert {row.tobytes() for row in moments[0].test} <= {row.tobytes() for row in held_back}


# --- methods --------------------------------------------------------------------------------


def correlated(k: int, rows: int, seed: int = 1) -> F32:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) * (rng.random(k) < 0.3) + np.eye(k)
    return (rng.standard_normal((rows, k)) @ mixing).astype(np.float32)


@pytest.mark.parametrize("fmt", GRIDS)
def test_feedback_cuts_the_output_error(fmt: str) -> None:
    k = 100 if fits(fmt, 100) else 256
    w = np.random.default_rng(0).standard_t(4, (50, k)).astype(np.float32)
    x = correlated(k, 2200)
    x, test = x[:2000], x[2000:]
    inputs = Inputs(Moments((), x.T.astype(np.float64) @ x / len(x), test), 2)
    rounded = {method: round_with(method, w, fmt, inputs) for method in METHODS}
    outputs = OutputErrors(w, inputs)
    errors = {method: outputs.of(found.values()) for method, found in rounded.items()}
    assert errors["weighted"] < errors["rtn"] * 1.02
    assert errors["feedback"] < 0.6 * errors["rtn"]
    for found in rounded.values():
        assert (pack_rounded(found).dequantize(0, 50) == found.values()).all()
    again = round_with("feedback", w, fmt, inputs, threads=2)
    assert (again.values() == rounded["feedback"].values()).all()


@pytest.mark.parametrize(
    "fmt", ["q4g32a", "q4g32s", "q4g64z", "q2k", "q6k", "q8g32s", "n4g32", "n4k"]
)
def test_every_isa_rounds_alike(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search, feedback and refinement; rows and columns that fill no block."""
    k = 172 if fits(fmt, 172) else 256
    w = np.random.default_rng(0).standard_t(4, (37, k)).astype(np.float32)
    x = correlated(k, 600)
    moments = Moments((), x.T.astype(np.float64) @ x / len(x), x[:20])
    found = []
    for isa in ISAS:
        monkeypatch.setenv("SLMQ_ISA", isa)
        inputs = Inputs(moments, 1)  # which keeps what an ISA found
        found.append([round_with(method, w, fmt, inputs) for method in METHODS])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.codes.tobytes() == b.codes.tobytes()
            assert a.scales.tobytes() == b.scales.tobytes()
            assert a.mins.tobytes() == b.mins.tobytes()


def test_factors_are_those_of_the_matrix() -> None:
    x = correlated(70, 300).astype(np.float64)
    h = x.T @ x
    factors = _native.factorize(h.copy(), 2)
    upper = factors.coupling.T.astype(np.float64) + np.eye(70)
    product = upper @ np.diag(factors.weight) @ upper.T
    assert np.allclose(product, h, rtol=1e-4, atol=1e-4 * h.max())
    alone = _native.factorize(h.copy(), 1)
    assert (alone.coupling == factors.coupling).all()
    assert (alone.weight == factors.weight).all()
    with pytest.raises(ValueError, match="positive definite"):
        _native.factorize(-h, 1)


# --- models ---------------------------------------------------------------------------------


def test_calibrated_bytes_do_not_depend_on_threads_or_interruptions(
    tiny_model_path: Path, text_path: Path, tmp_path: Path, empty_cache: Callable[[], None]
) -> None:
    def run(name: str, threads: int, progress: Callable[[str, int, int], None] | None) -> Any:
        return slmq.quantize(
            tiny_model_path, tmp_path / name, bits=5, calibrate=text_path, n_threads=threads,
            progress=progress,
        )  # fmt: skip

    one = run("one", 1, None)
    empty_cache()
    for limit in itertools.count(1):
        calls = itertools.count(1)

        def stop(
            _what: str, _done: int, _total: int, limit: int = limit, calls: Any = calls
        ) -> None:
            if next(calls) == limit:
                raise KeyboardInterrupt

        try:
            two = run("two", 2, stop)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "two").exists()
    files = {path.name: path.read_bytes() for path in one.path.iterdir()}
    assert files == {path.name: path.read_bytes() for path in two.path.iterdir()}
    assert one.tensors == two.tensors
    assert one.bits_per_weight <= 5
    assert all(b > a for (a, _), (b, _) in itertools.pairwise(one.front))
    assert all(b < a for (_, a), (_, b) in itertools.pairwise(one.front))


def test_the_command_makes_the_same_bytes_with_other_kernels(
    tiny_model_path: Path, text_path: Path, tmp_path: Path, empty_cache: Callable[[], None]
) -> None:
    options = ["--bits", "5", "--calibrate", str(text_path), "--threads", "1", "--json"]
    command = [sys.executable, "-m", "slmq.cli", "quantize", str(tiny_model_path)]
    done = subprocess.run(
        [*command, str(tmp_path / "scalar"), *options],
        env=os.environ | {"SLMQ_ISA": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    empty_cache()
    made = slmq.quantize(
        tiny_model_path, tmp_path / "best", bits=5, calibrate=text_path, n_threads=3
    )
    for path in made.path.iterdir():
        assert path.read_bytes() == (tmp_path / "scalar" / path.name).read_bytes()
    said = json.loads(done.stdout)
    assert said["bits_per_weight"] == made.bits_per_weight
    assert [tensor["name"] for tensor in said["tensors"]] == [t.name for t in made.tensors]


def test_damages_are_measured_once(
    tiny_model_path: Path, text_path: Path, tmp_path: Path, empty_cache: Callable[[], None]
) -> None:
    """Another number of bits finds them; a damaged file is as good as none."""

    def run(name: str, bits: float) -> tuple[set[str], dict[str, bytes]]:
        tasks = set[str]()
        made = slmq.quantize(
            tiny_model_path, tmp_path / name, bits=bits, calibrate=text_path,
            progress=lambda task, *_: tasks.add(task),
        )  # fmt: skip
        return tasks, {path.name: path.read_bytes() for path in made.path.iterdir()}

    tasks, first = run("first", 5)
    assert tasks == {"measuring", "quantizing"}
    tasks, _ = run("more", 6)
    assert tasks == {"quantizing"}
    assert run("again", 5) == ({"quantizing"}, first)
    [file] = (hub.cache_dir() / "damage").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-9], b"[]", b'{"model.norm.weight": 3}', b"\xff", b"[" * 200_000):
        file.write_bytes(damaged)
        tasks, files = run(f"damaged{len(damaged)}", 5)
        assert "measuring" in tasks
        assert files == first
        assert file.read_bytes() == whole
    empty_cache()
    hub.cache_dir().rmdir()
    hub.cache_dir().write_text("not a folder", "utf-8")
    assert run("nowhere", 5)[1] == first


def test_the_page_shows_what_was_measured(
    tiny_model_path: Path, text_path: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    made = slmq.quantize(tiny_model_path, tmp_path / "q", bits=6, calibrate=text_path, report=page)
    text = page.read_text("utf-8")
    assert all(tensor.name in text for tensor in made.tensors)
    assert text.count("<svg") == 2
    assert "http" not in text
    body = text[text.index("<body>") : text.index("</body>") + len("</body>")]
    page_root = ElementTree.fromstring(body.replace("&nbsp;", " "))
    assert page_root.tag == "body"  # every tag is closed
    # A line of the chart for every kind of matrix, under its whole name.
    layers = [t.name for t in made.tensors if ".layers." in t.name]
    kinds = {name.split(".", 3)[3].removesuffix(".weight") for name in layers}
    keys = [
        " ".join(p.itertext()).split() for p in page_root.iter("p") if p.find("span") is not None
    ]
    assert [set(key) for key in keys] == [kinds]
    assert len(page_root.findall("svg")[0].findall("polyline")) == len(kinds)
    # Layers are whole numbers.
    ticks = [t.text for t in page_root.findall("svg")[0].findall("text") if "e" not in str(t.text)]
    assert ticks[:-1] == [str(i) for i in range(len(ticks) - 1)]
    # What was made of what.
    facts = {row[0].text: row[1].text for row in page_root.iter("tr") if len(row) == 2}
    assert facts["source"].startswith("model.safetensors (sha256 ")
    assert facts["bits per weight asked for"] == "6.0"
    assert facts["slmq"] == slmq.__version__
    assert facts["calibration text"].startswith("sha256 ")


def test_auto_takes_what_measures_best(
    tiny_model_path: Path, text_path: Path, tmp_path: Path
) -> None:
    made = slmq.quantize(tiny_model_path, tmp_path / "q", calibrate=text_path)
    for tensor in made.tensors:
        assert set(METHODS) <= set(tensor.output_errors) <= {*METHODS, "rescaled"}
        if tensor.method != "rescaled":  # which is chosen for all matrices of an input
            best = min(tensor.output_errors[method] for method in METHODS)
            assert tensor.output_error == best
    feedback = sum(t.output_errors["feedback"] for t in made.tensors)
    assert feedback < sum(t.output_errors["rtn"] for t in made.tensors)


def outliers_folder(source: Path, folder: Path) -> Path:
    """The model with some channels of its norms forty times as large, their columns as small."""
    shutil.copytree(source, folder)
    weights = safetensors.numpy.load_file(source / "model.safetensors")
    for name, values in weights.items():
        wide = np.ones(values.shape[-1], np.float32)
        wide[::7] = 40
        if name.endswith("layernorm.weight"):
            weights[name] = values * wide
        elif re.search(r"\.[qkv]_proj\.weight|(gate|up)_proj\.weight", name):
            weights[name] = values / wide
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return folder


def test_channels_are_rescaled_where_it_helps(
    tiny_model_path: Path, text_path: Path, tmp_path: Path
) -> None:
    """Norms take back what weights were multiplied by: the model stays what it is."""
    source = outliers_folder(tiny_model_path, tmp_path / "source")
    made = slmq.quantize(
        source, tmp_path / "q", format="int8", calibrate=text_path, method="rescaled"
    )
    assert sum(tensor.method == "rescaled" for tensor in made.tensors) >= 5
    with open_checkpoint(source) as before, open_checkpoint(made.path) as after:
        name = "model.layers.0.input_layernorm.weight"
        norms = [checkpoint.raw(name).view(np.float32) for checkpoint in (before, after)]
        assert np.abs(norms[1]).max() < 0.9 * np.abs(norms[0]).max()
    tokens = list(range(20))
    plain = slmq.quantize(source, tmp_path / "plain", format="int8")
    exact = logits_of(source, tokens)
    errors = [
        relative_error(logits_of(path, tokens, format=None, activations="exact"), exact)
        for path in (plain.path, made.path)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "expected UTF-8"), (b"short", "at least 16 tokens of text, found 5")],
)
def test_a_text_that_cannot_calibrate_is_refused(
    content: bytes, message: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(slmq.DataError, match=message):
        slmq.quantize(tiny_model_path, tmp_path / "q", calibrate=path)
    with pytest.raises(slmq.DataError, match="cannot read"):
        slmq.quantize(tiny_model_path, tmp_path / "q", calibrate=tmp_path / "none")


# --- mixes ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.floats(0.01, 1), st.floats(0.3, 0.9), st.floats(0, 0.1)),
        min_size=1,
        max_size=4,
    ),
    st.floats(4.5, 8.5),
)
def test_mixes_on_the_front_are_the_best_for_their_bits(
    rows: list[tuple[int, float, float, float]], bits: float
) -> None:
    choices = [
        Choice(str(i), size, {"q4g32s": worst, "q4g32a": worst * five, "q8g32s": worst * eight})
        for i, (size, worst, five, eight) in enumerate(rows)
    ]
    total = sum(choice.size for choice in choices)

    def cost(formats: tuple[str, ...]) -> tuple[float, float]:
        stored = sum(
            FORMATS[f].bits_per_weight * c.size for f, c in zip(formats, choices, strict=True)
        )
        return stored / total, sum(c.damage[f] for f, c in zip(formats, choices, strict=True))

    mix = choose_formats(choices, bits)
    found = cost(tuple(mix.formats[choice.name] for choice in choices))
    assert found[0] <= bits + 1e-9
    assert found[1] <= min(damage for stored, damage in mix.front if stored <= bits) + 1e-9
    mixes = itertools.product(choices[0].damage, repeat=len(choices))
    others = [cost(formats) for formats in mixes]
    for stored, damage in mix.front:
        assert damage <= min(d for b, d in others if b <= stored + 1e-9) + 1e-9
