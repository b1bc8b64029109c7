"""A name for what a model computes: where it is the same, so is every answer.

It is made from what the model does with some tokens, not from its files: logits depend on all
weights, on the formats of weights, activations and cache, and on the arithmetic. They are the same
bits on every machine, so the name is.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.generation.model import Model
    from slmq.tokenizer import Tokenizer

__all__ = ["fingerprint", "with_adapter"]

TOKENS = 16  # that are looked at, spread over the vocabulary
SPREAD = 2654435761  # Knuth's: consecutive multiples lie far apart
# Whatever splits one of these in another way is another tokenizer.
TEXTS = (
    "The quick brown fox, 12345.67 times; it's 8 o'clock!\n\n\tEND  of  line   ",
    "def f(x):\n    return x ** 2  # naïve café déjà-vu ÀÉÎ ß",
    "日本語の文章、東京都。한국어 문장 中文句子 русский текст नमस्ते العربية 🙂👩‍👩‍👧",
    "<|im_start|>user <s> [INST] </s> <think>",
)


def fingerprint(model: Model) -> str:
    """The name of a model as it is loaded, such as ``fp_0123456789abcdef0123``.

    Parameters
    ----------
    model : Model
        It answers nobody else meanwhile.
    """
    digest = hashlib.sha256()
    ids = [i * SPREAD % model.n_vocab for i in range(1, 1 + min(TOKENS, model.n_ctx))]
    digest.update(model.logits(ids, rows="last").astype("<f4").tobytes())
    _add_tokenizer(digest, model.tokenizer)
    return f"fp_{digest.hexdigest()[:20]}"


def with_adapter(named: str, digest: str) -> str:
    """The name of a model with an adapter.

    Parameters
    ----------
    named : str
        Of the model without it.
    digest : str
        Of all that the adapter adds.
    """
    return f"fp_{hashlib.sha256(f'{named} {digest}'.encode()).hexdigest()[:20]}"


def _add_tokenizer(digest: hashlib._Hash, tokenizer: Tokenizer) -> None:
    for token in range(tokenizer.n_vocab):
        spelled = tokenizer.token_bytes(token)
        digest.update(len(spelled).to_bytes(4, "little") + spelled)
    parts = tokenizer.parts
    found = [tokenizer.encode(text, add_special=True) for text in TEXTS]
    digest.update(repr((found, sorted(parts.eos_ids), sorted(tokenizer.special_ids))).encode())
    names = (sorted(parts.templates.items()), sorted(parts.special_tokens.items()))
    digest.update(repr(names).encode())
