"""Training all weights of a model: gradients, one answer everywhere, and the model that is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import to_gguf
from kernel_cases import ISAS
from training_cases import (
    FULL,
    KILLED,
    REFUSED_IN_FULL,
    SMALL_RUN,
    folder_of,
    golden_texts,
    network_for,
    piece_of,
    small_data,
    small_run,
    torch_loss,
    torch_of,
    write_lines,
)

import slmq
from slmq.checkpoint import TensorInfo, open_checkpoint
from slmq.engine.training import files, full
from slmq.engine.training.events import Event, Report, Trained
from slmq.engine.training.full import FullWeights
from slmq.engine.training.layers import layer_of
from slmq.engine.training.model_folder import rounded, stored_values, write_model
from slmq.engine.training.network import Network
from slmq.engine.training.options import TrainOptions
from slmq.engine.training.run import Run
from slmq.errors import CheckpointError, UnsupportedModelError, WriteError

MODEL = "model.safetensors"
SMALL: dict[str, Any] = SMALL_RUN | {"type": "full", "learning_rate": 1e-3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data(tmp_path / "data")


def run(model: Path, data: Path, out: Path, **options: Any) -> Trained:
    return small_run(model, data, out, **(SMALL | options))


def weights_of(network: Network) -> FullWeights:
    assert isinstance(network.parameters, FullWeights)
    return network.parameters


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("family", FULL)
def test_gradients_are_those_of_torch(family: str) -> None:
    pytest.importorskip("transformers")
    network = network_for(folder_of(family), type="full")
    texts, firsts = golden_texts(family)
    losses = network.learn(piece_of(texts, firsts), 0.5)
    model = torch_of(folder_of(family))
    total = sum(torch_loss(model, text, first) for text, first in zip(texts, firsts, strict=True))
    assert abs(losses.sum() - float(total.detach())) < 1e-5 * losses.sum()
    (0.5 * total).backward()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    names = {"embed_out.weight": "lm_head.weight"}  # as GPT-NeoX' files have it
    weights = weights_of(network)
    found = stored_values(weights, weights.slopes)
    assert {names.get(name, name) for name in found} == theirs.keys()
    for name, got in found.items():
        wanted = theirs[names.get(name, name)]
        assert got.shape == wanted.shape
        # A key's bias changes nothing but for rope: what is there is noise beside other gradients.
        noise = 1e-5 if name.endswith("k_proj.bias") else 0.0
        assert np.abs(got - wanted).max() < 2e-5 * np.abs(wanted).max() + noise, name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "granite", "olmo2"])
def test_the_loss_changes_as_each_gradient_says(family: str) -> None:
    """Along random directions within every tensor, the loss being float32."""
    network = network_for(folder_of(family), type="full")
    piece = piece_of(*golden_texts(family))
    weights = weights_of(network)
    losses = network.learn(piece, 1.0)
    assert (losses == network.losses(piece)).all()
    before, slopes = weights.values.copy(), weights.slopes.copy()
    kinds: dict[str, str] = {}
    for name in weights.places:  # one of every kind
        kinds.setdefault(".".join(p for p in name.split(".") if not p.isdigit()), name)
    largest = max(np.linalg.norm(weights.places[name].part(slopes)) for name in kinds.values())
    for name in kinds.values():
        slope = weights.places[name].part(slopes)
        if np.linalg.norm(slope) < 1e-3 * largest:
            continue  # its difference would be noise
        rng = np.random.default_rng(1)
        way = np.where(slope == 0, 0, rng.normal(0, 1, len(slope))).astype(np.float32)
        # Towards the gradient for the most part, for the same reason.
        way = way / np.linalg.norm(way) + slope / np.linalg.norm(slope)
        ends = []
        for sign in (1, -1):
            weights.places[name].part(weights.values)[:] += np.float32(sign * 2e-3) * way
            weights.turn()
            ends.append(float(network.losses(piece).sum()))
            weights.values[:] = before
        weights.turn()
        wanted = float(slope.astype(np.float64) @ way)
        assert abs((ends[0] - ends[1]) / 4e-3 - wanted) < 1e-2 * abs(wanted), name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradients_are_the_same_bits_everywhere(family: str) -> None:
    wanted = None
    for isa in ISAS:
        for threads, again in ((1, False), (2, True), (3, False)):
            network = network_for(
                folder_of(family), isa=isa, threads=threads, type="full", grad_checkpoint=again
            )
            piece = piece_of(*golden_texts(family))
            found = [network.learn(piece, 1.0 / 3).tobytes(), network.parameters.slopes.tobytes()]
            assert found == (wanted := wanted or found), (isa, threads)


def test_padding_stays_zero() -> None:
    network = network_for(folder_of("gpt2"), type="full")
    network.learn(piece_of(*golden_texts("gpt2")), 1.0)
    weights = weights_of(network)
    assert np.count_nonzero(weights.slopes) <= weights.count
    assert np.count_nonzero(weights.values) <= weights.count
    assert len(weights.values) > weights.count


@pytest.mark.parametrize("family", FULL)
def test_last_layers_have_the_gradients_that_they_have_among_all(family: str) -> None:
    found = []
    for layers in (-1, 1):
        network = network_for(folder_of(family), type="full", num_layers=layers)
        losses = network.learn(piece_of(*golden_texts(family)), 0.5)
        weights = weights_of(network)
        slopes = {name: p.part(weights.slopes) for name, p in weights.places.items()}
        found.append((losses, slopes))
    (all_losses, wanted), (losses, slopes) = found
    assert (losses == all_losses).all()
    last = max(layer for name in wanted if (layer := layer_of(name)) is not None)
    assert slopes.keys() == {name for name in wanted if layer_of(name) == last}
    for name, slope in slopes.items():
        assert (slope == wanted[name]).all(), name


@pytest.mark.parametrize("family", REFUSED_IN_FULL)
def test_what_has_no_gradient_is_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED_IN_FULL[family]):
        network_for(folder_of(family), type="full")


# ------------------------------------------------------------------ runs


def test_the_same_bytes_everywhere(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    wanted = None
    for isa in ISAS:
        for threads in (1, 2):
            out = tmp_path / f"{isa}-{threads}"
            done = run(
                longer_model_path, data, out, isa=isa, n_threads=threads,
                grad_checkpoint=threads == 2,
            )  # fmt: skip
            found = (out / MODEL).read_bytes(), [report.loss for report in done.reports]
            assert found == (wanted := wanted or found), (isa, threads)
            shutil.rmtree(out)


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    after: int, longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    whole = run(longer_model_path, data, tmp_path / "whole", steps_per_report=1, patience=9)

    def stop(event: Event) -> bool:
        return not (isinstance(event, Report) and event.iteration == after)

    out, options = tmp_path / "parts", {"steps_per_report": 1, "patience": 9}
    assert run(longer_model_path, data, out, listener=stop, **options).iterations == after
    (out / MODEL).unlink()  # what was written last can be made of the state
    done = run(longer_model_path, data, out, resume=True, n_threads=2, **options)
    assert (out / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    assert [r.loss for r in done.reports] == [r.loss for r in whole.reports]


def test_a_run_of_the_last_layer_leaves_the_rest(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(longer_model_path, data, out, num_layers=1)
    with open_checkpoint(longer_model_path) as base, open_checkpoint(out) as trained:
        assert trained.tensors.keys() == base.tensors.keys()
        last = max(layer for name in base.tensors if (layer := layer_of(name)) is not None)
        assert last > 0
        changed = {n for n in base.tensors if (base.read(n) != trained.read(n)).any()}
    assert changed == {name for name in base.tensors if layer_of(name) == last}
    assert done.reports[-1].loss < done.reports[0].loss


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    options = SMALL | {"iters": 100, "save_every": 1, "steps_per_eval": 1000}
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), longer_model_path, data, out,
         json.dumps(options)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    time.sleep(0.003)  # somewhere in a step, or while something is written
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()
    run(longer_model_path, data, out, resume=True, **options)
    run(longer_model_path, data, tmp_path / "whole", **options)
    assert (out / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


def test_a_teacher_teaches_a_whole_model(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    """A model that is its own teacher has nothing to learn; another one comes closer to it."""
    own = run(longer_model_path, data, tmp_path / "other", learning_rate=1e-2)
    options = TrainOptions(**(SMALL | {"iters": 30, "grad_accumulation_steps": 1}))
    taught = Run(
        longer_model_path, data, tmp_path / "taught", options, name="tiny", teacher=own.path
    ).finish()
    assert taught.evaluations[-1].loss < 0.8 * taught.evaluations[0].loss


# ------------------------------------------------------------------ what comes of it


@pytest.mark.parametrize("family", ["llama", "gpt2", "helium", "gpt_neox", "phi3", "olmo2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_the_model_is_read_back(family: str, dtype: str, tmp_path: Path) -> None:
    """In the type of its base: what was not trained is what it was, and it loads again."""
    base = tmp_path / "base"
    shutil.copytree(folder_of(family), base)
    retyped(base / MODEL, dtype)
    network = network_for(base, type="full")
    weights = weights_of(network)
    written = tmp_path / "out"
    write_model(written, base, weights, weights.values)
    with open_checkpoint(written) as new, open_checkpoint(base) as old:
        assert dict(new.tensors) == dict(old.tensors)
        for name in old.tensors:
            assert (new.read(name) == old.read(name)).all(), name
    rng = np.random.default_rng(3)
    moved = weights.values * (1 + rng.normal(0, 1e-2, len(weights.values)).astype(np.float32))
    write_model(written, base, weights, moved)
    again = weights_of(network_for(written, type="full"))
    close = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}[dtype]
    assert (np.abs(again.values - moved) <= close * np.abs(moved) + (close > 0) * 2.0**-25).all()


Tensors = dict[str, tuple[str, list[int], bytes]]


def tensors_of(path: Path) -> Tensors:
    """Type, shape and bytes of what a file of safetensors holds."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        found[name] = (info["dtype"], info["shape"], raw[8 + size + begin : 8 + size + end])
    return found


