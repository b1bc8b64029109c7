"""A survey notes what a family asks for; what it notes is what reading makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from golden import GOLDENS

from slmq.checkpoint import open_checkpoint
from slmq.models.loading import load_weights, open_weights
from slmq.models.parts.gguf import Weights
from slmq.plan.linear import Linear
from slmq.weights.survey import Survey

CASES = ("llama/biases", "phi3/fused_gqa", "gpt2/untied", "gpt_neox/parallel")


def linears(weights: Weights) -> Iterator[Linear]:
    for value in vars(weights).values():
        if isinstance(value, Linear):
            yield value
        elif isinstance(value, list):
            for layer in value:
                yield from linears(layer)


@pytest.mark.parametrize("case", CASES)
def test_weights_carry_the_names_of_their_wishes(case: str) -> None:
    with open_checkpoint(GOLDENS / case) as checkpoint:
        opened = open_weights(checkpoint, threads=1, keep=False)
        survey = Survey(opened.reader)
        noted = list(linears(opened.family.load(survey, opened.config)))
        read = list(linears(load_weights(checkpoint, threads=1).weights))
    assert noted
    assert [weight.name for weight in noted] == [weight.name for weight in read]
    for weight, matrix in zip(noted, read, strict=True):
        wish = survey.wish(weight.name)
        assert wish.tensor.shape == (matrix.n, matrix.k) == (weight.n, weight.k)
        assert wish.tensor.format == matrix.matrix.format
        assert wish.tensor.nbytes == matrix.matrix.nbytes
        assert (wish.bias is None) == (matrix.bias is None)
    assert {wish.name for wish in survey.wishes if wish.is_matrix} == {w.name for w in read}


def test_a_weight_that_was_only_noted_has_no_values() -> None:
    with open_checkpoint(GOLDENS / CASES[0]) as checkpoint:
        survey = Survey(open_weights(checkpoint, threads=1, keep=False).reader)
        weight = survey.linear("lm_head.weight", *checkpoint.tensors["lm_head.weight"].shape)
    with pytest.raises(ValueError, match=r"lm_head\.weight: a weight that was noted only"):
        _ = weight.matrix
    assert np.array_equal(survey.vector("norm", 3), [1, 1, 1])
    assert [wish.name for wish in survey.wishes] == ["lm_head.weight", "norm"]
