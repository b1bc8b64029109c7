"""Heads of models from a log: prompts, and which models were right about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slmq.embedding.logistic import ROUGH, cross_validated, fit_logistic
from slmq.embedding.routing.features import LOOKED_AT, plain_features
from slmq.embedding.routing.heads import RIGHT, RouterHeads
from slmq.errors import DataError
from slmq.machine.exact import exact_log

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder

__all__ = ["TrainedModel", "columns_of", "fitted_head", "train_right"]

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
LEAST = 20  # prompts with a judgement, of each kind two
VALIDATED = 3000  # rows
LEAST_SPREAD = 1e-5  # of a column; those of vectors vary by some hundredths
PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)


@dataclass(frozen=True)
class TrainedModel:
    """A model that got a head.

    Attributes
    ----------
    name : str
    rows : int
        Prompts for which it is known whether it was right.
    right : float
        The share of those.
    log_loss, usual_loss : float
        Of prompts that were not trained on, and of always saying that share.
    """

    name: str
    rows: int
    right: float
    log_loss: float
    usual_loss: float


def columns_of(encoder: Encoder, texts: Sequence[str]) -> F64:
    """What heads read, of prompts: float64[texts, columns]."""
    cut = [text[:LOOKED_AT] or " " for text in texts]
    vectors = encoder.embed(cut, normalize=True, truncate=True)
    plain = np.array([plain_features(text) for text in texts])
    return np.concatenate([vectors.astype(np.float64), plain], axis=1)


def fitted_head(x: F64, y: npt.NDArray[np.int64], classes: int) -> tuple[F32, F32, Any]:
    """Weights and bias of a calibrated head over columns as they are, and how it was validated.

    Of many rows some are enough to find the penalty and the temperature.
    """
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # A column that hardly varies, as MiniLM has one, says nothing but what rounding has made of it.
    spread[spread < LEAST_SPREAD] = 1.0
    scaled = (x - mean) / spread
    some = np.random.default_rng(0).permutation(len(y))[:VALIDATED]
    found = cross_validated(scaled[some], y[some], classes, penalties=PENALTIES)
    fitted = fit_logistic(scaled, y, classes, found.penalty, tolerance=ROUGH)
    weights = fitted.weights / spread / found.temperature
    shift = np.add.accumulate(weights * mean, axis=1)[:, -1]  # in order: the same bits everywhere
    bias = fitted.bias / found.temperature - shift
    return weights.astype(np.float32), bias.astype(np.float32), found


def train_right(
    heads: RouterHeads, encoder: Encoder, entries: Sequence[Mapping[str, Any]], path: Path
) -> tuple[RouterHeads, list[TrainedModel]]:
    """Heads with one for each model that enough is known of.

    Parameters
    ----------
    heads : RouterHeads
        What is known already.
    encoder : Encoder
    entries : sequence of mapping
        Lines with "text", the prompt, and "right": which models were right, by name.
    path : Path
        Where they come from, for messages.

    Raises
    ------
    DataError
        If there is too little to learn from.
    """
    judged: list[tuple[str, dict[str, bool]]] = []
    for number, entry in enumerate(entries, 1):
        text, right = entry.get("text"), entry.get("right")
        if text is None or right is None:
            continue
        ok = isinstance(text, str) and isinstance(right, dict)
        if not ok or not all(isinstance(value, bool) for value in right.values()):
            raise DataError(
                f'{path}: line {number}: expected {{"text": "...", "right": {{"model": true}}}}, '
                f"got {entry!r:.120}"
            )
        judged.append((text, right))
    names = sorted({name for _, right in judged for name in right})
    if not names:
        raise DataError(
            f'{path}: expected lines with "text" and "right", such as {{"text": "...", "right": '
            f'{{"small": true, "large": true}}}}; log_text = true writes the text of requests'
        )
    x = columns_of(encoder, [text for text, _ in judged])
    arrays, trained = dict(heads.arrays), []
    for name in names:
        rows = [i for i, (_, right) in enumerate(judged) if name in right]
        y = np.array([judged[i][1][name] for i in rows], np.int64)
        if len(y) < LEAST or min(y.sum(), len(y) - y.sum()) < 2:
            raise DataError(
                f"{path}: model {name!r}: expected at least {LEAST} judged prompts, of which it "
                f"was right about at least 2 and wrong about 2; got {y.sum()} of {len(y)}"
            )
        weights, bias, found = fitted_head(x[rows], y, 2)
        # Of two classes the difference is what counts.
        arrays[f"{RIGHT}{name}/weights"] = weights[1:] - weights[:1]
        arrays[f"{RIGHT}{name}/bias"] = bias[1:] - bias[:1]
        share = float(y.mean())
        usual = -(share * exact_log(share) + (1 - share) * exact_log(1 - share))
        trained.append(TrainedModel(name, len(y), share, found.log_loss, usual))
    listed = [*heads.names, *(RIGHT + n for n in names if RIGHT + n not in heads.names)]
    return RouterHeads({**heads.facts, "heads": listed}, arrays), trained
