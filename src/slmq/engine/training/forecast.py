"""What a run will take, from a step that is tried on its own batches and leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Sequence

from slmq.engine.training.batches import pieces_of
from slmq.engine.training.data import Sample
from slmq.engine.training.events import Forecast
from slmq.engine.training.network import Network
from slmq.engine.training.optimizer import AdamW, clip
from slmq.machine.memory import peak_memory_bytes

__all__ = ["forecast"]

TRIED = 3  # pieces that are timed, from short to long
UPDATED = 1 << 22  # parameters of which the time of an update is taken


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
    values, slopes = network.parameters.values, network.parameters.slopes
    kept = slopes.copy() if slopes.any() else None  # of batches that share the next update
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
    spare = AdamW(network.operators, count, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    tried = values[:count].copy()
    began_update_s = time.monotonic()
    clip(slopes[:count], 1.0)
    spare.update(tried, slopes[:count], 0.0)
    updated_s = time.monotonic()
    network.parameters.turn()
    update_s = (updated_s - began_update_s) * len(slopes) / count + time.monotonic() - updated_s
    slopes[:] = 0.0 if kept is None else kept

    rows = sum(len(piece.tokens) for piece in some)
    batch_rows = sum(len(piece.tokens) for piece in pieces) / len(ahead)
    look_rows = sum(sample.rows for batch in looks for sample in batch)
    learn_s = (learned_s - began_s) / rows * batch_rows
    seconds = iters * (learn_s + update_s) + evaluations * look_rows * (looked_s - learned_s) / rows
    tokens = round(iters * batch_rows) + evaluations * look_rows
    peak = peak_memory_bytes() or 0
    return Forecast(iters, tokens, network.parameters.count, seconds, peak)
