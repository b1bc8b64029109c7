"""Training runs: the same bytes on every CPU, by any number of threads, after a kill; bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import ISAS
from training_cases import (
    KILLED,
    SMALL_RUN,
    lines,
    piece_of,
    small_data,
    small_run,
    torch_loss,
    write_lines,
)

import slmq
from slmq.engine.training import files
from slmq.engine.training.batches import Order
from slmq.engine.training.data import Sample, read_samples
from slmq.engine.training.events import Evaluation, Event, Forecast, Report, Saved, Trained
from slmq.engine.training.files import STATE
from slmq.engine.training.optimizer import Schedule
from slmq.engine.training.options import TrainOptions
from slmq.engine.training.page import loss_page, sparkline
from slmq.engine.training.run import Run
from slmq.errors import CheckpointError, DataError, WriteError
from slmq.tokenizer import Tokenizer

SMALL: dict[str, Any] = SMALL_RUN | {"rank": 2, "learning_rate": 1e-2}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data(tmp_path / "data")


def run(model: Path, data: Path, out: Path, **options: Any) -> Trained:
    return small_run(model, data, out, **(SMALL | options))


def adapter_bytes(out: Path) -> bytes:
    return (out / WEIGHTS).read_bytes()


# ------------------------------------------------------------------ one answer


def test_the_same_bytes_everywhere(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    wanted = None
    for isa in ISAS:
        for threads in (1, 2, 3):
            out = tmp_path / f"{isa}-{threads}"
            done = run(
                longer_model_path, data, out, isa=isa, n_threads=threads,
                grad_checkpoint=threads == 2,
            )  # fmt: skip
            found = adapter_bytes(out), [report.loss for report in done.reports]
            assert found == (wanted := wanted or found), (isa, threads)


def test_another_seed_gives_another_adapter(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        run(longer_model_path, data, tmp_path / f"{seed}", seed=seed)
    assert adapter_bytes(tmp_path / "0") != adapter_bytes(tmp_path / "1")


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    after: int, longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    whole = run(longer_model_path, data, tmp_path / "whole", steps_per_report=1)

    def stop(event: Event) -> bool:
        return not (isinstance(event, Report) and event.iteration == after)

    options: dict[str, Any] = {"steps_per_report": 1}
    out = tmp_path / "parts"
    part = run(longer_model_path, data, out, listener=stop, **options)
    assert part.iterations == after
    done = run(longer_model_path, data, out, resume=True, n_threads=3, **options)
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")
    assert [r.loss for r in done.reports] == [r.loss for r in whole.reports]
    valid = [(e.iteration, e.loss) for e in whole.evaluations]
    assert [(e.iteration, e.loss) for e in done.evaluations] == valid
    again = run(longer_model_path, data, out, resume=True, **options)  # nothing is left to do
    assert again.iterations == SMALL["iters"]
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    options = SMALL | {"iters": 400, "save_every": 1, "steps_per_eval": 1000}
    out = tmp_path / "killed"
    code = textwrap.dedent(KILLED)
    process = subprocess.Popen(
        [sys.executable, "-c", code, longer_model_path, data, out, json.dumps(options)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    time.sleep(0.003)  # somewhere in a step, or while something is written
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()
    with pytest.raises(CheckpointError, match="iters = 400, not 401"):
        run(longer_model_path, data, out, resume=True, **(options | {"iters": 401}))
    run(longer_model_path, data, out, resume=True, **options)
    run(longer_model_path, data, tmp_path / "whole", **options)
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")


# ------------------------------------------------------------------ what comes of it


def test_a_model_learns_and_answers_with_what_it_learned(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    """One sentence, until it comes by itself; the base is as it was."""
    (data / "valid.jsonl").unlink()
    write_lines(data / "train.jsonl", [{"prompt": "a", "completion": "river"}])
    done = slmq.train(
        longer_model_path, data, tmp_path / "out", rank=8, iters=60, batch_size=1,
        learning_rate=1e-2, mask_prompt=True, n_threads=1,
    )  # fmt: skip
    assert done.reports[-1].loss < 0.1 < done.reports[0].loss
    with slmq.load(longer_model_path) as m:
        before = m.ask("a", max_tokens=6).text
        name = m.load_adapter(done.path)
        said = m.ask("a", max_tokens=6, adapter=name).text
    assert said.startswith("river")
    assert not before.startswith("river")


def test_peft_loads_what_was_trained(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    options = TrainOptions(**SMALL)
    trained = Run(longer_model_path, data, tmp_path / "out", options, name="tiny")
    trained.finish()
    tokens = list(b"a red stone")
    ours = float(trained.network.losses(piece_of([tokens], [1])).sum())
    model = transformers.AutoModelForCausalLM.from_pretrained(longer_model_path, dtype="float32")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    theirs = float(torch_loss(model, tokens, 1))
    assert abs(theirs - ours) < 1e-5 * ours
    with model.disable_adapter():
        assert abs(float(torch_loss(model, tokens, 1)) - ours) > 1e-3 * ours


def test_events_come_in_order(
    longer_model_path: Path, data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    told: list[Event] = []
    write_lines(data / "test.jsonl", lines(3, 2))
    done = run(longer_model_path, data, tmp_path / "out", listener=told.append)
    kinds = [type(event) for event in told]
    assert kinds[:2] == [Forecast, Evaluation]
    assert kinds[-2:] == [Saved, Evaluation]
    assert [e.iteration for e in told if isinstance(e, Report)] == [2, 4, 6]
    assert [e.iteration for e in told if isinstance(e, Saved)] == [2, 4, 6]
    assert [(e.split, e.iteration) for e in told if isinstance(e, Evaluation)] == [
        ("valid", 0), ("valid", 4), ("valid", 6), ("test", 6),
    ]  # fmt: skip
    (forecast,) = [event for event in told if isinstance(event, Forecast)]
    assert forecast.iters == 6
    assert forecast.seconds > 0
    assert forecast.memory_bytes > 0
    looked_at = sum(sample.rows for sample in samples_of(data, tokenizer, "valid"))
    assert forecast.tokens == done.tokens + 3 * looked_at


def test_patience_ends_a_run_and_keeps_its_best(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    """With a rate that spoils what was learned."""
    options: dict[str, Any] = {
        "learning_rate": 0.5, "schedule": "constant", "iters": 40, "steps_per_eval": 1,
        "grad_accumulation_steps": 1, "save_every": 1000, "patience": 3, "val_batches": -1,
    }  # fmt: skip
    done = run(longer_model_path, data, tmp_path / "out", **options)
    found = {e.iteration: e.loss for e in done.evaluations if e.iteration}
    assert done.iterations < 40
    assert done.best == min(found, key=lambda i: found[i])
    assert done.iterations == done.best + 3
    options |= {"patience": 0, "iters": done.best}
    run(longer_model_path, data, tmp_path / "best", **options)
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "best")


# ------------------------------------------------------------------ data


def samples_of(
    folder: Path, tokenizer: Tokenizer, split: str = "train", **options: Any
) -> list[Sample]:
    options = {"limit": 100, "truncate": False, "mask_prompt": True} | options
    read = read_samples(folder, split, tokenizer, **options)
    assert read is not None
    return read.samples


@pytest.fixture
def tokenizer(longer_model_path: Path) -> Tokenizer:
    from slmq.checkpoint import open_checkpoint
    from slmq.tokenizer import load_tokenizer

    with open_checkpoint(longer_model_path) as checkpoint:
        return load_tokenizer(checkpoint)


def test_four_shapes_of_samples(tmp_path: Path, tokenizer: Tokenizer) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    records = [
        {"messages": chat, "source": "somewhere"},
        {"prompt": "hi", "completion": "yes"},
        {"text": "plain"},
    ]
    write_lines(tmp_path / "train.jsonl", records)
    first, second, third = samples_of(tmp_path, tokenizer)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.first == second.first
    told = tokenizer.decode(first.tokens[first.first :].tolist(), skip_special=True)
    assert told.strip() == "yes"
    assert tokenizer.decode(third.tokens.tolist()) == "plain"
    assert third.tokens[-1] == tokenizer.id_of("eos_token")
    assert third.first == 1
    assert [s.first for s in samples_of(tmp_path, tokenizer, mask_prompt=False)] == [1, 1, 1]
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_text('question,answer\nhi,yes\n"a, b","c\nd"\n', "utf-8")
    rows = samples_of(tmp_path, tokenizer)
    assert rows[0].tokens.tolist() == first.tokens.tolist()
    assert "c\nd" in tokenizer.decode(rows[1].tokens.tolist())
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.txt").write_text("0123456789" * 3, "utf-8")
    running = samples_of(tmp_path, tokenizer, limit=8)
    assert [len(sample.tokens) for sample in running] == [8, 8, 8, 6]
    assert tokenizer.decode([t for s in running for t in s.tokens.tolist()]) == "0123456789" * 3


def test_long_samples_are_counted_and_only_cut_on_request(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "x" * 50}, {"text": "short"}])
    left = read_samples(tmp_path, "train", tokenizer, limit=20, truncate=False, mask_prompt=False)
    assert left is not None
    assert (len(left), left.too_long) == (1, 1)
    assert "1 longer than 20 tokens left out" in left.said(20)
    cut = read_samples(tmp_path, "train", tokenizer, limit=20, truncate=True, mask_prompt=False)
    assert cut is not None
    assert (len(cut), cut.cut) == (2, 1)
    assert len(cut.samples[0].tokens) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"prompt": "b"}\n', "train.jsonl, line 2: expected the keys messages"),
        ('{"text": "a"}\n\n{"text": 3}\n', "line 3: text: expected a string, got 3"),
        ('{"text": "a"}\n{"text": \n', "line 2: expected a line of JSON"),
        ("[1]\n", r"line 1: expected an object"),
        ('{"messages": []}\n', "line 1: messages: expected a list of messages"),
        ('{"messages": [{"role": 1}]}\n', "line 1: "),
        ('{"text": "a\\ud800"}\n', "line 1: "),
        ("", "expected samples to learn from"),
    ],
)
def test_bad_lines_are_named(text: str, message: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "train.jsonl").write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        samples_of(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n", "line 1: expected two named columns"),
        ("prompt,completion\nx,y\nz\n", "line 3: expected 2 columns, got 1"),
        ('prompt,completion\n"x\n', "expected CSV"),
    ],
)
def test_bad_tables_are_named(
    text: str, message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "train.csv").write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        samples_of(tmp_path, tokenizer)


def test_other_bad_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "train.txt").write_bytes(b"a\xff")
    with pytest.raises(DataError, match="expected UTF-8, found another byte at 1"):
        samples_of(tmp_path, tokenizer)
    write_lines(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="expected one file of 'train', found"):
        samples_of(tmp_path, tokenizer)


def test_every_epoch_has_every_sample_once() -> None:
    samples = [Sample(np.array([i, 0], np.int32), 1) for i in range(7)]
    order = Order(samples, 3, seed=5)
    seen = [int(s.tokens[0]) for i in range(14) for s in order.batch(i)]
    epochs = [seen[7 * i : 7 * i + 7] for i in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [int(s.tokens[0]) for s in Order(samples, 3, seed=5).batch(9)] == seen[27:30]


# ------------------------------------------------------------------ bad input and accidents


def test_folders_that_cannot_be_trained_into(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="no state of a run to go on from"):
        run(longer_model_path, data, out, resume=True)
    with pytest.raises(DataError, match=r"expected a folder with train\.jsonl"):
        run(longer_model_path, tmp_path / "nothing", out)
    run(longer_model_path, data, out, iters=2)
    with pytest.raises(WriteError, match="is not empty; go on with the run in it"):
        run(longer_model_path, data, out)
    state = out / STATE
    kept = state.read_bytes()
    state.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(CheckpointError, match=STATE):
        run(longer_model_path, data, out, resume=True, iters=2)
    state.write_bytes(kept)
    for other, message in (
        ({"rank": 3}, "another model or rank"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"learning_rate": 0.5}, "learning_rate = 0.01, not 0.5"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(longer_model_path, data, out, resume=True, **({"iters": 2} | other))
    write_lines(data / "train.jsonl", lines(9, seed=4))
    with pytest.raises(CheckpointError, match="other samples"):
        run(longer_model_path, data, out, resume=True, iters=2)


def test_a_full_disk_leaves_the_last_state_whole(
    longer_model_path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real, calls = files.publish, list[Path]()

    def full(file: Any, part: Path, path: Path, within: Path) -> None:
        calls.append(path)
        if len(calls) > 4:  # adapter, config, state; adapter
            raise OSError(28, "No space left on device")
        real(file, part, path, within)

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(WriteError, match="No space left on device; what was there before is whole"):
        run(longer_model_path, data, out)
    monkeypatch.setattr(files, "publish", real)
    assert not list(out.glob(".*"))
    run(longer_model_path, data, out, resume=True)
    run(longer_model_path, data, tmp_path / "whole")
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")


def test_a_loss_that_is_no_number_ends_the_run(
    longer_model_path: Path, data: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "learning_rate": 1e3, "max_grad_norm": 0.0, "iters": 60, "schedule": "constant",
    }  # fmt: skip
    (data / "valid.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"the loss is not a number.*Lower the learning rate"):
        run(longer_model_path, data, tmp_path / "out", alpha=1e20, **options)
    with pytest.raises(CheckpointError, match=r"iteration \d: the loss is not a number"):
        run(longer_model_path, data, tmp_path / "out", alpha=1e20, resume=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected an int in 1..256"),
        ({"rank": True}, "rank: expected an int"),
        ({"alpha": 0}, "alpha: expected a number > 0"),
        ({"schedule": "steep"}, "schedule: expected one of 'constant', 'linear', 'cosine'"),
        ({"keys": "q_proj"}, "keys: expected a list of names"),
        ({"num_layers": 0}, "num_layers: expected an int >= 1, or -1 for all"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number"),
        ({"epochs": 0}, "epochs: expected a number > 0"),
        ({"max_seq_length": 1}, "max_seq_length: expected an int in 2"),
        ({"rnak": 4}, "unknown parameter 'rnak'; did you mean 'rank'"),
    ],
)
def test_wrong_options_are_named(
    options: dict[str, Any], message: str, longer_model_path: Path, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        slmq.train(longer_model_path, tmp_path, tmp_path / "out", **options)


# ------------------------------------------------------------------ small things


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedules(kind: str) -> None:
    rates = [Schedule(kind, 2.0, 4, 12).at(i) for i in range(12)]
    assert rates[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 2.0,
        "linear": lambda x: 2.0 * (1 - x),
        "cosine": lambda x: 1 + float(np.cos(np.pi * x)),
    }
    wanted = [shapes[kind]((i - 4) / 8) for i in range(4, 12)]
    assert np.abs(np.array(rates[4:]) - wanted).max() < 1e-12


def test_the_page_of_a_run(longer_model_path: Path, data: Path, tmp_path: Path) -> None:
    done = run(longer_model_path, data, tmp_path / "out")
    page = loss_page("<tiny>", done)
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page
    assert page.count("<polyline") == 2
    assert f"{done.evaluations[-1].loss:.4f}" in page
    assert sparkline([3, 2, 1, 1], 3) == "█▁▁"
