"""What constraints cost: masks, decoding under a schema, tokens that are forced, labels.

python benchmarks/constraints.py [--model NAME] [--sst2 dev.tsv] [--texts FILE ...]

Masks are measured on random walks through grammars of several kinds, over the model's vocabulary
and over one of 151,936 tokens (that of the model, filled up with pieces of texts). Speeds are
medians of runs in turns, in one process, by engines of as many threads as there are cores and of
one; nothing is guessed ahead, which would make one text faster than another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import slmq
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.constraints import Grammar, Vocabulary, any_json, lark_grammar, regex_grammar
from slmq.generation.constraints import schema_grammar as of_schema
from slmq.generation.scheduler import Scheduler
from slmq.hub import resolve

LARGE = 151_936  # as Qwen2.5
WALKS, LONGEST = 12, 120
RUNS = 9
TOKENS = 192
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "profession": {"type": "string", "maxLength": 40},
        "city": {"type": "string", "maxLength": 40},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "profession", "city", "married"],
    "additionalProperties": False,
}
PARAGRAPH = (
    "Anna Berg is a 34-year-old carpenter. She moved to Oslo ten years ago, where she lives with "
    "her husband Nils and their two dogs."
)
ORDER: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "article": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            "kind": {"enum": ["book", "record", "film", "game"]},
            "date": {"type": "string", "format": "date"},
            "price": {"type": "number", "minimum": 0, "maximum": 1000},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["article", "kind", "date", "price", "notes"],
        "additionalProperties": False,
    },
}
CALL = 'start: /[^<]*/ "<tool>" %json {"type": "object"} "</tool>"'


class Filled:
    """A tokenizer with more tokens than it has: pieces of texts."""

    def __init__(self, tokenizer: Any, texts: list[str], n_vocab: int) -> None:
        self._inner = tokenizer
        self.eos_ids, self.special_ids = tokenizer.eos_ids, tokenizer.special_ids
        self.n_vocab = n_vocab
        self._pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
        known = set(self._pieces)
        for piece in _pieces(texts):
            if len(self._pieces) == n_vocab:
                break
            if piece not in known:
                known.add(piece)
                self._pieces.append(piece)
        self.n_vocab = len(self._pieces)

    def token_bytes(self, token: int) -> bytes:
        """As `Tokenizer.token_bytes`."""
        piece: bytes = self._pieces[token]
        return piece

    def encode(self, text: str, **options: Any) -> list[int]:
        """As `Tokenizer.encode`."""
        found: list[int] = self._inner.encode(text, **options)
        return found


def _pieces(texts: list[str]) -> Iterator[bytes]:
    """Words, their beginnings, and pairs of them."""
    for text in texts:
        words = text.split()
        for word, following in itertools.pairwise(words):
            yield f" {word}".encode()
            for end in range(3, len(word)):
                yield word[:end].encode()
            yield f" {word} {following}".encode()


def grammars() -> dict[str, Grammar]:
    """Of several kinds."""
    return {
        "person": of_schema(PERSON),
        "orders": of_schema(ORDER),
        "any JSON": any_json(),
        "regex": regex_grammar(r"(([A-Z][a-z]+ ){1,4}[0-9]{1,3}\n){5,50}"),
        "text, then a call": lark_grammar(CALL),
    }


def masks(tokenizer: Any) -> dict[str, Any]:
    """Microseconds of masks and of going on, on random walks; and of compiling."""
    rng = random.Random(1)
    began_s = time.perf_counter()
    vocabulary = Vocabulary(tokenizer)
    vocabulary.compile(regex_grammar("a"))
    found: dict[str, Any] = {"vocabulary_ms": 1e3 * (time.perf_counter() - began_s)}
    every: list[float] = []
    steps: list[float] = []
    for name, grammar in grammars().items():
        began_s = time.perf_counter()
        compiled = vocabulary.compile(grammar)
        found[f"compile_ms {name}"] = 1e3 * (time.perf_counter() - began_s)
        times: list[float] = []
        for _ in range(WALKS):
            matcher = compiled.matcher()
            for _ in range(LONGEST):
                if matcher.complete:
                    break
                if matcher.forced:
                    token = matcher.forced[0]
                else:
                    began_s = time.perf_counter()
                    words = matcher.allowed()
                    times.append(1e6 * (time.perf_counter() - began_s))
                    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
                    token = int(rng.choice(np.flatnonzero(bits[: tokenizer.n_vocab]).tolist()))
                if token in tokenizer.eos_ids:
                    break
                began_s = time.perf_counter()
                matcher.accept(token)
                steps.append(1e6 * (time.perf_counter() - began_s))
        found[f"mask_us {name}"] = _spread(times)
        every += times
    return found | {"mask_us all": _spread(every), "accept_us": _spread(steps)}


def _spread(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"n": len(values), "p50": float(p50), "p99": float(p99), "worst": max(values)}


def speeds(name: str, threads: int | None) -> dict[str, Any]:
    """Tokens per second: free, under a schema with nothing forced, and of JSON."""
    engine = open_engine(resolve(name).path, LoadOptions(n_ctx=2048, n_threads=threads))
    with slmq.Model(engine, Scheduler(engine, speculate=False)) as model:
        return {"threads": engine.info.threads, **_speeds(model)}


def _speeds(model: slmq.Model) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"{PARAGRAPH} Tell me about her."}]
    kinds: dict[str, dict[str, Any]] = {
        "free": {"ignore_eos": True},
        "schema": {"schema": {"type": "string", "minLength": 5000}},
        "schema, drawn": {"schema": {"type": "string", "minLength": 5000}, "temperature": 1.0},
        "free, drawn": {"ignore_eos": True, "temperature": 1.0},
        "json": {"schema": {"type": "array", "minItems": 50, "items": PERSON}},
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    forced = 0
    for run in range(RUNS + 1):
        for name, params in kinds.items():
            result = model.generate(prompt, max_tokens=TOKENS, seed=run, **params)
            assert result.generated_tokens == TOKENS
            if run:
                found[name].append(result.generation_tps)
            if name == "json":
                forced = result.forced_tokens
    medians = {name: statistics.median(values) for name, values in found.items()}

    def ratio(name: str, free: str) -> float:
        return statistics.median(a / b for a, b in zip(found[name], found[free], strict=True))

    return {
        "tokens_per_s": medians,
        "schema / free": ratio("schema", "free"),
        "schema / free, drawn": ratio("schema, drawn", "free, drawn"),
        "json / free": ratio("json", "free"),
        "forced share of json": forced / TOKENS,
    }


def labels(model: slmq.Model, path: Path) -> dict[str, Any]:
    """Accuracy and sentences a second, beside prompts one after the other."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    texts, right = [row[0] for row in rows], [("negative", "positive")[int(row[1])] for row in rows]
    known, asked = ["negative", "positive"], "Is this review positive or negative?"
    began_s = time.perf_counter()
    found = model.label(texts, known, instruction=asked)
    together_s = time.perf_counter() - began_s
    calibrated = model.label(texts, known, instruction=asked, calibrate=True)
    some = texts[:100]
    began_s = time.perf_counter()
    for text in some:
        prompt = [{"role": "user", "content": f"{text}\n\n{asked}"}]
        model.generate(prompt, choices=known)
    single_s = time.perf_counter() - began_s
    alone = [model.label(text, known, instruction=asked) for text in some]
    assert alone == found[:100]
    n = len(texts)
    return {
        "sentences": n,
        "accuracy": sum(a.label == b for a, b in zip(found, right, strict=True)) / n,
        "accuracy, calibrated": sum(a.label == b for a, b in zip(calibrated, right, strict=True))
        / n,
        "sentences_per_s": n / together_s,
        "single_prompts_per_s": len(some) / single_s,
        "together / single": n / together_s / (len(some) / single_s),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sst2", type=Path)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    with slmq.load(given.model, n_ctx=2048) as model:
        report: dict[str, Any] = {f"masks, {model.n_vocab} tokens": masks(model.tokenizer)}
        if given.texts:
            large = Filled(model.tokenizer, [p.read_text("utf-8") for p in given.texts], LARGE)
            report[f"masks, {large.n_vocab} tokens"] = masks(large)
        example = model.generate(
            [{"role": "user", "content": f"{PARAGRAPH}\n\nGive her data as JSON."}], schema=PERSON
        )
        report["five fields"] = example.parsed
        if given.sst2 is not None:
            report["labels"] = labels(model, given.sst2)
    report["speeds"] = [speeds(given.model, threads) for threads in (None, 1)]
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
