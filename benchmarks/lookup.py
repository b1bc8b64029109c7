"""Does looking back pay? Answers with and without guesses from their own text, in turn.

    python benchmarks/lookup.py MODEL TEXT [--threads N] [--texts 6] [--rounds 3]
        [--kinds copy extract summary story]

Copies, summaries and extracts are asked for of the paragraphs of TEXT, and stories of nothing. Two
models load the same file, one of which never guesses; both must say the same. Prints, for each
kind, tokens per second, their ratio (the median over prompts of the median over rounds, and the
smallest of a prompt), and how many guesses were right; and the ratio once more for the summaries
and extracts that copy, half of whose runs of four words stand in the prompt.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.model import Model
from slmq.generation.pages import limit_caches
from slmq.generation.results import GenerationResult
from slmq.generation.scheduler import Scheduler
from slmq.hub import resolve

ASKED = {
    "copy": "Repeat the following text word for word.\n\n{}",
    "extract": "List the sentences of the following text that name a person or a place.\n\n{}",
    "summary": "Summarize the following text.\n\n{}",
    "story": "Write a story about {}.",
}
HEROES = ("a lighthouse", "two brothers", "a lost key", "the first snow", "an old train", "a fox")
LENGTH = (400, 1200)  # characters of a paragraph that is taken
ANSWER = 160  # tokens
RUN = 4  # words that an answer copies, or not
HEADER = "kind      tokens/s  without    ratio  smallest   guesses right"


def opened(path: Path, threads: int, speculate: bool) -> Model:
    """A model that guesses, or not."""
    engine = open_engine(path, LoadOptions(n_ctx=1024, n_threads=threads))
    limit_caches(engine, None)
    return Model(engine, Scheduler(engine, speculate=speculate))


def compare(
    models: Sequence[Model], prompt: str, rounds: int
) -> tuple[list[GenerationResult], float]:
    """The last answers of both, and the median ratio of their speeds."""
    messages = [{"role": "user", "content": prompt}]
    ratios, results = [], list[GenerationResult]()
    for i in range(rounds + 1):
        results = [model.generate(messages, max_tokens=ANSWER) for model in models]
        if results[0].tokens != results[1].tokens:
            raise RuntimeError("guesses have changed an answer")
        if i and results[1].generation_tps:
            ratios.append(results[0].generation_tps / results[1].generation_tps)
    return results, statistics.median(ratios) if ratios else 1.0


def paragraphs(path: Path, count: int) -> list[str]:
    """The first paragraphs of a text that are neither short nor long."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if LENGTH[0] <= len(line) <= LENGTH[1]][:count]


def copies(prompt: str, answer: str) -> bool:
    """Whether half of the answer's runs of words stand in the prompt."""
    words, whole = (re.findall(r"\w+", text) for text in (answer, prompt))
    runs = [" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    return 2 * sum(run in " ".join(whole) for run in runs) >= max(1, len(runs))


def main() -> None:
    """Prints a line for each kind of answer, and one for those that copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="catalogue name, folder or .gguf file")
    parser.add_argument("text", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=ASKED, default=list(ASKED))
    options = parser.parse_args()
    path = resolve(options.model).path
    models = [opened(path, options.threads, speculate) for speculate in (True, False)]
    print(HEADER)
    copying = list[float]()
    for kind in options.kinds:
        asked = ASKED[kind]
        about = paragraphs(options.text, options.texts) if kind != "story" else HEROES
        prompts = [asked.format(text) for text in about]
        found = [compare(models, prompt, options.rounds) for prompt in prompts]
        with_s, without_s = (
            statistics.median(results[i].generation_tps for results, _ in found) for i in (0, 1)
        )
        ratios = [ratio for _, ratio in found]
        given = sum(results[0].drafted_tokens for results, _ in found)
        right = sum(results[0].accepted_tokens for results, _ in found)
        print(
            f"{kind:8}{with_s:10.1f}{without_s:9.1f}{statistics.median(ratios):9.2f}"
            f"{min(ratios):10.2f}   {right} of {given}",
            flush=True,
        )
        if kind in ("extract", "summary"):
            copying += [
                ratio
                for prompt, (results, ratio) in zip(prompts, found, strict=True)
                if copies(prompt, results[0].text)
            ]
    if copying:
        ratio, least = statistics.median(copying), min(copying)
        found_copying = f"{len(copying)} summaries and extracts copy"
        print(f"{found_copying}: ratio {ratio:.2f}, smallest {least:.2f}")
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
