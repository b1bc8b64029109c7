"""`slmq.evaluate`: how often a model finds right answers likeliest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import ContextOverflowError, DataError
from slmq.evaluation.likelihood import Likelihood, Request, score, shared_prefix
from slmq.evaluation.metrics import Metric, exp_of_mean, mean
from slmq.evaluation.tasks import Prompt, prepare
from slmq.evaluation.windows import engine_of, leading_bos

if TYPE_CHECKING:
    import os

    from slmq.engine.engine import Engine
    from slmq.generation.model import Model
    from slmq.tokenizer import Tokenizer

__all__ = ["Evaluation", "Sample", "evaluate", "request_of", "summarize"]


@dataclass(frozen=True)
class Sample:
    """One item and what the model made of it.

    Attributes
    ----------
    place : str
        File and line.
    answer : int
        The right option, from 0.
    options : tuple of str
    likelihoods : tuple of Likelihood
        Of every option.
    """

    place: str
    answer: int
    options: tuple[str, ...]
    likelihoods: tuple[Likelihood, ...]

    @property
    def right(self) -> bool:
        """Whether the likeliest option is the right one; of a single option, whether greedy
        decoding says it."""
        if len(self.options) == 1:
            return self.likelihoods[0].greedy
        return self.best() == self.answer

    @property
    def predicted(self) -> str:
        """The likeliest option."""
        return self.options[self.best()]

    def best(self, lengths: Sequence[int] | None = None) -> int:
        """The likeliest option, its logarithm divided by its length; the first of equals."""
        lengths = lengths or [1] * len(self.options)
        each = zip(self.likelihoods, lengths, strict=True)
        values = [found.log_probability / length for found, length in each]
        return values.index(max(values))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "place": self.place,
            "answer": self.answer,
            "right": self.right,
            "options": list(self.options),
            "log_probabilities": [found.log_probability for found in self.likelihoods],
            "tokens": [found.tokens for found in self.likelihoods],
            "greedy": [found.greedy for found in self.likelihoods],
        }


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    task : str
    metrics : dict of str to Metric
        "acc" for every task. lambada: "perplexity" of the last word. choices: "acc_norm" and
        "acc_token", with log-probabilities per character and per token of the option.
    shots : int
    samples : tuple of Sample
        Every item, in the order of the file.
    seconds : float
        Of scoring; neither loading nor reading files.
    """

    task: str
    metrics: dict[str, Metric]
    shots: int
    samples: tuple[Sample, ...]
    seconds: float

    def __str__(self) -> str:
        found = [f"{name} {metric}" for name, metric in self.metrics.items()]
        return f"{self.task}: {', '.join(found)} ({len(self.samples):,} items, {self.shots}-shot)"

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, without the samples; the error of `acc` is called `acc_stderr`."""
        flat: dict[str, Any] = {"task": self.task, "items": len(self.samples), "shots": self.shots}
        for name, metric in self.metrics.items():
            flat |= {name: metric.value, f"{name}_stderr": metric.standard_error}
        return flat | {"seconds": self.seconds}


def evaluate(
    model: Model | Engine,
    task: str,
    file: str | os.PathLike[str],
    *,
    shots: int = 0,
    train: str | os.PathLike[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    template: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Evaluation:
    """Ask a model the questions of a file.

    Parameters
    ----------
    model : Model or Engine
    task : {"lambada", "sst2", "choices"}
        The last word of a text, the sentiment of a sentence, or multiple choice.
    file : str or path
        JSONL, JSON, CSV or TSV. lambada: columns `context` and `continuation`, or `text`; sst2:
        `sentence` and `label` (0 negative, 1 positive), in a TSV or CSV file also without header;
        choices: `question`, `options` (a list; or columns `A`, `B`, ...) and `answer` (letter,
        number from 0, or text).
    shots : int
        Examples with answers before each question, the same for all.
    train : str or path, optional
        File to draw the examples from. Without it they are the first rows of `file`, which are
        then not asked.
    seed : int
        Of drawing from `train`.
    limit : int, optional
        Most questions; None asks all.
    template : str, optional
        How an item becomes text: ``{context}``, ``{sentence}`` or ``{question}`` and, at the end,
        ``{answer}``. None takes the usual one: see docs/quality.md.
    progress : callable, optional
        Called with (items done, items in all, accuracy so far).

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        If a file cannot be read, lacks a column or has too few rows.
    CheckpointError
        If the model produces NaN.
    ContextOverflowError
        If an item does not fit into the context; nothing is truncated.
    ValueError, TypeError
        If another argument is invalid.
    """
    prompts = prepare(
        task, file, shots=shots, train=train, seed=seed, limit=limit, template=template
    )
    with engine_of(model) as engine:
        requests = _requests(engine, prompts)
        began_s = time.perf_counter()
        samples: list[Sample] = []
        right = 0
        for prompt, found in zip(prompts, score(engine, requests), strict=True):
            item = prompt.item
            samples.append(Sample(item.place, item.answer, item.options, tuple(found)))
            right += samples[-1].right
            if progress is not None:
                progress(len(samples), len(prompts), right / len(samples))
    seconds = time.perf_counter() - began_s
    return Evaluation(task, summarize(task, samples), shots, tuple(samples), seconds)


def summarize(task: str, samples: Sequence[Sample]) -> dict[str, Metric]:
    """The metrics of a task: see `Evaluation`."""
    metrics = {"acc": mean([sample.right for sample in samples])}
    if task == "lambada":
        losses = [-sample.likelihoods[0].log_probability for sample in samples]
        metrics["perplexity"] = exp_of_mean(losses)
    if task == "choices":
        by_character = [s.best([len(option) for option in s.options]) for s in samples]
        by_token = [s.best([found.tokens for found in s.likelihoods]) for s in samples]
        for name, best in (("acc_norm", by_character), ("acc_token", by_token)):
            pairs = zip(best, samples, strict=True)
            metrics[name] = mean([i == sample.answer for i, sample in pairs])
    return metrics


def request_of(tokenizer: Tokenizer, prompt: Prompt, bos: int | None) -> Request:
    """Token ids of a prompt and its options.

    An option is tokenized together with the prompt, as it would be read. Should its first
    characters change the last tokens of the prompt, these count as part of every option.

    Raises
    ------
    DataError
        If an option adds no token, or nothing precedes the options and the model has no token that
        begins a text.
    """
    first = [] if bos is None else [bos]

    def encode(text: str) -> list[int]:
        return first + tokenizer.encode(text, add_special=False, parse_special=False)

    whole = [encode(prompt.text + option) for option in prompt.options]
    context = shared_prefix([encode(prompt.text), *whole])
    options = [ids[len(context) :] for ids in whole]
    place = prompt.item.place
    for option, ids in zip(prompt.options, options, strict=True):
        if not ids:
            raise DataError(f"{place}: the tokenizer has no token for the option {option!r:.60}")
    if not context:
        begins = sorted(tokenizer.eos_ids) if tokenizer.bos_id is None else [tokenizer.bos_id]
        if not begins:
            raise DataError(f"{place}: expected text before the answer, found none")
        context = begins[:1]
    return Request(context, options)


def _requests(engine: Engine, prompts: Sequence[Prompt]) -> list[Request]:
    bos = leading_bos(engine.tokenizer)
    requests = [request_of(engine.tokenizer, prompt, bos) for prompt in prompts]
    for request, prompt in zip(requests, prompts, strict=True):
        # The last token of an answer is only looked up.
        length = len(request.context) + max(map(len, request.options)) - 1
        if length > engine.n_ctx:
            raise ContextOverflowError(
                f"{prompt.item.place}: the question with its examples has {length} tokens, and the "
                f"context holds {engine.n_ctx}; ask for fewer shots, shorten it, or load the model "
                f"with a larger n_ctx"
            )
    return requests
