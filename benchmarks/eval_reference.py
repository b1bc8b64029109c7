"""`slmq eval` beside transformers: the same prompts, tokenized and scored by each on its own.

transformers reads an ordinary folder, which `slmq dequantize MODEL FOLDER --dtype f32` writes of
a quantized model, and computes in float32, one whole sequence at a time. Needs torch and
transformers. With `--activations exact` slmq rounds as little as it can: items that differ then
are near ties.

    python benchmarks/eval_reference.py MODEL FOLDER --task sst2 --file dev.tsv --limit 200

Prints both results and the items that differ; leaves with 1 if the accuracies are further apart
than one item in a hundred.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import slmq
from slmq.evaluation import Evaluation, Prompt, Sample, prepare
from slmq.evaluation.harness import summarize
from slmq.evaluation.likelihood import Likelihood

ALLOWED = 0.01  # between the accuracies


class Reference:
    """A model and a tokenizer of transformers."""

    def __init__(self, folder: str, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self._known: dict[tuple[int, ...], Any] = {}

    def likelihoods(self, prompt: Prompt) -> tuple[Likelihood, ...]:
        """Of every option, which is what the prompt with it has more than the prompt without."""
        self._known.clear()
        context = self.tokenizer(prompt.text).input_ids
        found = []
        for option in prompt.options:
            whole = self.tokenizer(prompt.text + option).input_ids
            if whole[: len(context)] != context:
                raise ValueError(f"{prompt.item.place}: {option!r} changes the tokens before it")
            found.append(self._likelihood(whole, len(context)))
        return tuple(found)

    def _likelihood(self, whole: list[int], begin: int) -> Likelihood:
        inputs = tuple(whole[:-1])
        if inputs not in self._known:
            with torch.no_grad():
                self._known[inputs] = self.model(torch.tensor([inputs])).logits[0]
        logits = self._known[inputs][begin - 1 :].double()
        targets = torch.tensor(whole[begin:])
        logs = torch.log_softmax(logits, dim=-1)[torch.arange(len(targets)), targets]
        greedy = bool((logits.argmax(dim=-1) == targets).all())
        return Likelihood(float(logs.sum()), len(targets), greedy)


def evaluate_reference(
    reference: Reference, task: str, prompts: Sequence[Prompt], tell: Callable[[str], None]
) -> Evaluation:
    """What `slmq.evaluate` returns, by transformers."""
    began_s = time.perf_counter()
    samples = []
    for prompt in prompts:
        item = prompt.item
        found = reference.likelihoods(prompt)
        samples.append(Sample(item.place, item.answer, item.options, found))
        tell(f"transformers: {len(samples)} of {len(prompts)}")
    seconds = time.perf_counter() - began_s
    return Evaluation(task, summarize(task, samples), 0, tuple(samples), seconds)


def report(ours: Evaluation, theirs: Evaluation) -> float:
    """Prints both; returns the difference of the accuracies."""
    print(f"{ours.task}, {len(ours.samples)} items, {ours.shots}-shot")
    for name, metric in ours.metrics.items():
        print(f"  {name:12} slmq {metric}   transformers {theirs.metrics[name]}")
    pairs = list(zip(ours.samples, theirs.samples, strict=True))
    differ = [one.place for one, other in pairs if one.right != other.right]
    gaps = [
        abs(x.log_probability - y.log_probability)
        for one, other in pairs
        for x, y in zip(one.likelihoods, other.likelihoods, strict=True)
    ]
    print(f"  items that differ: {len(differ)}{': ' if differ else ''}{'; '.join(differ)}")
    print(f"  log-probabilities differ by {sum(gaps) / len(gaps):.4f}, at most {max(gaps):.4f}")
    print(f"  seconds: slmq {ours.seconds:.1f}, transformers {theirs.seconds:.1f}")
    return abs(ours.metrics["acc"].value - theirs.metrics["acc"].value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both; 1 if they disagree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="for slmq: catalogue name, folder or .gguf file")
    parser.add_argument("folder", help="for transformers: the same model in floats")
    parser.add_argument("--task", required=True)
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--activations", default="mixed", help="of slmq: mixed or exact")
    given = parser.parse_args(arguments)

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text} ", end="", file=sys.stderr, flush=True)

    options = {name: getattr(given, name) for name in ("shots", "train", "seed", "limit")}
    with slmq.load(given.model, n_threads=given.threads, activations=given.activations) as model:
        ours = slmq.evaluate(
            model,
            given.task,
            given.file,
            **options,
            progress=lambda done, total, _: tell(f"slmq: {done} of {total}"),
        )
    reference = Reference(given.folder, given.threads)
    prompts = prepare(given.task, given.file, **options)
    theirs = evaluate_reference(reference, given.task, prompts, tell)
    return int(report(ours, theirs) > ALLOWED)


if __name__ == "__main__":
    raise SystemExit(main())
