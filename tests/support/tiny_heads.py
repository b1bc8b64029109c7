"""Heads of a router for the tiny encoder of the tests, trained on made-up answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from slmq.embedding.encoder import Encoder
from slmq.embedding.routing.heads import PROBE, STRONG, VERSION, WEAK, RouterHeads
from slmq.embedding.routing.language import BUCKETS
from slmq.embedding.routing.training import columns_of, fitted_head

EASY = [f"the {a} {b}" for a in ("cat", "dog", "man") for b in ("eats", "lives", "is playing")] * 3
HARD = [f"prove why {a} + {b} = 12?" for a in ("x", "y", "z") for b in "123456789"]


def tiny_heads(encoder: Encoder) -> RouterHeads:
    """The weak model is right about what is easy, the strong one about nearly all."""
    x = columns_of(encoder, EASY + HARD)
    easy = np.array([1] * len(EASY) + [0] * len(HARD), np.int64)
    nearly = np.ones_like(easy)
    nearly[::9] = 0
    weak = np.where(np.arange(len(easy)) % 8 == 0, 1 - easy, easy)
    arrays: dict[str, Any] = {"probe": encoder.embed(PROBE, normalize=True)}
    logits = []
    for name, y in (("task", easy), ("domain", easy), (WEAK, weak), (STRONG, nearly)):
        weights, bias, _ = fitted_head(x, y, 2)
        if name in (WEAK, STRONG):
            weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
            logits.append(x @ weights[0] + bias[0])
        arrays[f"{name}/weights"], arrays[f"{name}/bias"] = weights, bias
    arrays["usual"] = np.stack(logits, axis=1).astype(np.float32)
    letters = np.zeros((BUCKETS, 2), np.int8)
    letters[:, 0] = 1
    arrays["languages/weights"] = letters
    facts = {
        "version": VERSION,
        "encoder": "tiny",
        "heads": ["task", "domain", WEAK, STRONG],
        "task": ["hard", "easy"],
        "domain": ["sums", "animals"],
        "languages": ["en", "ja"],
    }
    return RouterHeads(facts, arrays)
