"""A name for what an encoder computes: where it is the same, so are the vectors.

As for models that write, it is made from what the encoder does with some texts, not from its files:
vectors depend on all weights, their format, pooling, prompts and the tokenizer, and have the same
bits on every machine.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder

__all__ = ["encoder_identity"]

TEXTS = (
    "The quick brown fox, 12345.67 times; it's 8 o'clock!",
    "def f(x): return x ** 2  # naïve café déjà-vu ÀÉÎ ß",
    "日本語の文章、東京都。한국어 문장 русский текст नमस्ते العربية",
)


def encoder_identity(encoder: Encoder) -> str:
    """The name of an encoder as it is loaded, such as ``en_0123456789abcdef0123``."""
    digest = hashlib.sha256()
    vectors = encoder.embed(TEXTS, prompt="", normalize=True, chunk=True)
    digest.update(vectors.astype("<f4").tobytes())
    digest.update(repr(sorted(encoder.prompts.items())).encode())
    return f"en_{digest.hexdigest()[:20]}"
