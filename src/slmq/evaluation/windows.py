"""A text in windows, and the logits of their second halves, block by block.

The protocol of llama.cpp and others, so that numbers compare: the text is tokenized once, without
special tokens, and cut into consecutive windows of `ctx` tokens. Each window is a sequence of its
own; the tokens of its second half are scored, each given all that precede it in the window. A
tokenizer that begins texts with BOS has it in place of the first token of every window.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slmq.engine.engine import Engine
from slmq.errors import CheckpointError, DataError
from slmq.generation.model import Model

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    from slmq.tokenizer import Tokenizer

    F32 = npt.NDArray[np.float32]
    I64 = npt.NDArray[np.int64]

__all__ = [
    "cut",
    "engine_of",
    "leading_bos",
    "read_text",
    "require_finite",
    "scored_blocks",
    "token_ids",
]

MIN_CTX = 8


@contextmanager
def engine_of(model: Model | Engine) -> Iterator[Engine]:
    """The engine of a model, which is this thread's own within the block.

    Raises
    ------
    TypeError
        For anything else than a model or an engine.
    """
    if isinstance(model, Engine):
        yield model
    elif isinstance(model, Model):
        with model.exclusive() as engine:
            yield engine
    else:
        raise TypeError(
            f"expected a model from slmq.load, got {type(model).__name__}; load it first"
        )


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, every byte of it: line ends stay as they are.

    Raises
    ------
    DataError
        If the file cannot be read or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset "
            f"{error.start}; convert the file first"
        ) from None


def require_finite(engine: Engine, values: npt.ArrayLike) -> None:
    """Raises CheckpointError unless all values that come from an engine's logits are finite."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"the model {engine.name!r} produced NaN or infinite logits; its weights are damaged "
            f"or overflow in this format"
        )


def leading_bos(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer puts before every text, or None."""
    plain = tokenizer.encode("a", add_special=False)
    full = tokenizer.encode("a", add_special=True)
    added = len(full) > len(plain) and full[0] == tokenizer.bos_id
    return tokenizer.bos_id if added else None


def token_ids(tokenizer: Tokenizer, text: str | Sequence[int]) -> list[int]:
    """Ids of a text, without special tokens; special tokens written in it stay text.

    Token ids are taken as they are.
    """
    if isinstance(text, str):
        return tokenizer.encode(text, add_special=False, parse_special=False)
    return [operator.index(token) for token in text]


def cut(
    ids: list[int], ctx: int, chunks: int | None, *, n_ctx: int, bos: int | None
) -> list[list[int]]:
    """Windows of `ctx` tokens, at most `chunks` of them.

    Raises
    ------
    ValueError
        If `ctx` or `chunks` is out of range, or the text does not fill one window.
    """
    if not MIN_CTX <= ctx <= n_ctx:
        raise ValueError(f"ctx: expected {MIN_CTX} to {n_ctx} tokens, got {ctx}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks: expected at least 1, got {chunks}")
    count = len(ids) // ctx
    if count == 0:
        raise ValueError(
            f"the text has {len(ids)} tokens, too few for one window of {ctx}; use a longer text "
            f"or a smaller ctx"
        )
    windows = [ids[i * ctx : (i + 1) * ctx] for i in range(min(count, chunks or count))]
    if bos is not None:
        for window in windows:
            window[0] = bos
    return windows


def scored_blocks(engine: Engine, window: list[int]) -> Iterator[tuple[F32, I64]]:
    """Logits that predict the tokens after position len(window) // 2, and these tokens.

    Yields
    ------
    (float32[rows, n_vocab], int64[rows])
        At most 64 rows at a time. Nobody else may run the engine before the last block.
    """
    half, last = len(window) // 2, len(window) - 1
    targets = np.array(window[1:], np.int64)
    sequence = engine.sequence()
    at = half
    try:
        for start in range(0, last, engine.chunk):
            part = window[start : min(start + engine.chunk, last)]
            wanted = min(len(part), max(0, start + len(part) - half))
            for logits in engine.run([(sequence, part, wanted)]) or ():
                yield logits, targets[at : at + len(logits)]
                at += len(logits)
    finally:
        sequence.close()
