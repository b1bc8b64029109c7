"""SentencePiece vocabularies, BPE and unigram, as tokenizers of the `tokenizers` library.

SentencePiece's BPE merges, again and again, the neighbours whose joined piece has the best score,
the leftmost of equals. The library merges by a list of pairs, best first. The two do the same when
every piece that merging can make has a score of its own: then a list of all ways to split every
piece, ordered by score, says it all. Llama's runs of spaces share one score; they have an order
that does the same too. Other ties are merged by `slmq.tokenizer.merging`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import Regex, models, normalizers

from slmq.errors import TokenizerError
from slmq.tokenizer.growth import check_charsmap
from slmq.tokenizer.merging import piece_splitter
from slmq.tokenizer.pieces import SPACE_MARK

__all__ = ["HIDDEN_SCORE", "build_sentencepiece", "build_unigram", "space_steps"]

MAX_PIECE = 1024  # characters; real pieces have 16 to 64. Splitting is quadratic in it.
HIDDEN_SCORE = -1e4
"""Score of unigram tokens that text must not become: control tokens and bytes."""


def build_sentencepiece(
    ids: Mapping[str, int],
    scores: Mapping[str, float],
    *,
    unknown: str | None,
    byte_fallback: bool = True,
) -> tokenizers.Tokenizer:
    """Build a BPE tokenizer; what is done to spaces is added by the caller.

    Parameters
    ----------
    ids : Mapping
        Id by token, bytes (``<0x0A>``) and control tokens included.
    scores : Mapping
        Score of each token that is a piece of text.
    unknown : str or None
        The token for characters that are neither pieces nor have bytes.
    byte_fallback : bool
        Whether characters without a piece become bytes.

    Raises
    ------
    TokenizerError
        A piece is too long, or a score is no number.
    """
    merges = merges_by_score(ids, scores)
    backend = tokenizers.Tokenizer(
        models.BPE(
            dict(ids),
            merges or [],
            unk_token=unknown if unknown in ids else None,
            fuse_unk=True,
            byte_fallback=byte_fallback,
            ignore_merges=merges is None,
        )
    )
    if merges is None:
        backend.pre_tokenizer = piece_splitter(scores, ids)
    return backend


def build_unigram(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    unknown_id: int,
    byte_fallback: bool = False,
) -> tokenizers.Tokenizer:
    """Build a unigram tokenizer, which looks for the pieces of the best total score.

    Parameters
    ----------
    tokens, scores : sequence
        By id. Tokens that text must not become have `HIDDEN_SCORE`.
    unknown_id : int
        The token for characters without a piece.
    byte_fallback : bool
        Whether such characters become bytes (``<0x0A>``).

    Raises
    ------
    TokenizerError
        A piece is too long, or a score is no number.
    """
    for token, score in zip(tokens, scores, strict=True):
        check_length(token)
        check_score(token, score)
    vocabulary = list(zip(tokens, scores, strict=True))
    return tokenizers.Tokenizer(models.Unigram(vocabulary, unknown_id, byte_fallback))


def space_steps(
    *, prefix: bool, charsmap: bytes = b"", remove_spaces: bool = False
) -> list[normalizers.Normalizer]:
    """What SentencePiece does to a text before it looks for pieces.

    Parameters
    ----------
    prefix : bool
        Whether a text gets a space before it.
    charsmap : bytes
        Compiled rules of normalization.
    remove_spaces : bool
        Whether runs of spaces become one, and those at both ends vanish.

    Raises
    ------
    TokenizerError
        The rules are corrupt.
    """
    steps: list[normalizers.Normalizer] = []
    if charsmap:
        check_charsmap(charsmap)
        steps.append(normalizers.Precompiled(charsmap))
    if remove_spaces:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))
    return [*steps, normalizers.Replace(" ", SPACE_MARK)]


def merges_by_score(
    ids: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]] | None:
    """Return every pair of pieces that joins into a piece, the best joined score first.

    None where pieces share a score in a way that no such list can express.
    """
    groups: defaultdict[float, list[str]] = defaultdict(list)
    cuts = {piece: splits(piece, score, scores) for piece, score in scores.items()}
    for piece, found in cuts.items():
        if found:
            groups[scores[piece]].append(piece)
    merges: list[tuple[str, str]] = []
    for score in sorted(groups, reverse=True):
        group = groups[score]
        if len(group) == 1:
            merges += sorted(cuts[group[0]], key=leftmost_first)
        elif all_runs(group):
            # Leftmost first means that a run grows from its left end, one character at a time.
            runs = sorted(group, key=len, reverse=True)
            merges += [(run[:-1], run[-1]) for run in runs]
        else:
            return None
    return merges


def leftmost_first(cut: tuple[str, str]) -> tuple[int, bool]:
    """Order of the ways to cut one piece.

    Two of them compete for a symbol where the right part of one is the left part of the other:
    ``ab|a`` and ``a|ba`` in ``ab a ba``. The first of the two lies more to the left.
    """
    left, right = cut
    return min(len(left), len(right)), not (left + right).startswith(right)


def splits(piece: str, score: float, scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the ways to cut a piece into two pieces."""
    check_length(piece)
    check_score(piece, score)
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def all_runs(group: list[str]) -> bool:
    """Whether pieces are runs of one character, of every length from 2 on: Llama's spaces."""
    characters = set("".join(group))
    return len(characters) == 1 and sorted(map(len, group)) == list(range(2, len(group) + 2))


def check_length(piece: str) -> None:
    """Raise unless a piece is short: the library takes a tree of them down by recursion."""
    if len(piece) > MAX_PIECE:
        raise TokenizerError(
            f"a piece of {len(piece)} characters, expected at most {MAX_PIECE}: {piece!r:.80}"
        )


def check_score(piece: str, score: float) -> None:
    """Raise unless a score is finite."""
    if not math.isfinite(score):
        raise TokenizerError(f"the score of {piece!r:.80} is {score}, expected a number")
