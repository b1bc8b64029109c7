"""Side by side: random GGUF files, the workers' protocol, and the statistics of a comparison.

slmq is its own peer here, so no other engine is needed.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from places import BENCHMARKS
from small_shapes import small_shape

import slmq
from slmq import _native
from slmq.formats import format_named
from slmq.speed.shapes import SHAPES

if not BENCHMARKS.is_dir():
    pytest.skip("reads the source tree, which is not here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import peer_install
import peer_measure
import peer_process
import peer_report
import peers
import random_gguf
import random_stateful

SMALL = random_gguf.Shape(
    vocab=300,
    hidden=96,
    inner=160,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=24,
    tied=False,
    positions=64,
)
BLOCKS_OF_256 = SMALL._replace(hidden=256, inner=256, layers=10, head_dim=64)
# What llama-quantize makes of ten layers.
MORE_BITS = ["output.weight"] + [
    f"blk.{i}.{name}.weight" for i in (0, 3, 6, 8, 9) for name in ("attn_v", "ffn_down")
]


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "tiny.gguf"
    return random_gguf.write_random_gguf(path, SMALL, "q4_0")


# ------------------------------------------------------------------ random files


@pytest.mark.parametrize("weight_format", random_gguf.FORMATS)
def test_a_random_file_is_a_model(weight_format: str, tmp_path: Path) -> None:
    shape = BLOCKS_OF_256 if weight_format == "q4_k_m" else SMALL
    path = random_gguf.write_random_gguf(tmp_path / "m.gguf", shape, weight_format)
    weights = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2]
    assert sum(t.n_bytes for t in weights) == random_gguf.file_bytes(shape, weight_format)
    for tensor in weights:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        sixth = weight_format == "q4_k_m" and tensor.name in MORE_BITS
        kind = weight_format.removesuffix("_m") if not sixth else "q6_k"
        assert tensor.tensor_type.name == kind.upper()
        assert abs(values.mean()) < 0.003
        assert 0.018 < values.std() < 0.024
    with slmq.load(path, n_threads=1) as model:
        assert model.engine.tokenizer.decode(model.engine.tokenizer.encode("the sea")) == "the sea"
        logits = model.logits("the sea")
    assert logits.shape[1] == shape.vocab
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_random_files_repeat_and_their_matrices_differ(tiny_gguf: Path, tmp_path: Path) -> None:
    same = random_gguf.write_random_gguf(tmp_path / "same.gguf", SMALL, "q4_0")
    other = random_gguf.write_random_gguf(tmp_path / "other.gguf", SMALL, "q4_0", seed=1)
    assert same.read_bytes() == tiny_gguf.read_bytes() != other.read_bytes()
    layers = [t.data for t in gguf.GGUFReader(same).tensors if t.name.endswith("ffn_up.weight")]
    assert not np.array_equal(*layers)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    odd = random_gguf.Shape(300, 90, 160, 1, 2, 1, 45, True, 64)
    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="expected one of q4_0, q4_1, q8_0, q4_k_m, got 'q3'"):
        random_gguf.write_random_gguf(path, SMALL, "q3")
    with pytest.raises(ValueError, match=r"token_embd\.weight: expected inputs in groups of 32"):
        random_gguf.write_random_gguf(path, odd, "q4_0")
    with pytest.raises(ValueError, match="expected inputs in groups of 256, got 96"):
        random_gguf.write_random_gguf(path, SMALL, "q4_k_m")
    with pytest.raises(ValueError, match="vocabulary: expected at least 260 tokens, got 259"):
        random_gguf.vocabulary(259)
    huge = random_gguf.Shape(1 << 40, 1 << 20, 32, 1, 1, 1, 32, True, 64)
    with pytest.raises(OSError, match="GB of disk"):
        random_gguf.write_random_gguf(path, huge, "q4_0")
    assert not list(tmp_path.iterdir())


LFM2 = {
    "model_type": "lfm2",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention", "conv"],
}
QWEN3_5 = {
    "model_type": "qwen3_5_text",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}


@pytest.mark.parametrize("config", [LFM2, QWEN3_5], ids=["lfm2", "qwen35"])
def test_random_files_of_models_with_states(config: dict[str, Any], tmp_path: Path) -> None:
    shape = random_stateful.StatefulShape(config)
    path = random_gguf.write_random_gguf(tmp_path / "m.gguf", shape, "q4_0")
    with slmq.load(path, n_threads=1) as model:
        logits = model.logits("the sea")
    assert logits.shape[1] == shape.vocab
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    weights = [t for t in gguf.GGUFReader(path).tensors if t.tensor_type.name == "Q4_0"]
    assert sum(t.n_bytes for t in weights) == random_gguf.file_bytes(shape, "q4_0")


@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-1.2b", "qwen3.5-0.8b", "qwen3.5-9b"])
def test_published_models_with_states_have_all_their_weights(name: str) -> None:
    shape = random_gguf.own_shape(name)
    assert isinstance(shape, random_stateful.StatefulShape)
    vectors = sum(values.size for _, values in shape.vectors())
    matrices = sum(n * k for _, (n, k) in shape.matrices())
    assert matrices + vectors == SHAPES[name].parameters()


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gpt-oss-20b", "afm-4.5b", "distilgpt2"])
def test_shapes_that_are_no_llama_of_some_size(name: str) -> None:
    with pytest.raises(ValueError, match="no sizes of a Llama; its family is its own"):
        random_gguf.own_shape(name)


# ------------------------------------------------------------------ a whole comparison


@pytest.mark.parametrize("config", [LFM2, QWEN3_5], ids=["lfm2", "qwen35"])
def test_models_with_states_are_compared(config: dict[str, Any], tmp_path: Path) -> None:
    shape = random_stateful.StatefulShape(config)
    path = random_gguf.write_random_gguf(tmp_path / "m.gguf", shape, "q4_0")
    options = ["--model", str(path), "--peer", "slmq", "--threads", "1", "--rounds", "1"]
    options += ["--prompt", "40", "--gen", "4", "--batch", "1,3"]
    assert peers.main([*options, "--json", str(tmp_path / "found.json")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text("utf-8"))["rows"]
    assert [row["test"] for row in rows] == ["pp40", "tg4", "tg4x3"]
    assert all(row["slmq"]["read_fraction"] > 0 for row in rows)


def test_slmq_beside_itself(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    arguments = ["--model", str(tiny_gguf), "--peer", "slmq", "--threads", "1", "--rounds", "2"]
    arguments += ["--prompt", "20", "--gen", "4", "--batch", "1,3", "--json", str(out)]
    assert peers.main([*arguments, "--peer-option", "kv_dtype=f32"]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert list(found) == ["model", "cpu", "rounds", "slmq", "peer", "rows"]
    assert found["slmq"]["settings"]["formats"] == "q4g32s"
    assert found["peer"]["settings"]["kv_dtype"] == "f32"
    assert [row["test"] for row in found["rows"]] == ["pp20", "tg4", "tg4x3"]
    for row, tokens in zip(found["rows"], (20, 4, 12), strict=True):
        ratios = [peer_s / slmq_s for slmq_s, peer_s in row["seconds"]]
        assert row["ratio"] == {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
        for side, name in enumerate(("slmq", "peer")):
            speeds = [tokens / pair[side] for pair in row["seconds"]]
            assert row[name]["tokens_per_s"]["median"] == statistics.median(speeds)
            assert row[name]["read_fraction"] > 0
            assert row[name]["integer_fraction"] > 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[0].startswith("| test | threads | slmq over slmq |")
    assert [line.split()[1] for line in table[2:]] == ["pp20", "tg4", "tg4x3"]
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "mlx"], "peer: expected one of llama.cpp, openvino, slmq, got 'mlx'"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--only", "pp", "--prompt", "0"], "nothing to measure"),
        (["--prompt", "65"], "was made for 64 tokens, not 65"),
        (["--batch", "1000"], "batch: expected at most"),
        (["--python", "/no/such/python"], "peer slmq cannot be started"),
    ],
)
def test_what_cannot_be_measured_is_told(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    options = ["--model", str(tiny_gguf), "--peer", "slmq", "--prompt", "8", "--gen", "2"]
    assert peers.main([*options, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_shape_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tinylama", "--peer", "slmq", "--cache", str(tmp_path)]
    assert peers.main(options) == 1
    assert "did you mean 'tinyllama-1.1b-chat'" in capsys.readouterr().err


# ------------------------------------------------------------------ its parts


def test_a_step_of_several_sequences_reads_the_weights_once(tiny_gguf: Path) -> None:
    script = peer_install.PEERS["slmq"].worker
    with peer_process.Worker("slmq", Path(sys.executable), script) as worker:
        worker.ask("load", model=str(tiny_gguf), positions=8, batch=4, options={})
        one, four = (worker.ask("work", tokens=8, whole=False, batch=b) for b in (1, 4))
        with pytest.raises(peer_process.PeerError, match="slmq, sing: expected one of load"):
            worker.ask("sing")
        assert worker.ask("steps", sequences=[[1, 2], [3, 4]])["seconds"] > 0
    assert four["macs_per_token"] == one["macs_per_token"]
    embedding = _native.packed_bytes("q4g32s", SMALL.vocab, SMALL.hidden)  # a row of it is read
    weights = small_shape(64).packed_bytes(format_named("q4g32s")) - embedding
    saved = one["read_bytes_per_token"] - four["read_bytes_per_token"]
    assert saved == pytest.approx(0.75 * weights)


def test_summary_of_known_times() -> None:
    rounds = peer_measure.Rounds([(1.0, 3.0), (2.0, 4.0), (1.0, 1.5)], [(0.1, 0.0)] * 3)
    probes = [
        {"read_gb_per_s": 10.0, "integer_peak_gmac_per_s": 90.0},
        {"read_gb_per_s": 8.0, "integer_peak_gmac_per_s": 100.0},
    ]
    work = {"read_bytes_per_token": 1e7, "macs_per_token": 2e8}
    test = peer_measure.Test(64, prompt=False, batch=2)
    row = peer_measure.summarize(test, 2, rounds, probes, work, 0.5)
    assert (row.test, row.threads) == ("tg64x2", 2)
    assert row.ratio == peer_measure.Spread(2.0, 1.5, 3.0)
    assert row.slmq.tokens_per_s == peer_measure.Spread(128.0, 64.0, 128.0)
    assert row.peer.tokens_per_s.median == pytest.approx(128 / 3)
    assert row.slmq.read_fraction == pytest.approx(1e7 * 128 / 10e9)
    assert row.peer.integer_fraction == pytest.approx(2e8 * 128 / 3 / 100e9)
    assert row.slmq.idle_cpu == pytest.approx(0.3 / 8.5)
    assert row.peer.idle_cpu == 0
    info = {"engine": "other", "version": "1", "load_s": 1.0, "settings": {}}
    text = peer_report.as_markdown(
        peer_report.Comparison("m", "cpu", 3, info | {"engine": "slmq"}, info, [row])
    )
    assert (
        "| tg64x2 | 2 | **2.00** (1.50 to 3.00) | 128 (64 to 128) | 42.7 (32.0 to 85.3) |" in text
    )
    assert "warning: the machine was busy" in text


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "lack of memory"),
        ("raise SystemExit('no such library')", r"exit code 1\n  no such library"),
    ],
)
def test_a_worker_that_ends_says_how(program: str, message: str, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(program, "utf-8")
    worker = peer_process.Worker("it", Path(sys.executable), script)
    with worker, pytest.raises(peer_process.PeerError, match=f"it ended during 'load'.*{message}"):
        worker.ask("load")


def test_what_a_worker_prints_is_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from peer_worker import serve\n"
        "serve({'talk': lambda: os.write(1, b'chatter') and None})\n",
        "utf-8",
    )
    with peer_process.Worker("it", Path(sys.executable), script) as worker:
        assert worker.ask("talk") == {}


def test_an_installation_that_fails_shows_the_log(tmp_path: Path) -> None:
    peer = peer_install.Peer("it", "it.py", ("./no-such-wheel.whl",))
    log = tmp_path / "install.log"
    with pytest.raises(peer_process.PeerError, match=r"could not install \./no-such-wheel\.whl"):
        peer_install.install(peer, Path(sys.executable), log)
    assert log.stat().st_size > 0
