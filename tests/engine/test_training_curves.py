"""Fifty steps of training give the losses that PyTorch gives, with PEFT or with all weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from curve_cases import CURVES, FILE, Curve, batches
from training_cases import folder_of, network_for, piece_of

from slmq.engine.training.optimizer import AdamW, clip


@pytest.mark.parametrize("case", CURVES, ids=lambda case: case.name)
def test_losses_of_fifty_steps(case: Curve) -> None:
    network = network_for(folder_of(case.family), format=case.format, **case.options)
    parameters = network.parameters
    optimizer = AdamW(
        network.operators, len(parameters.values), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    losses = []
    for texts, firsts in batches(case):
        piece = piece_of(texts, firsts)
        parameters.slopes.fill(0.0)
        losses.append(float(network.learn(piece, 1.0 / len(piece.targets)).mean()))
        clip(parameters.slopes, 1.0)
        optimizer.update(parameters.values, parameters.slopes, case.rate)
        parameters.turn()
    wanted = np.array(json.loads(FILE.read_text("utf-8"))[case.name])
    assert wanted[-1] < 0.9 * wanted[0]
    assert np.abs(np.array(losses) / wanted - 1).max() < 1e-4
