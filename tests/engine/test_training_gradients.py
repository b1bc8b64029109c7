"""Gradients of whole models: against differences of the loss, against PEFT, and everywhere one."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import ISAS
from training_cases import (
    REFUSED,
    TRAINED,
    folder_of,
    golden_texts,
    in_own_order,
    network_for,
    peft_of,
    piece_of,
    randomize,
    torch_loss,
)

from slmq.engine.training.network import Network
from slmq.errors import UnsupportedModelError

RANK = {"rank": 3, "alpha": 6.0}


def loss(network: Network, family: str) -> float:
    network.parameters.turn()
    return float(network.losses(piece_of(*golden_texts(family))).sum())


@pytest.mark.parametrize("family", TRAINED)
def test_the_loss_falls_as_its_gradient_says(family: str) -> None:
    """Along random directions, all pairs at once; the loss is float32, so steps are large."""
    network = network_for(folder_of(family), format="f32", **RANK)
    randomize(network)
    piece = piece_of(*golden_texts(family))
    losses = network.learn(piece, 1.0)
    assert (losses == network.losses(piece)).all()
    values, slopes = network.parameters.values, network.parameters.slopes.copy()
    before = values.copy()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        way = np.where(before == 0, 0, rng.normal(0, 1, len(values))).astype(np.float32)
        # Towards the gradient for the most part, or the difference would be noise.
        way = way / np.linalg.norm(way) + slopes / np.linalg.norm(slopes)
        ends = []
        for sign in (1, -1):
            values[:] = before + np.float32(sign * 2e-3) * way
            ends.append(loss(network, family))
        values[:] = before
        wanted = float(slopes.astype(np.float64) @ way)
        assert abs((ends[0] - ends[1]) / 4e-3 - wanted) < 4e-3 * abs(wanted)


@pytest.mark.parametrize("family", TRAINED)
def test_gradients_are_those_of_peft(family: str) -> None:
    pytest.importorskip("peft")
    folder = folder_of(family)
    network = network_for(folder, format="f32", **RANK)
    randomize(network)
    texts, firsts = golden_texts(family)
    losses = network.learn(piece_of(texts, firsts), 0.5)
    model = peft_of(folder, network)
    total = sum(torch_loss(model, text, first) for text, first in zip(texts, firsts, strict=True))
    assert abs(losses.sum() - float(total.detach())) < 1e-5 * losses.sum()
    (0.5 * total).backward()
    for module, pair in network.parameters.pairs.items():
        layer = model.base_model.model.get_submodule(module)
        for got, theirs in (
            (pair.a_slope[:, : pair.size.k], layer.lora_A["default"].weight.grad.numpy()),
            (in_own_order(pair, pair.b_slope), layer.lora_B["default"].weight.grad.numpy()),
        ):
            assert np.abs(got - theirs).max() < 2e-4 * np.abs(theirs).max(), module


@pytest.mark.parametrize("format", ["f32", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "stablelm"])
def test_gradients_are_the_same_bits_everywhere(family: str, format: str) -> None:
    wanted = None
    for isa in ISAS:
        for threads, again in ((1, False), (2, True), (3, False)):
            network = network_for(
                folder_of(family), format=format, isa=isa, threads=threads,
                grad_checkpoint=again, **RANK,
            )  # fmt: skip
            randomize(network)
            piece = piece_of(*golden_texts(family))
            found = [network.learn(piece, 1.0 / 3).tobytes(), network.parameters.slopes.tobytes()]
            assert found == (wanted := wanted or found), (isa, threads)


def test_a_text_has_one_loss_alone_and_among_others() -> None:
    network = network_for(folder_of("llama"), format="int8", **RANK)
    randomize(network)
    texts, firsts = golden_texts("llama")
    together = network.losses(piece_of(texts, firsts))
    alone = [network.losses(piece_of([t], [f])) for t, f in zip(texts, firsts, strict=True)]
    assert (together == np.concatenate(alone)).all()


def test_layers_below_the_trained_ones_are_left_alone() -> None:
    """The same gradients for the last layer, with nothing kept of those below."""
    grads = []
    for layers in (-1, 1):
        network = network_for(folder_of("llama"), format="f32", num_layers=layers, **RANK)
        for pair in network.parameters.pairs.values():
            pair.a[:] = 0.01
            pair.b_turned[:, : pair.size.n] = 0.0
        network.parameters.turn()
        network.learn(piece_of(*golden_texts("llama")), 1.0)
        last = max(network.parameters.pairs, key=lambda m: int(m.split(".")[2]))
        layer = ".".join(last.split(".")[:3])
        grads.append(
            [p.b_slope.copy() for m, p in network.parameters.pairs.items() if m.startswith(layer)]
        )
    assert len(grads[0]) == len(grads[1]) == 7
    assert all((a == b).all() for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("family", REFUSED)
def test_what_has_no_gradient_is_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        network_for(folder_of(family), **RANK)


def test_parts_of_a_fused_model_can_be_trained() -> None:
    network = network_for(folder_of("phi3"), keys=("o_proj", "down_proj"), **RANK)
    assert {m.split(".")[-1] for m in network.parameters.pairs} == {"o_proj", "down_proj"}


def test_modules_are_found_by_the_ends_of_their_names() -> None:
    network = network_for(folder_of("llama"), keys=("q_proj", "mlp.down_proj"), **RANK)
    assert {m.split(".", 3)[3] for m in network.parameters.pairs} == {
        "self_attn.q_proj",
        "mlp.down_proj",
    }
    with pytest.raises(ValueError, match=r"expected modules of this model \(down_proj, .*'proj'"):
        network_for(folder_of("llama"), keys=("proj",), **RANK)


def test_memory_is_bounded_by_the_longest_piece() -> None:
    """Short pieces need no memory of their own after a long one."""
    network = network_for(folder_of("llama"), format="f32", **RANK)
    texts, firsts = golden_texts("llama")
    network.learn(piece_of(texts, firsts), 1.0)
    before = network.nbytes
    for text, first in zip(texts, firsts, strict=True):
        network.learn(piece_of([text], [first]), 1.0)
        network.losses(piece_of([text], [first]))
    assert network.nbytes == before
