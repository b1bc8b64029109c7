"""What a run will take, from a step that is tried on its own batches and leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Sequence

from slmq.engine.training.batches import pieces_of
from slmq.engine.training.data import Sample
from slmq.engine.training.events import Forecast
from slmq.engine.training.network import Network
from slmq.engine.training.optimizer import AdamW
from slmq.machine.memory import peak_memory_bytes

__all__ = ["forecast"]

TRIED = 3  # pieces that are timed, from short to long
UPDATED = 1 << 18  # parameters of which the time of an update is taken


def forecast(
    network: Network,
    ahead: Sequence[Sequence[Sample]],
    looks: Sequence[Sequence[Sample]],
    *,
    iters: int,
    evaluations: int,
) -> Forecast:
    """Try the longest piece for the memory, and some others for the time.

    Parameters
    ----------
    ahead, looks : sequence of batches
        The next ones that are learned from, and those of an evaluation.
    iters, evaluations : int
        How many of them there will be.
    """
    low_ranks = network.low_ranks
    slopes = low_ranks.slopes.copy()  # of batches that share an update with the next ones
    pieces = sorted(
        (piece for batch in ahead for piece in pieces_of(batch)), key=lambda p: len(p.tokens)
    )
    network.learn(pieces[-1], 0.0)  # makes all memory that there will be
    some = [pieces[(2 * i + 1) * len(pieces) // (2 * TRIED)] for i in range(TRIED)]
    began_s = time.monotonic()
    for piece in some:
        network.learn(piece, 0.0)
    learned_s = time.monotonic()
    for piece in some if looks else ():
        network.losses(piece)
    looked_s = time.monotonic()
    count = min(len(slopes), UPDATED)
    spare = AdamW(count, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    spare.update(low_ranks.values[:count].copy(), slopes[:count], 0.0)
    updated_s = time.monotonic()
    low_ranks.turn()
    update_s = (updated_s - looked_s) * len(slopes) / count + time.monotonic() - updated_s
    low_ranks.slopes[:] = slopes

    rows = sum(len(piece.tokens) for piece in some)
    batch_rows = sum(len(piece.tokens) for piece in pieces) / len(ahead)
    look_rows = sum(sample.rows for batch in looks for sample in batch)
    learn_s = (learned_s - began_s) / rows * batch_rows
    seconds = iters * (learn_s + update_s) + evaluations * look_rows * (looked_s - learned_s) / rows
    tokens = round(iters * batch_rows) + evaluations * look_rows
    peak = peak_memory_bytes() or 0
    return Forecast(iters, tokens, low_ranks.count, seconds, peak)
