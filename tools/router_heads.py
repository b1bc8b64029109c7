#!/usr/bin/env python3
"""Train the heads that routers have from the start, and write them into the package.

    python tools/router_heads.py DATA [OUT]

DATA holds routellm/mmlu_train_subjects.jsonl (prompts of MMLU with who was right, from
lm-sys/RouteLLM, Apache-2.0) and languages/sentences.tsv (sentences of 75 languages, from
pemistahl/lingua-py, Apache-2.0). Tasks are trained on router_tasks.toml beside this script.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import slmq
from slmq.embedding.routing.heads import PROBE, STRONG, VERSION, WEAK, RouterHeads
from slmq.embedding.routing.language import BUCKETS, LanguageHead, ngram_counts
from slmq.embedding.routing.training import columns_of, fitted_head

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
ENCODER = "all-minilm-l6-v2"
USUAL = 512  # questions by which the quality of other models is placed
DOMAINS = {
    "biology": ("anatomy", "college_biology", "medical_genetics", "virology"),
    "business": ("business_ethics", "management", "marketing", "professional_accounting",
                 "public_relations"),
    "chemistry": ("college_chemistry",),
    "computing": ("college_computer_science", "computer_security", "high_school_computer_science"),
    "engineering": ("electrical_engineering",),
    "health": ("clinical_knowledge", "college_medicine", "nutrition", "professional_medicine",
               "human_sexuality"),
    "history": ("high_school_european_history", "prehistory"),
    "law": ("international_law", "jurisprudence"),
    "mathematics": ("abstract_algebra", "elementary_mathematics", "high_school_statistics"),
    "philosophy": ("logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
                   "world_religions"),
    "physics": ("college_physics", "conceptual_physics", "high_school_physics"),
    "politics": ("high_school_government_and_politics", "security_studies"),
    "psychology": ("high_school_psychology", "sociology"),
    "other": ("global_facts", "miscellaneous"),
}  # fmt: skip


def main() -> None:
    """Train, report, write."""
    data = Path(sys.argv[1])
    out = (
        Path(sys.argv[2])
        if len(sys.argv) > 2
        else HERE.parent / "src/slmq/embedding/routing/heads.npz"
    )
    # No splitlines: prompts hold characters at which that cuts, too.
    lines = (data / "routellm/mmlu_train_subjects.jsonl").read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {
        "version": VERSION,
        "encoder": ENCODER,
        "heads": ["task", "domain", WEAK, STRONG],
        "sources": {
            "task": "tools/router_tasks.toml of slmq",
            "domain": "MMLU questions of 40 subjects, from lm-sys/RouteLLM, Apache-2.0",
            "usual": "answers of Mixtral 8x7B (weak) and GPT-4 (strong) to them, the same source",
            "languages": "sentences from pemistahl/lingua-py, Apache-2.0",
        },
        "measured": {},
    }
    with slmq.load_encoder(ENCODER) as encoder:
        arrays["probe"] = encoder.embed(PROBE, normalize=True)
        tasks = tomllib.loads((HERE / "router_tasks.toml").read_text("utf-8"))
        texts = [text for listed in tasks.values() for text in listed]
        labels = np.repeat(np.arange(len(tasks)), [len(listed) for listed in tasks.values()])
        facts["task"] = list(tasks)
        keep(arrays, facts, "task", fitted_head(columns_of(encoder, texts), labels, len(tasks)))
        x = columns_of(encoder, [row["prompt"] for row in rows])
    domains = {name: i for i, listed in enumerate(DOMAINS.values()) for name in listed}
    facts["domain"] = list(DOMAINS)
    y = np.array([domains[row["subject"]] for row in rows], np.int64)
    keep(arrays, facts, "domain", fitted_head(x, y, len(DOMAINS)))
    usual = []
    for name, key in ((WEAK, "weak_right"), (STRONG, "strong_right")):
        y = np.array([row[key] for row in rows], np.int64)
        weights, bias, found = fitted_head(x, y, 2)
        keep(arrays, facts, name, (weights[1:] - weights[:1], bias[1:] - bias[:1], found))
        likely = found.probabilities[:, 1]
        usual.append(np.log(likely / (1 - likely)))
    # Both were validated on the same rows, in one shuffle.
    arrays["usual"] = np.stack(usual, axis=1)[:USUAL].astype(np.float32)
    facts["languages"], arrays["languages/weights"] = languages(data, facts)
    RouterHeads(facts, arrays).save(out)
    print(json.dumps(facts["measured"], indent=2))
    print(f"{out}: {out.stat().st_size:,} bytes")


def keep(arrays: dict[str, Any], facts: dict[str, Any], name: str, head: Any) -> None:
    """Put a head among the others, with what cross-validation said of it."""
    arrays[f"{name}/weights"], arrays[f"{name}/bias"], found = head
    facts["measured"][name] = {
        "accuracy": round(found.accuracy, 4),
        "log_loss": round(found.log_loss, 4),
        "calibration_error": round(found.calibration_error, 4),
    }


def languages(data: Path, facts: dict[str, Any]) -> tuple[list[str], Any]:
    """Weights from counts: naive Bayes, measured on every fourth sentence and made of all."""
    pairs = [
        line.split("\t", 1)
        for line in (data / "languages/sentences.tsv").read_text("utf-8").splitlines()
    ]
    names = sorted({name for name, _ in pairs})
    counts = np.array([ngram_counts(text) for _, text in pairs])
    y = np.array([names.index(name) for name, _ in pairs])
    out = np.arange(len(pairs)) % 4 == 0
    head = LanguageHead(names, bayes(counts[~out], y[~out], len(names)))
    right = [
        head.language_of(text)[0] == name
        for held, (name, text) in zip(out, pairs, strict=True)
        if held
    ]
    facts["measured"]["languages"] = {"accuracy": round(float(np.mean(right)), 4)}
    return names, bayes(counts, y, len(names))


def bayes(counts: Any, y: Any, classes: int) -> Any:
    """int8[buckets, classes]: logarithms of shares, less their mean over the classes."""
    sums = np.array([np.minimum(counts[y == c], 3).sum(axis=0) for c in range(classes)], float)
    shares = (sums + 0.15) / (sums.sum(axis=1, keepdims=True) + 0.15 * BUCKETS)
    logs = np.log(shares).T
    logs -= logs.mean(axis=1, keepdims=True)
    return np.clip(np.round(logs * LanguageHead.UNIT), -127, 127).astype(np.int8)


if __name__ == "__main__":
    main()
