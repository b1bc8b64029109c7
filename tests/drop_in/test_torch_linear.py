"""`SlmqLinear`: products and gradients of a layer, and what PyTorch does with modules."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import slmq.torch
from slmq.torch import SlmqLinear

FORMATS = ("int4", "int8", "f16", "f32")
SHAPES = ((64, 96), (33, 50), (32, 1), (1, 32))


def layer(n: int, k: int, format: str, *, bias: bool = True, seed: int = 0) -> Any:
    """A packed layer of random weights."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(k, n, bias))
    slmq.torch.quantize_(model, format)
    return model[0]


def error(got: Any, want: Any) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_and_gradients(format: str, n: int, k: int) -> None:
    packed = layer(n, k, format)
    plain = torch.nn.Linear(k, n)
    plain.load_state_dict({"weight": packed.weight.clone(), "bias": packed.bias.detach()})
    x = torch.randn(3, 5, k)
    for batch in (x, x[0, 0], x[:, ::2], x.transpose(0, 1), x[:0]):
        got, want = (batch.detach().clone().requires_grad_() for _ in range(2))
        y, z = packed(got), plain(want)
        assert y.shape == z.shape
        slope = torch.randn_like(z)
        y.backward(slope)
        z.backward(slope)
        if batch.numel():
            most = float(batch.norm() * plain.weight.detach().norm())
            assert float((y - z).detach().norm()) < 1e-4 * most
            most = float(slope.norm() * plain.weight.detach().norm())
            bound = 1e-6 if format in ("f16", "f32") else 1e-4
            assert float((got.grad - want.grad).norm()) < bound * most
            assert error(packed.bias.grad, plain.bias.grad) < 1e-6
        packed.zero_grad()
        plain.zero_grad()


def test_the_same_bits_for_any_rows_and_threads() -> None:
    packed, x = layer(96, 64, "int4"), torch.randn(17, 64)
    whole = packed(x)
    held = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(packed(x), whole)
            assert torch.equal(torch.cat([packed(row[None]) for row in x]), whole)
    finally:
        torch.set_num_threads(held)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_come_and_go(dtype: Any) -> None:
    packed, x = layer(48, 64, "int8"), torch.randn(4, 64)
    want = packed(x)
    packed.to(dtype)
    assert packed.qweight.dtype == torch.uint8
    assert packed.weight.dtype == packed.bias.dtype == dtype
    got = packed(x.to(dtype))
    assert got.dtype == dtype
    assert error(got.float(), want) < 0.01
    halves = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=dtype))
    before = halves[0].weight.detach().float()
    slmq.torch.quantize_(halves, "int8")
    assert error(halves[0].weight.float(), before) < 0.01


@pytest.mark.parametrize("format", FORMATS)
def test_states_and_copies(format: str) -> None:
    packed, x = layer(40, 64, format), torch.randn(2, 64)
    want = packed(x)
    other = layer(40, 64, format, seed=1)
    assert not torch.equal(other(x), want)
    other.load_state_dict(packed.state_dict())  # under the bytes that it has read already
    assert torch.equal(other(x), want)
    twin = copy.deepcopy(packed)
    with torch.no_grad():
        packed.qweight.zero_()
    assert torch.equal(twin(x), want)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), want)
    empty = SlmqLinear(64, 40, format=format, device="meta")
    assert empty(torch.empty(3, 64, device="meta")).shape == (3, 40)
    empty.load_state_dict(twin.state_dict(), assign=True)
    assert torch.equal(empty(x), want)


def test_bytes_that_lie_askew_are_moved_once() -> None:
    packed, x = layer(32, 64, "int8"), torch.randn(2, 64)
    want = packed(x)
    room = torch.empty(packed.qweight.numel() + 1, dtype=torch.uint8)
    room[1:] = packed.qweight
    packed.qweight = room[1:]
    assert torch.equal(packed(x), want)
    assert packed.qweight.data_ptr() % 64 == 0


def test_what_is_refused() -> None:
    packed = layer(32, 64, "int8")
    with pytest.raises(ValueError, match=r"expected floats with 64 columns, got torch\.float32 of"):
        packed(torch.zeros(2, 63))
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        packed(torch.zeros(2, 64, dtype=torch.int64))
    with pytest.raises(TypeError, match="cannot be changed in place"):
        packed.weight.data += 1
    with pytest.raises(KeyError, match="weight"):
        packed.weight = torch.nn.Parameter(torch.zeros(32, 64))
    with pytest.raises(ValueError, match="expected a weight format"):
        SlmqLinear(8, 8, format="int7")
    with pytest.raises(RuntimeError, match="size mismatch"):
        packed.load_state_dict(layer(32, 64, "int4").state_dict())


def test_a_small_network_learns_through_it() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 32))
    slmq.torch.quantize_(model[1:], "int8")  # a module around the second
    x, y = torch.randn(64, 8), torch.randn(64, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_slmq_alone_does_not_import_torch() -> None:
    program = (
        "import slmq, sys; assert 'torch' not in sys.modules; import slmq.torch; slmq.torch.Config"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_torch_it_says_what_to_install() -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
        "try: import slmq.torch\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'slmq[torch]'" in done.stdout


def test_an_older_transformers_costs_the_quantizer_only() -> None:
    program = (
        "import sys; sys.modules['transformers.core_model_loading'] = None\n"
        "import slmq.torch; slmq.torch.SlmqLinear(32, 32)\n"
        "try: slmq.torch.Config()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "needs transformers 5" in done.stdout


def test_numbers_of_packed_weights_are_those_of_quantized_matrices() -> None:
    w = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=False))
    model[0].weight.data = torch.from_numpy(w)
    slmq.torch.quantize_(model, "int4")
    held = slmq.QuantizedMatrix.quantize(w, "int4")
    assert (model[0].qweight.numpy() == held.packed).all()
    assert (model[0].weight.numpy() == held.dequantize()).all()
