"""SentencePiece BPE from pieces and their scores.

SentencePiece merges, again and again, the neighbours whose joined piece has the best score, the
leftmost of equals. The `tokenizers` library merges by a list of pairs, best first. The two do the
same when every piece that merging can make has a score of its own and every character in such a
piece is a piece: then a list of all ways to split every piece, ordered by score, says it all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import tokenizers
from tokenizers import models, normalizers

from slmq.errors import TokenizerError
from slmq.tokenizer.pieces import SPACE_MARK

__all__ = ["build_sentencepiece"]

MAX_PIECE = 1024  # characters; real pieces have 16 to 64. Splitting is quadratic in it.


def build_sentencepiece(
    ids: Mapping[str, int],
    scores: Mapping[str, float],
    *,
    unknown: str | None,
    space_prefix: bool,
) -> tokenizers.Tokenizer:
    """Build the tokenizer.

    Parameters
    ----------
    ids : Mapping
        Id by token, bytes (``<0x0A>``) and control tokens included.
    scores : Mapping
        Score of each token that is a piece of text.
    unknown : str or None
        The token for characters that are neither pieces nor have bytes.
    space_prefix : bool
        Whether a text, and what follows a control token, gets a space before it.

    Raises
    ------
    TokenizerError
        The scores do not order the pieces, so that no list of merges gives the same tokens.
    """
    merges = merges_by_score(ids, scores)
    backend = tokenizers.Tokenizer(
        models.BPE(
            dict(ids),
            merges,
            unk_token=unknown if unknown in ids else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE_MARK)]
    if space_prefix:
        steps.insert(0, normalizers.Prepend(SPACE_MARK))
    backend.normalizer = normalizers.Sequence(steps)
    return backend


def merges_by_score(ids: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that joins into a piece, the best joined score first."""
    best_of: dict[float, str] = {}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in scores.items():
        if len(piece) > MAX_PIECE:
            raise TokenizerError(
                f"a piece of {len(piece)} characters, expected at most {MAX_PIECE}: {piece!r:.80}"
            )
        if not math.isfinite(score):
            raise TokenizerError(f"the score of {piece!r:.80} is {score}, expected a number")
        cuts = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ]
        if not cuts:
            continue
        twin = best_of.setdefault(score, piece)
        if twin != piece:
            raise TokenizerError(
                f"the pieces {twin!r:.80} and {piece!r:.80} have the same score {score}; slmq "
                f"reads only vocabularies whose scores order their pieces"
            )
        ranked += [(-score, ids[left], ids[right], left, right) for left, right in cuts]
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
