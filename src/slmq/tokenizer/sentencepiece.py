"""SentencePiece BPE from pieces and their scores.

SentencePiece merges, again and again, the neighbours whose joined piece has the best score, the
leftmost of equals. The `tokenizers` library merges by a list of pairs, best first. The two do the
same when every piece that merging can make has a score of its own: then a list of all ways to
split every piece, ordered by score, says it all. Llama's runs of spaces share one score; they have
an order that does the same too.
"""

from __future__ import annotations

import math
from collections import defaultdict
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
    groups: defaultdict[float, list[str]] = defaultdict(list)
    cuts = {piece: splits(piece, score, scores) for piece, score in scores.items()}
    for piece, found in cuts.items():
        if found:
            groups[scores[piece]].append(piece)
    merges: list[tuple[str, str]] = []
    for score in sorted(groups, reverse=True):
        group = groups[score]
        if len(group) == 1:
            merges += sorted(cuts[group[0]], key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        elif all_runs(group):
            # Leftmost first means that a run grows from its left end, one character at a time.
            runs = sorted(group, key=len, reverse=True)
            merges += [(run[:-1], run[-1]) for run in runs]
        else:
            raise TokenizerError(
                f"the pieces {group[0]!r:.80} and {group[1]!r:.80} have the same score {score}; "
                f"slmq reads only vocabularies whose scores order their pieces"
            )
    return merges


def splits(piece: str, score: float, scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the ways to cut a piece into two pieces."""
    if len(piece) > MAX_PIECE:
        raise TokenizerError(
            f"a piece of {len(piece)} characters, expected at most {MAX_PIECE}: {piece!r:.80}"
        )
    if not math.isfinite(score):
        raise TokenizerError(f"the score of {piece!r:.80} is {score}, expected a number")
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def all_runs(group: list[str]) -> bool:
    """Whether pieces are runs of one character, of every length from 2 on: Llama's spaces."""
    characters = set("".join(group))
    return len(characters) == 1 and sorted(map(len, group)) == list(range(2, len(group) + 2))
