"""A linear layer of PyTorch over packed weights, which passes gradients back to its inputs."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import slmq._native as _native
from slmq.formats import format_named, padded

__all__ = ["SlmqLinear", "packed_weight"]

F32 = npt.NDArray[np.float32]
SOURCES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
ACTIVATIONS = "a16g32"  # what inputs of integer weights are rounded to: next to nothing is lost
LINE = 64  # bytes: where kernels want weights to begin


class SlmqLinear(torch.nn.Linear):  # type: ignore[misc,unused-ignore]
    """``x @ weight.T + bias``, with the weight packed in 4 or 8 bits.

    It computes with the same kernels as `slmq.load`, beside integers with inputs and gradients of
    16 bits, and answers in the type of its input. Gradients flow to the input and the bias; the
    weight has none. It is a `torch.nn.Linear`, so what looks for those, such as PEFT, finds it.
    `weight` unpacks the weight each time that it is read; it cannot be assigned or changed.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    format : str
        "int4", "int8", or a stored format.
    device : torch.device, optional
    dtype : torch.dtype, optional
        Of the bias, and of `weight` when it is read.
    """

    qweight: Any  # uint8: the packed bytes
    bias: Any

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: str = "int8",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        torch.nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.format = format_named(format).name
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        size = _native.packed_bytes(self.format, out_features, in_features)
        packed = torch.zeros(size, dtype=torch.uint8, device=device)
        self.register_buffer("qweight", packed)
        values = torch.zeros(out_features, dtype=self.dtype, device=device) if bias else None
        self.register_parameter("bias", None if values is None else torch.nn.Parameter(values))
        self._native: tuple[int, _native.Matrix] | None = None

    @property
    def weight(self) -> Any:
        """The weight in floats, unpacked now, with the shape [out_features, in_features]."""
        if self.qweight.is_meta:
            shape = self.out_features, self.in_features
            return torch.empty(shape, dtype=self.dtype, device="meta")
        values = self._matrix().dequantize(0, self.out_features)
        return torch.from_numpy(values).to(self.dtype).as_subclass(_Unpacked)

    def forward(self, x: Any) -> Any:
        """The product, in the type of `x`."""
        if not x.is_floating_point() or x.shape[-1] != self.in_features:
            raise ValueError(
                f"expected floats with {self.in_features} columns, got {x.dtype} of the shape "
                f"{list(x.shape)}"
            )
        if self.qweight.is_meta:
            y = x.new_empty(*x.shape[:-1], self.out_features)
        else:
            y = _Product.apply(x, self._matrix())
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format}"
        )

    def reset_parameters(self) -> None:
        """Nothing: a packed weight is given, not drawn."""

    def _matrix(self) -> _native.Matrix:
        """The weight as kernels read it, over the bytes of the buffer."""
        held, data = self._native, self.qweight
        if held is not None and held[0] == data.data_ptr():
            return held[1]
        if data.device.type != "cpu":
            raise RuntimeError(f"slmq.torch computes on the CPU; this layer is on {data.device}")
        if data.data_ptr() % LINE or not data.is_contiguous():
            self.qweight = data = data.clone(memory_format=torch.contiguous_format)
        matrix = _native.Matrix.from_packed(
            self.format, self.out_features, self.in_features, data.numpy()
        )
        self._native = data.data_ptr(), matrix
        return matrix

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # What `model.half()` and the like do: bytes stay bytes.
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies have bytes of their own.
        return {**self.__dict__, "_native": None}


class _Unpacked(torch.Tensor):  # type: ignore[misc,unused-ignore]
    """A weight that was unpacked to be read: what is written to it would be lost."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Any:
        """Nothing that can be changed."""
        raise TypeError(
            "a packed weight cannot be changed in place (by merging an adapter, for example); "
            "slmq.torch.dequantize_(model) makes ordinary layers of floats"
        )


class _Product(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    """x @ weight.T; backwards dx = dy @ weight."""

    @staticmethod
    def forward(ctx: Any, x: Any, matrix: _native.Matrix) -> Any:
        """The product, in the type of `x`."""
        ctx.matrix = matrix
        y = matrix.matmul(_rows(x, matrix.k), torch.get_num_threads(), ACTIVATIONS)
        return torch.from_numpy(y).to(x.dtype).view(*x.shape[:-1], matrix.n)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> tuple[Any, None]:
        """The gradient of `x`; the weight has none."""
        matrix = ctx.matrix
        dx = _product_back(matrix, _rows(dy, matrix.n))
        return torch.from_numpy(dx).to(dy.dtype).view(*dy.shape[:-1], matrix.k), None


def packed_weight(values: Any, format: str) -> Any:
    """The bytes of a packed weight, rounded to nearest, with a scale (and a least) of each group.

    Parameters
    ----------
    values : torch.Tensor
        Floats with the shape [out_features, in_features].
    format : str

    Returns
    -------
    torch.Tensor
        uint8, in the layout of the kernels.

    Raises
    ------
    ValueError
        For NaN, infinity, or values beyond float16's range.
    """
    n, k = values.shape
    values = values.detach()
    if values.dtype not in SOURCES:
        values = values.float()
    raw = values.contiguous().view(torch.uint8).reshape(-1).numpy()
    matrix = _native.Matrix.pack(
        SOURCES[values.dtype], raw, n, k, format_named(format).name, threads=torch.get_num_threads()
    )
    packed = torch.empty(matrix.nbytes, dtype=torch.uint8)
    packed.numpy()[:] = matrix.packed
    return packed


def _rows(x: Any, width: int) -> F32:
    """The rows of a tensor as float32; shared where they are that already."""
    found: F32 = x.detach().reshape(-1, width).float().contiguous().numpy()
    return found


def _product_back(matrix: _native.Matrix, dy: F32) -> F32:
    """dy @ weight, in rows of whole groups of 32 columns as the operators take them."""
    rows = len(dy)
    if rows == 0:
        return np.zeros((0, matrix.k), np.float32)
    slopes = dy
    if matrix.n % 32:
        slopes = _native.zero_rows(rows, matrix.n)
        slopes[:, : matrix.n] = dy
    dx = np.empty((rows, padded(matrix.k, 32)), np.float32)
    operators = _operators(os.getpid(), torch.get_num_threads())
    operators.linear_back([(matrix, None, None, slopes)], False, dx)
    return np.ascontiguousarray(dx[:, : matrix.k])


@functools.lru_cache(maxsize=4)
def _operators(_process: int, threads: int) -> _native.Operators:
    """Threads do not live on in a process that was forked, so each has its own."""
    return _native.Operators(threads)