def store(path: Path, tensors: Tensors) -> None:
    """Write such a file."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = [at, at + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def retyped(path: Path, dtype: str) -> None:
    """Store all tensors of a file in another type; values are rounded towards zero."""
    tensors = tensors_of(path)
    for name, (kind, shape, raw) in tensors.items():
        data = np.frombuffer(raw, np.uint8)
        if kind == "BF16":
            values = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view({"F16": "<f2", "F32": "<f4"}[kind]).astype(np.float32)
        part = (values.view(np.uint32) >> 16).astype("<u2")
        if dtype != "bf16":
            part = values.astype({"f16": "<f2", "f32": "<f4"}[dtype])
        tensors[name] = (dtype.upper(), shape, part.tobytes())
    store(path, tensors)


def test_values_are_rounded_to_the_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF80FFFF, 0], np.uint32)
    got = rounded(Path(), TensorInfo("a", "bf16", (5,), 10), bits.view(np.float32))
    assert got.view("<u2").tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF81, 0]
    for dtype, size, value in (("bf16", 2, 3.4e38), ("f16", 2, 1e5), ("f32", 4, np.inf)):
        with pytest.raises(CheckpointError, match=f"expected weights that fit {dtype}"):
            rounded(Path("x"), TensorInfo("a", dtype, (1,), size), np.array([value], np.float32))


def test_a_model_learns_and_answers(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    """One sentence, until it comes by itself."""
    (data / "valid.jsonl").unlink()
    write_lines(data / "train.jsonl", [{"prompt": "a", "completion": "river"}])
    done = slmq.train(
        longer_model_path, data, tmp_path / "out", type="full", iters=60, batch_size=1,
        learning_rate=1e-3, mask_prompt=True, n_threads=1,
    )  # fmt: skip
    assert done.reports[-1].loss < 0.1 < done.reports[0].loss
    with slmq.load(done.path) as m:
        assert m.ask("a", max_tokens=6).text.startswith("river")


def test_transformers_loads_what_was_trained(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    trained = Run(longer_model_path, data, tmp_path / "out", TrainOptions(**SMALL), name="tiny")
    trained.finish()
    tokens = list(b"a red stone")
    ours = float(trained.network.losses(piece_of([tokens], [1])).sum())
    theirs = float(torch_loss(torch_of(tmp_path / "out"), tokens, 1).detach())
    assert abs(theirs - ours) < 1e-4 * ours


def test_a_head_that_is_the_embedding_is_written_twice_where_it_was(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(folder_of("gpt2"), base)
    tensors = tensors_of(base / MODEL)
    embed = "transformer.wte.weight"
    # And what no family asks for: it is copied.
    more = {"lm_head.weight": tensors[embed], "transformer.mask": ("U8", [3], b"abc")}
    store(base / MODEL, tensors | more)
    weights = weights_of(network_for(base, type="full"))
    assert weights.count == sum(int(np.prod(shape)) for _, shape, _ in tensors.values())
    write_model(out, base, weights, weights.values * np.float32(2))
    found = tensors_of(out / MODEL)
    assert list(found) == [*tensors, *more]
    assert found["lm_head.weight"] == found[embed] != tensors[embed]
    assert found["transformer.mask"] == more["transformer.mask"]


# ------------------------------------------------------------------ bad input and accidents


def test_bases_without_floats_are_refused(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    slmq.quantize(longer_model_path, packed, format="int8")
    with pytest.raises(UnsupportedModelError, match=r"starts from floats.*found packed weights"):
        run(packed, data, tmp_path / "out")
    file = to_gguf(folder_of("llama"), tmp_path / "model.gguf")
    with pytest.raises(UnsupportedModelError, match=r"`slmq dequantize` makes.*type 'lora'"):
        network_for(file, type="full")
    with pytest.raises(ValueError, match="format: expected None where all weights are trained"):
        slmq.train(longer_model_path, data, tmp_path / "out", type="full", format="int8")
    config = json.loads((longer_model_path / "config.json").read_text("utf-8"))
    quantized = tmp_path / "quantized"
    shutil.copytree(longer_model_path, quantized)
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (quantized / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedModelError, match="found quantized weights"):
        run(quantized, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_of_adapters_are_refused(longer_model_path: Path, tmp_path: Path) -> None:
    for options in ({"rank": 4}, {"alpha": 2.0}, {"keys": ("q_proj",)}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}: expected nothing where all weights"):
            slmq.train(longer_model_path, tmp_path, tmp_path / "out", type="full", **options)
    with pytest.raises(ValueError, match="type: expected one of 'lora', 'full'"):
        TrainOptions(type="dora")  # type: ignore[arg-type]


def test_many_parameters_are_said_and_too_many_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(full, "MANY", 1000)
    network_for(folder_of("llama"), type="full")
    assert "gradients and moments take" in caplog.text
    monkeypatch.setattr(full, "available_memory_bytes", lambda: 1000)
    with pytest.raises(
        UnsupportedModelError, match=r"1\.0 kB of memory are free; train an adapter"
    ):
        network_for(folder_of("llama"), type="full")


def test_another_type_does_not_go_on(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    run(longer_model_path, data, tmp_path / "out", iters=2)
    with pytest.raises(CheckpointError, match="is it the state of another model or rank"):
        run(longer_model_path, data, tmp_path / "out", resume=True, iters=2, type="lora")


def test_a_forecast_knows_how_long_files_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.seconds_to_write(tmp_path / "out", 1 << 20) == 0
    assert not (tmp_path / "out").exists()
    assert files.seconds_to_write(tmp_path / "out", 20 << 20) > 0
    assert not list((tmp_path / "out").iterdir())

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "publish", full_disk)
    with pytest.raises(WriteError, match="No space left on device"):
        files.seconds_to_write(tmp_path / "out", 20 << 20)
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_leaves_the_last_model_whole(
    longer_model_path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real, calls = files.publish, list[Path]()

    def full_disk(file: Any, part: Path, path: Path, within: Path) -> None:
        calls.append(path)
        if len(calls) > 2:  # model, state; model
            raise OSError(28, "No space left on device")
        real(file, part, path, within)

    monkeypatch.setattr(files, "publish", full_disk)
    with pytest.raises(WriteError, match="No space left on device; what was there before is whole"):
        run(longer_model_path, data, out)
    monkeypatch.setattr(files, "publish", real)
    assert not list(out.glob(".*"))
    with slmq.load(out) as m:
        assert m.generate("a", max_tokens=2).text is not None
    run(longer_model_path, data, out, resume=True)
    run(longer_model_path, data, tmp_path / "whole")
    assert (out / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
