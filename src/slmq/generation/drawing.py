"""From the logits of a run to what is said next: a token for each answer, and right guesses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.generation._sampling import sample_rows
from slmq.generation.job import Part
from slmq.generation.results import StreamChunk

__all__ = ["Said", "draw"]

F32 = npt.NDArray[np.float32]
Said = StreamChunk | Exception  # the second ends an answer


def draw(parts: list[Part], rows: F32) -> list[list[Said]]:
    """What every part gives: chunks, or the error that ends its answer."""
    now_s = time.perf_counter()
    for part in parts:
        if part.completes and part.job.read_s is None and part.job.began_s is not None:
            part.job.answer.prompt_s = now_s - part.job.began_s
    wanted = [part.wanted for part in parts]
    starts = list(itertools.accumulate(wanted, initial=0))
    speaking = [i for i, part in enumerate(parts) if wanted[i] and not part.job.cancelled]
    drawn: list[list[Said]] = [[] for _ in parts]
    for i, token in _first_tokens(parts, speaking, rows, starts):
        drawn[i] = _go_on(parts[i], token, rows[starts[i] : starts[i + 1]])
    return drawn


def _first_tokens(
    parts: list[Part], speaking: list[int], rows: F32, starts: list[int]
) -> Iterator[tuple[int, int | BaseException]]:
    """The next token of each of these parts: forced, or drawn by all samplers in one call."""
    choosing, allowed = list[int](), list[Any]()
    for i in speaking:
        answer = parts[i].job.answer
        forced = answer.forced
        if forced is not None:
            yield i, forced
            continue
        try:
            allowed.append(answer.allowed())
        except Exception as error:
            yield i, error
            continue
        choosing.append(i)
    samplers = [parts[i].job.answer.sampler for i in choosing]
    first = rows[[starts[i] for i in choosing]] if len(choosing) < len(rows) else rows
    drawn = sample_rows(samplers, first, allowed)
    for place, (i, token) in enumerate(zip(choosing, drawn, strict=True)):
        found: int | BaseException
        try:
            found = parts[i].job.answer.mended(token, first[place])
        except Exception as error:
            found = error
        yield i, found


def _go_on(part: Part, token: int | BaseException, rows: F32) -> list[Said]:
    """Take the first token, then those after it as long as guesses were right."""
    answer, chunks = part.job.answer, list[Said]()
    before = answer.accepted_tokens
    if not part.certain:
        answer.drafted_tokens += len(part.guesses)
    try:
        for row, logits in enumerate(rows):
            if row:
                token = answer.choose(logits)
            if isinstance(token, BaseException):
                raise token
            right = part.guesses[row : row + 1] == [token]
            answer.accepted_tokens += right and not part.certain  # first: the last chunk has it
            chunk = answer.take(token, logits)
            chunks.append(chunk)
            if not right or chunk.finish_reason is not None:
                break
    except Exception as error:
        chunks.append(error)
    if part.guesses and not part.certain:
        guesser = part.job.trust if part.by_model else part.job.lookup
        guesser.told(len(part.guesses), answer.accepted_tokens - before)
    if chunks and isinstance(chunks[-1], Exception):
        return chunks
    try:
        return chunks + answer.follow()
    except Exception as error:
        return [*chunks, error]
