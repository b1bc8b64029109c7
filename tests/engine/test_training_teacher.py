"""Learning a teacher's distributions: the loss and its gradient, and what an adapter repairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import ISAS

import slmq
from slmq.engine.training.batches import pieces_of
from slmq.engine.training.options import TrainOptions
from slmq.engine.training.run import Run
from slmq.errors import CheckpointError, UnsupportedModelError

F64 = npt.NDArray[np.float64]
OPTIONS: dict[str, Any] = {
    "rank": 4, "iters": 30, "batch_size": 4, "learning_rate": 3e-3, "max_seq_length": 60,
    "steps_per_report": 5, "steps_per_eval": 30, "save_every": 30, "n_threads": 1,
}  # fmt: skip
WORDS = ("red", "blue", "green", "stone", "river", "cloud", "seven", "quiet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, seed, count in (("train", 0, 24), ("valid", 1, 6)):
        rng = np.random.default_rng(seed)
        texts = [{"text": " ".join(rng.choice(WORDS, 9))} for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, texts)), "utf-8")
    return folder


def run_of(model: Path, data: Path, out: Path, **options: Any) -> Run:
    mine = {k: options.pop(k) for k in ("isa", "teacher", "format", "resume") if k in options}
    mine = {"teacher": model, "format": "int4"} | mine
    return Run(model, data, out, TrainOptions(**(OPTIONS | options)), name="tiny", **mine)


def log_softmax(logits: F64) -> F64:
    away = logits - logits.max(-1, keepdims=True)
    return away - np.log(np.exp(away).sum(-1, keepdims=True))


def test_the_loss_is_the_divergence(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    """Of what plans compute by themselves; a model has none from itself."""
    run = run_of(longer_model_path, data, tmp_path / "out")
    assert run.train is not None
    (piece,) = pieces_of(run.train.samples[:1])
    kept = {"kv_dtype": "f32", "activations": "exact"}
    logs = []
    for kind in ("f32", "int4"):
        with slmq.load(longer_model_path, format=kind, **kept) as model:
            logs.append(log_softmax(model.logits(piece.tokens.tolist()).astype(np.float64)))
    wanted = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)[piece.rows]
    assert run.network.losses(piece) == pytest.approx(wanted, rel=2e-3, abs=2e-6)
    same = run_of(longer_model_path, data, tmp_path / "same", format="f32")
    assert np.abs(same.network.losses(piece)).max() < 1e-6


def test_the_gradient_is_that_of_the_loss(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    """The same bits on every CPU and by any number of threads, and as differences tell."""
    found = set()
    for isa in ISAS:
        for threads in (1, 3):
            out = tmp_path / f"{isa}-{threads}"
            run = run_of(longer_model_path, data, out, isa=isa, n_threads=threads)
            assert run.train is not None
            (piece,) = pieces_of(run.train.samples[:2])
            values, slopes = run.network.parameters.values, run.network.parameters.slopes
            rng = np.random.default_rng(5)
            values[:] = np.where(values == 0, 0, rng.normal(0, 0.05, len(values)))
            run.network.parameters.turn()
            losses = run.network.learn(piece, 1.0)
            found.add(losses.tobytes() + slopes.tobytes())
    assert len(found) == 1
    assert (losses == run.network.losses(piece)).all()
    before, ends = values.copy(), []
    way = slopes / np.linalg.norm(slopes)
    for sign in (1, -1):
        values[:] = before + np.float32(sign * 2e-3) * way
        run.network.parameters.turn()
        ends.append(float(run.network.losses(piece).sum()))
    wanted = float(slopes.astype(np.float64) @ way)
    assert (ends[0] - ends[1]) / 4e-3 == pytest.approx(wanted, rel=1e-2)


def test_an_adapter_repairs(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    done = run_of(longer_model_path, data, tmp_path / "out").finish()
    before, after = (e.loss for e in done.evaluations)
    assert 0 < after < 0.8 * before
    with pytest.raises(CheckpointError, match="with another teacher; go on with the same"):
        run_of(longer_model_path, data, tmp_path / "out", resume=True, teacher=None)


def test_another_models_tokens(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(longer_model_path, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["s"], vocabulary["u"] = vocabulary["u"], vocabulary["s"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(UnsupportedModelError, match="teacher: expected the tokens of tiny"):
        run_of(longer_model_path, data, tmp_path / "out", teacher=other)
