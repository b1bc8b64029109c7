"""A training run: batches, updates, evaluations and checkpoints, from the start or from a state."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.engine.training.base import Base, network_of, open_base
from slmq.engine.training.batches import Order, batches_in_turn, largest_rows, pieces_of
from slmq.engine.training.data import Sample, Samples, read_samples
from slmq.engine.training.distill import distillation, open_teacher
from slmq.engine.training.events import (
    Evaluation,
    Event,
    Forecast,
    Listener,
    Report,
    Saved,
    Trained,
)
from slmq.engine.training.files import (
    STATE,
    read_state,
    seconds_to_write,
    write_adapter,
    write_state,
)
from slmq.engine.training.forecast import forecast
from slmq.engine.training.low_rank import LowRanks
from slmq.engine.training.model_folder import write_model
from slmq.engine.training.network import Network
from slmq.engine.training.optimizer import AdamW, Schedule, clip
from slmq.engine.training.options import TrainOptions
from slmq.errors import CheckpointError, DataError, WriteError
from slmq.machine.memory import peak_memory_bytes

__all__ = ["Run"]

F32 = npt.NDArray[np.float32]
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW
WRITTEN_BYTES = 16  # a parameter: what it is, the state of it, its mean and square
LOOKED_AHEAD = 2000  # batches that a forecast knows the length of


class Run:
    """One run.

    Parameters
    ----------
    model : path
    data : path
        A folder with train.jsonl (or .csv, .txt), and valid and test if there are such.
    out : path
        The folder that the adapter or the model, and the state, are written to.
    options : TrainOptions
    name : str
        What the model is called.
    format : str, optional
        Of the base's weights; by default as they are.
    resume : bool
        Go on from the state in `out`; with another state of things that is an error.
    listener : callable, optional
    isa : str, optional
    teacher : path, optional
        A model whose distributions are learned instead of the texts' own next tokens.

    Raises
    ------
    DataError, CheckpointError, UnsupportedModelError, TokenizerError, WriteError
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        data: str | os.PathLike[str],
        out: str | os.PathLike[str],
        options: TrainOptions,
        *,
        name: str,
        format: str | None = None,
        resume: bool = False,
        listener: Listener | None = None,
        isa: str | None = None,
        teacher: str | os.PathLike[str] | None = None,
    ) -> None:
        self.out = Path(out)
        self.options = options
        self._began_s = time.monotonic()
        self._listener = listener
        self._check_target(resume=resume)
        if not Path(data).is_dir():
            raise DataError(f"{data}: expected a folder with train.jsonl, train.csv or train.txt")
        self.base: Base = open_base(model, options, name=name, format=format)
        self.train = self._samples(Path(data), "train")
        self.valid = self._samples(Path(data), "valid")
        self.test = self._samples(Path(data), "test")
        if self.train is None:
            raise DataError(f"{data}: expected train.jsonl, train.csv or train.txt")
        splits = [split for split in (self.train, self.valid, self.test) if split is not None]
        rows = largest_rows([sample for split in splits for sample in split.samples])
        self.network: Network = network_of(self.base, options, rows=rows, isa=isa)
        self._teacher = None if teacher is None else open_teacher(teacher, options)
        if self._teacher is not None:
            self.network.loss = distillation(
                self.network, self.base, self._teacher, options, rows=rows, isa=isa
            )
        parameters = self.network.parameters
        self._optimizer = AdamW(
            self.network.operators,
            len(parameters.values),
            betas=BETAS,
            eps=EPS,
            weight_decay=options.weight_decay if options.optimizer == "adamw" else 0.0,
        )
        self._order = Order(self.train.samples, options.batch_size, options.seed)
        self.iters = options.iters
        if options.epochs is not None:
            self.iters = max(1, math.ceil(options.epochs * len(self.train) / options.batch_size))
        updates = math.ceil(self.iters / options.grad_accumulation_steps)
        self._schedule = Schedule(options.schedule, options.learning_rate, options.warmup, updates)
        self.iteration = 0
        self._tokens = 0
        self._reports: list[Report] = []
        self._evaluations: list[Evaluation] = []
        self._best = (math.inf, 0)
        self._best_values: F32 | None = None
        if options.patience:
            self._best_values = parameters.values.copy()
        self._worse = 0
        self._stopped = False
        self._norm = 0.0
        if resume:
            self._resume()

    # ------------------------------------------------------------------ the run

    def finish(self) -> Trained:
        """Run to the end; a state that is at its end has nothing left to do."""
        if self.iteration < self.iters and not self._stopped:
            self._tell(self._forecast())
            if self.iteration == 0:
                self._evaluate()
        started_s = began_s = time.monotonic()
        done, tokens, losses, targets = self.iteration, self._tokens, 0.0, 0
        while self.iteration < self.iters and not self._stopped:
            loss, count = self._learn()
            losses, targets = losses + loss, targets + count
            last = self.iteration == self.iters
            if self.iteration % self.options.steps_per_report == 0 or last:
                now_s = time.monotonic()
                speed = (self._tokens - tokens) / max(1e-9, now_s - began_s)
                each_s = (now_s - started_s) / (self.iteration - done)
                self._report(losses / targets, speed, each_s * (self.iters - self.iteration))
                began_s, tokens, losses, targets = now_s, self._tokens, 0.0, 0
            if self.iteration % self.options.steps_per_eval == 0 or last:
                self._evaluate()
            if self.iteration % self.options.save_every == 0 or last or self._stopped:
                self._save()
        self._evaluate_test()
        return self._result()

    def _learn(self) -> tuple[float, int]:
        """One batch, and an update if it is the last of those that share one."""
        options, parameters = self.options, self.network.parameters
        batch = self._order.batch(self.iteration)
        count = sum(len(sample.tokens) - sample.first for sample in batch)
        each = options.grad_accumulation_steps
        if self.iteration % each == 0:
            parameters.slopes.fill(0.0)
        loss = 0.0
        for piece in pieces_of(batch):
            for value in self.network.learn(piece, 1.0 / (count * each)):
                loss += float(value)
            self._tokens += len(piece.tokens)
        if not math.isfinite(loss):
            raise CheckpointError(
                f"iteration {self.iteration + 1}: the loss is not a number; what {self.out} holds "
                f"is the last checkpoint. Lower the learning rate ({options.learning_rate:g})"
            )
        self.iteration += 1
        if self.iteration % each == 0 or self.iteration == self.iters:
            self._norm = clip(parameters.slopes, options.max_grad_norm)
            rate = self._schedule.at(self._optimizer.step)
            self._optimizer.update(parameters.values, parameters.slopes, rate)
            parameters.turn()
        return loss, count

    def loss_of(self, samples: Sequence[Sample], most: int) -> float:
        """The mean loss of the first batches' targets."""
        total, count = 0.0, 0
        for batch in batches_in_turn(samples, self.options.batch_size, most):
            for piece in pieces_of(batch):
                for value in self.network.losses(piece):
                    total += float(value)
                count += len(piece.targets)
        return total / count

    def _evaluate(self) -> None:
        if self.valid is None:
            return
        loss = self.loss_of(self.valid.samples, self.options.val_batches)
        self._note_evaluation(Evaluation(self.iteration, "valid", loss))
        if self.iteration == 0 or not self.options.patience:
            return
        if loss < self._best[0]:
            self._best, self._worse = (loss, self.iteration), 0
            assert self._best_values is not None
            self._best_values[:] = self.network.parameters.values
        else:
            self._worse += 1
            self._stopped = self._stopped or self._worse >= self.options.patience

    def _evaluate_test(self) -> None:
        if self.test is None or any(e.split == "test" for e in self._evaluations):
            return
        with self._chosen_ones():
            loss = self.loss_of(self.test.samples, -1)
        self._note_evaluation(Evaluation(self._chosen_iteration(), "test", loss))

    @contextmanager
    def _chosen_ones(self) -> Iterator[None]:
        """The parameters to write, in the place of the last ones."""
        parameters, chosen = self.network.parameters, self._chosen()
        if chosen is parameters.values:
            yield
            return
        last = parameters.values.copy()
        parameters.values[:] = chosen
        parameters.turn()
        yield
        parameters.values[:] = last
        parameters.turn()

    def _note_evaluation(self, found: Evaluation) -> None:
        self._evaluations.append(found)
        self._tell(found)

    def _report(self, loss: float, speed: float, left_s: float) -> None:
        rate = self._schedule.at(max(0, self._optimizer.step - 1))
        report = Report(
            self.iteration, self.iters, loss, rate, self._norm, speed, peak_memory_bytes(), left_s
        )
        self._reports.append(report)
        self._tell(report)

    def _tell(self, event: Event) -> None:
        if self._listener is not None and self._listener(event) is False:
            self._stopped = True

    def _forecast(self) -> Forecast:
        assert self.train is not None
        options, left = self.options, self.iters - self.iteration
        last = min(self.iters, self.iteration + LOOKED_AHEAD)
        ahead = [self._order.batch(i) for i in range(self.iteration, last)]
        looks: list[list[Sample]] = []
        if self.valid is not None:
            looks += batches_in_turn(self.valid.samples, options.batch_size, options.val_batches)
        evaluations = left // options.steps_per_eval + (1 if self.iteration == 0 else 0)
        evaluations += 1 if left % options.steps_per_eval else 0
        found = forecast(self.network, ahead, looks, iters=left, evaluations=evaluations)
        saves = self.iters // options.save_every - self.iteration // options.save_every
        saves += 1 if self.iters % options.save_every else 0
        written_s = seconds_to_write(self.out, WRITTEN_BYTES * found.parameters)
        return replace(found, seconds=found.seconds + saves * written_s)

    # ------------------------------------------------------------------ files

    def _check_target(self, *, resume: bool) -> None:
        state = self.out / STATE
        if resume and not state.exists():
            raise CheckpointError("there is no state of a run to go on from", file=state)
        if not resume and self.out.exists() and any(self.out.iterdir()):
            raise WriteError(
                f"{self.out} is not empty; go on with the run in it (--resume), or choose another "
                f"folder"
            )

    def _samples(self, data: Path, split: str) -> Samples | None:
        options, tokenizer = self.options, self.base.tokenizer
        return read_samples(
            data,
            split,
            tokenizer,
            limit=options.max_seq_length,
            truncate=options.truncate,
            mask_prompt=options.mask_prompt,
        )

    def _facts(self) -> dict[str, Any]:
        """What a run must share with the one whose state it goes on from."""
        assert self.train is not None
        digest = hashlib.sha256()
        for sample in self.train.samples:
            digest.update(len(sample.tokens).to_bytes(4, "little") + sample.tokens.tobytes())
            digest.update(sample.first.to_bytes(4, "little"))
        return {
            "options": self.options.lasting() | {"iters": self.iters},
            "files": self.base.files,
            "formats": sorted(self.base.weights.formats),
            "modules": self.network.parameters.modules,
            "samples": digest.hexdigest(),
            "teacher": None if self._teacher is None else self._teacher.files,
        }

    def _chosen(self) -> F32:
        """The parameters to write: the best ones, where patience looks for them."""
        if self._best_values is not None and self._best[1]:
            return self._best_values
        return self.network.parameters.values

    def _chosen_iteration(self) -> int:
        return self._best[1] or self.iteration

    def _write(self) -> None:
        """What is learned, as others load it."""
        parameters, base = self.network.parameters, self.base
        if base.full is not None:
            write_model(self.out, base.path, base.full, self._chosen())
        elif isinstance(parameters, LowRanks):
            write_adapter(self.out, parameters, self._chosen(), base.name)

    def _save(self) -> None:
        parameters = self.network.parameters
        self._write()
        tensors = {
            "values": parameters.values,
            "mean": self._optimizer.mean,
            "square": self._optimizer.square,
        }
        if self.iteration % self.options.grad_accumulation_steps and self.iteration < self.iters:
            tensors["slopes"] = parameters.slopes
        if self._best_values is not None:
            tensors["best"] = self._best_values
        told = {
            "iteration": self.iteration,
            "step": self._optimizer.step,
            "tokens": self._tokens,
            "best": list(self._best) if self._best[1] else None,
            "worse": self._worse,
            "stopped": self._stopped and self._worse >= max(1, self.options.patience),
            "reports": [asdict(report) for report in self._reports],
            "evaluations": [asdict(found) for found in self._evaluations],
        }
        write_state(self.out, tensors, self._facts() | {"state": told})
        self._tell(Saved(self.iteration, self.out))

    def _resume(self) -> None:
        parameters = self.network.parameters
        optimizer = self._optimizer
        into = {"values": parameters.values, "slopes": parameters.slopes}
        into |= {"mean": optimizer.mean, "square": optimizer.square}
        if self._best_values is not None:
            into["best"] = self._best_values
        facts = read_state(self.out, into)
        for name, wanted in self._facts().items():
            if facts.get(name) != wanted:
                other = _difference(name, facts.get(name), wanted)
                raise CheckpointError(
                    f"the state is of a run with {other}; go on with the same, or train into "
                    f"another folder",
                    file=self.out / STATE,
                )
        told = facts["state"]
        parameters.turn()
        optimizer.step, self.iteration = told["step"], told["iteration"]
        self._tokens, self._worse, self._stopped = told["tokens"], told["worse"], told["stopped"]
        self._reports = [Report(**report) for report in told["reports"]]
        self._evaluations = [Evaluation(**found) for found in told["evaluations"]]
        if told["best"] is not None:
            self._best = (told["best"][0], told["best"][1])
        self._write()

    def _result(self) -> Trained:
        return Trained(
            self.out,
            self.iteration,
            self._chosen_iteration(),
            self._reports,
            self._evaluations,
            time.monotonic() - self._began_s,
            self._tokens,
            peak_memory_bytes(),
        )


def _difference(name: str, found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in wanted:
            if found.get(key) != wanted[key]:
                return f"{key} = {found.get(key)!r}, not {wanted[key]!r}"
    return {
        "files": "another model",
        "formats": "weights of another format",
        "modules": "other modules",
        "samples": "other samples",
        "teacher": "another teacher",
    }.get(name, f"other {name}")
