"""Adapters: what merging them into the weights gives, in every family; alone and among others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from golden import GOLDENS, golden_names, read_golden
from kernel_cases import ISAS, normal
from llama_files import gguf_name, logits_of, permute_rope, relative_error
from lora_files import (
    ALPHA,
    gguf_file,
    layer_modules,
    merged_folder,
    mlx_folder,
    peft_folder,
    random_pairs,
)
from numpy_weights import read_safetensors

from slmq.checkpoint import open_checkpoint
from slmq.engine.adapters import Adapter, fit
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.loading import LoadedWeights, load_weights
from slmq.models.registry import FAMILIES
from slmq.plan.plan import RecordedPlan
from slmq.settings import Activations
from slmq.weights.lora import read_lora

F32 = npt.NDArray[np.float32]
DECODERS = sorted(set(FAMILIES.values()))
LLAMA = GOLDENS / "llama" / "odd_sizes"


def loaded_from(folder: Path, format: str = "f32") -> LoadedWeights:
    with open_checkpoint(folder) as checkpoint:
        return load_weights(checkpoint, threads=1, format=format, memory="small")


def plan_of(
    loaded: LoadedWeights,
    *,
    isa: str | None = None,
    threads: int = 1,
    activations: Activations = "mixed",
) -> RecordedPlan:
    options = LoadOptions(n_threads=threads, kv_dtype="f32", activations=activations)
    return record_plan(loaded, options, isa=isa, adapters=True)


def answer(
    plan: RecordedPlan, rows: list[tuple[list[int], Adapter | None]], chunk: int = 64
) -> list[F32]:
    """Logits of several sequences, each with its adapter, computed together chunk by chunk."""
    sequences = [plan.cache.sequence() for _ in rows]
    found: list[list[F32]] = [[] for _ in rows]
    for begin in range(0, max(len(ids) for ids, _ in rows), chunk):
        parts = [ids[begin : begin + chunk] for ids, _ in rows]
        running = [i for i, part in enumerate(parts) if part]
        tokens = np.array([t for i in running for t in parts[i]], np.int32)
        plan.native.run(
            tokens,
            [(sequences[i], len(parts[i])) for i in running],
            np.arange(len(tokens), dtype=np.int32),
            adapters=[None if (a := rows[i][1]) is None else a.native for i in running],
        )
        logits, at = plan.logits(), 0
        for i in running:
            found[i].append(logits[at : at + len(parts[i])])
            at += len(parts[i])
    return [np.concatenate(logits) for logits in found]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("rank", [1, 7])
def test_an_adapter_is_what_merging_it_gives(family: str, rank: int, tmp_path: Path) -> None:
    golden = read_golden(family, golden_names(family)[0])
    weights = read_safetensors(golden.folder / "model.safetensors")
    conv = family == "gpt2"  # its matrices lie as [k, n]
    pairs = random_pairs(weights, layer_modules(weights), rank=rank, transposed=conv)
    folder = peft_folder(tmp_path / "adapter", pairs)
    merged = merged_folder(golden.folder, tmp_path / "merged", pairs, ALPHA / rank, transposed=conv)
    loaded = loaded_from(golden.folder)
    plan = plan_of(loaded, threads=2)
    adapter = fit(plan, loaded, read_lora(folder))
    tokens = golden.tokens[0][:40]
    (got,) = answer(plan, [(tokens, adapter)])
    want, base = logits_of(merged, tokens), logits_of(golden.folder, tokens)
    assert relative_error(got, want) < 3e-5
    assert relative_error(base, want) > 1e-2  # it does something


@pytest.mark.parametrize("format", ["f32", "int8", "q8rs", "int4"])
def test_rows_with_and_without_adapters(format: str, tmp_path: Path) -> None:
    """The same bits alone and among others, in any chunks, on every CPU and number of threads."""
    golden = read_golden("llama", "odd_sizes")
    weights = read_safetensors(golden.folder / "model.safetensors")
    modules = layer_modules(weights)
    folders = [
        peft_folder(tmp_path / f"{i}", random_pairs(weights, some, rank=rank, seed=i))
        for i, (some, rank) in enumerate([(modules, 5), (modules[::3], 33)])
    ]
    loaded = loaded_from(golden.folder, format)
    tokens = [golden.tokens[0][:40], golden.tokens[1][:23], golden.tokens[0][:31]]
    base = logits_of(golden.folder, tokens[1], format=format)
    want = None
    for isa in ISAS:
        for threads in (1, 3):
            plan = plan_of(loaded, isa=isa, threads=threads)
            one, two = (fit(plan, loaded, read_lora(folder)) for folder in folders)
            rows = [(tokens[0], one), (tokens[1], None), (tokens[2], two), (tokens[2], one)]
            want = want or [answer(plan, [row])[0] for row in rows]
            for chunk in (1, 7, 16):
                for got, alone in zip(answer(plan, rows, chunk), want, strict=True):
                    assert (got == alone).all()
    assert want is not None
    assert (want[1] == base).all()
    assert not (want[2] == want[3]).all()


@pytest.mark.parametrize("format", ["int8", "q8rs", "int4"])
def test_an_adapter_over_integers(format: str, tmp_path: Path) -> None:
    """It adds what it adds to floats, to what the integers lose."""
    golden = read_golden("llama", "odd_sizes")
    weights = read_safetensors(golden.folder / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights), rank=5)
    folder = peft_folder(tmp_path / "adapter", pairs)
    merged = merged_folder(golden.folder, tmp_path / "merged", pairs, ALPHA / 5)
    loaded = loaded_from(golden.folder, format)
    plan = plan_of(loaded)
    tokens = golden.tokens[0][:40]
    (got,) = answer(plan, [(tokens, fit(plan, loaded, read_lora(folder)))])
    lost = relative_error(
        logits_of(golden.folder, tokens, format=format), logits_of(golden.folder, tokens)
    )
    assert relative_error(got, logits_of(merged, tokens)) < 2 * lost


def test_what_an_adapter_is_kept_in() -> None:
    """Eight bits lose about a hundredth of what is added; rows have scales of their own."""
    plan = plan_of(loaded_from(LLAMA, "int4"), activations="exact")
    tokens = read_golden("llama", "odd_sizes").tokens[0][:20]
    rng = np.random.default_rng(3)
    parts = []
    for slot, (n, k) in enumerate(plan.native.slots[:7]):
        b = rng.normal(0, 0.1, (n, 5)) * 10.0 ** rng.uniform(-6, 0, (n, 1))
        parts.append((slot, normal(5, k, seed=slot), b.astype(np.float32), None, None))
    (base,) = answer(plan, [(tokens, None)])
    added = {}
    for kind in ("f32", "f16", "i8"):
        adapter = Adapter(plan.native.adapter(parts, kind), kind)
        added[kind] = answer(plan, [(tokens, adapter)])[0] - base
    assert relative_error(added["f16"], added["f32"]) < 1e-3
    assert 1e-3 < relative_error(added["i8"], added["f32"]) < 2e-2
    floats = plan_of(loaded_from(LLAMA))  # nothing is rounded there
    for kind in ("f16", "i8"):
        adapter = Adapter(floats.native.adapter(parts, kind), kind)
        added[kind] = answer(floats, [(tokens, adapter)])[0]
    assert (added["i8"] == added["f16"]).all()
    with pytest.raises(ValueError, match="type of an adapter: expected 'f16', 'f32' or 'i8'"):
        plan.native.adapter(parts, "i4")


def test_the_files_of_peft_mlx_and_llama_cpp_are_one(tmp_path: Path) -> None:
    golden = read_golden("llama", "odd_sizes")
    weights = read_safetensors(golden.folder / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights), rank=4)
    config = loaded_from(golden.folder).config
    theirs = {}
    for module, (a, b) in pairs.items():
        pair = a, b
        if module.endswith(("q_proj", "k_proj")):
            heads = config.n_heads if module.endswith("q_proj") else config.n_kv_heads  # type: ignore[attr-defined]
            pair = a, permute_rope(b, heads)
        theirs[gguf_name(f"{module}.weight").removesuffix(".weight")] = pair
    files = [
        peft_folder(tmp_path / "peft", pairs),
        mlx_folder(tmp_path / "mlx", pairs, ALPHA / 4),
        gguf_file(tmp_path / "lora.gguf", theirs),
    ]
    loaded = loaded_from(golden.folder, "int8")
    plan = plan_of(loaded)
    tokens = golden.tokens[0][:20]
    answers = [answer(plan, [(tokens, fit(plan, loaded, read_lora(f)))])[0] for f in files]
    assert (answers[0] == answers[1]).all()
    assert (answers[0] == answers[2]).all()


def test_scales(tmp_path: Path) -> None:
    """Alpha by rank, by its root, and patterns for some modules."""
    weights = read_safetensors(LLAMA / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights)[:2], rank=4)
    first, second = pairs
    name = first.rpartition(".")[2]
    plain = read_lora(peft_folder(tmp_path / "plain", pairs)).pairs
    rooted = read_lora(peft_folder(tmp_path / "rooted", pairs, use_rslora=True)).pairs
    alphas = {"alpha_pattern": {name: 2 * ALPHA}, "rank_pattern": {second: 4}, "r": 4}
    patterned = read_lora(peft_folder(tmp_path / "patterned", pairs, **alphas)).pairs
    assert (plain[first].b == pairs[first][1] * np.float32(ALPHA / 4)).all()
    assert (rooted[first].b == pairs[first][1] * np.float32(ALPHA / 2)).all()
    assert (patterned[first].b == 2 * plain[first].b).all()
    assert (patterned[second].b == plain[second].b).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "LOHA"}, UnsupportedModelError, "peft_type: expected 'LORA', got 'LOHA'"),
        ({"use_qalora": True}, UnsupportedModelError, "use_qalora"),
        ({"layer_replication": [[0, 2]]}, UnsupportedModelError, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedModelError, "changes the base model"),
        ({"alpha_pattern": {"(a+)+": 3}}, UnsupportedModelError, "none of a group"),
        ({"alpha_pattern": {".*a.*b.*c": 3}}, UnsupportedModelError, "at most 2 repetitions"),
        ({"alpha_pattern": {"(?P<a>b)": 3}}, UnsupportedModelError, "simple expressions"),
        ({"alpha_pattern": {"a" * 300: 3}}, UnsupportedModelError, "simple expressions"),
        ({"alpha_pattern": {"(a": 3}}, CheckpointError, "is no expression: missing"),
        ({"r": 5}, CheckpointError, "expected the rank of .*, 4, in r or rank_pattern, got 5"),
        ({"lora_alpha": "x"}, CheckpointError, "lora_alpha: expected a number"),
        ({"lora_alpha": float("nan")}, CheckpointError, "lora_alpha: expected a number"),
        ({"rank_pattern": []}, None, ""),
        ({"rank_pattern": [1]}, CheckpointError, "rank_pattern: expected an object"),
    ],
)
def test_what_is_refused_of_a_configuration(
    change: dict[str, Any], error: type[Exception] | None, message: str, tmp_path: Path
) -> None:
    weights = read_safetensors(LLAMA / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights)[:2], rank=4)
    folder = peft_folder(tmp_path / "adapter", pairs, **change)
    if error is None:
        assert len(read_lora(folder).pairs) == 2
        return
    with pytest.raises(error, match=message):
        read_lora(folder)


def test_what_is_refused_of_values(tmp_path: Path) -> None:
    weights = read_safetensors(LLAMA / "model.safetensors")
    module = layer_modules(weights)[0]
    pairs = random_pairs(weights, [module], rank=4)
    loaded = loaded_from(LLAMA)
    plan = plan_of(loaded)

    def refused(name: str, changed: dict[str, Any], message: str) -> None:
        folder = peft_folder(tmp_path / name, changed)
        with pytest.raises(CheckpointError, match=message):
            fit(plan, loaded, read_lora(folder))

    a, b = pairs[module]
    bad = b.copy()
    bad[0, 0] = np.nan
    refused("nan", {module: (a, bad)}, "found NaN or infinity")
    refused("ranks", {module: (a, b[:, :3])}, "a rank of 1..256")
    refused("shape", {module: (a[:, :-1], b)}, "is it for another model?")
    refused("unknown", {**pairs, "model.layers.99.mlp.up_proj": (a, b)}, "1 of 2 pairs .* fit no")
    vocabulary = weights["model.embed_tokens.weight"].shape[0]  # which is the head, too
    embedding = np.ones((4, 60), np.float32), np.ones((vocabulary, 4), np.float32)
    for name in ("model.embed_tokens", "lm_head"):
        refused(name, {name: embedding}, "embeddings, heads that are")
    whole = peft_folder(tmp_path / "cut", pairs)
    stored = whole / "adapter_model.safetensors"
    stored.write_bytes(stored.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        read_lora(whole)
    stored.unlink()
    with pytest.raises(CheckpointError, match="cannot open the file"):
        read_lora(whole)
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="expected an adapter"):
            read_lora(path)


def test_an_adapter_belongs_to_its_plan(tmp_path: Path) -> None:
    weights = read_safetensors(LLAMA / "model.safetensors")
    folder = peft_folder(
        tmp_path / "adapter", random_pairs(weights, layer_modules(weights), rank=2)
    )
    loaded = loaded_from(LLAMA)
    plan, other = plan_of(loaded), plan_of(loaded)
    adapter = fit(plan, loaded, read_lora(folder))
    with pytest.raises(ValueError, match="made for another plan"):
        answer(other, [([1, 2], adapter)])
    with pytest.raises(ValueError, match="an adapter or None for each of 1 sequences, got 2"):
        plan.native.run(
            np.array([1], np.int32),
            [(plan.cache.sequence(), 1)],
            np.array([0], np.int32),
            adapters=[None, None],
        )
    plain = record_plan(loaded, LoadOptions(n_threads=1))
    with pytest.raises(ValueError, match="takes no adapters"):
        plain.native.adapter([], "f32")
    shutil.rmtree(folder)
    assert answer(plan, [([1, 2], adapter)])[0].shape == (2, plan.vocabulary)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((-1, (2, 8), (8, 2)), "expected a slot below"),
        ((10**6, (2, 8), (8, 2)), "expected a slot below"),
        ((0, (300, 8), (8, 300)), "expected a rank of 1..256, got 300"),
        ((0, (0, 8), (8, 0)), "expected a rank of 1..256, got 0"),
        ((0, (2, 8), (8, 2)), "expected A of 2x"),
    ],
)
def test_native_adapters_check_their_parts(part: Any, message: str) -> None:
    plan = plan_of(loaded_from(LLAMA))
    slot, a, b = part
    ones = np.ones(a, np.float32), np.ones(b, np.float32)
    with pytest.raises(ValueError, match=message):
        plan.native.adapter([(slot, *ones, None, None)], "f32")
    n, k = plan.native.slots[0]
    twice = (0, np.ones((1, k), np.float32), np.ones((n, 1), np.float32), None, None)
    with pytest.raises(ValueError, match="slot 0 comes twice"):
        plan.native.adapter([twice, twice], "i8")
    with pytest.raises(ValueError, match=f"factors and biases of {n} values, got 3"):
        plan.native.adapter([(*twice[:3], np.ones(3, np.float32), None)], "f32")
