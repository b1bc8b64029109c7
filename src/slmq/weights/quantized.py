"""QuantizedMatrix: packed weights for anybody's matrix products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import USER_FORMATS, Format, format_named
from slmq.settings import WeightFormat

F32 = npt.NDArray[np.float32]

LARGEST = 1 << 28  # rows or columns


class QuantizedMatrix:
    """A weight matrix in one of slmq's formats, in the layout that its kernels read.

    Made by `quantize` or `from_packed`. Products are the same bits on every CPU and for any number
    of threads or rows.

    Examples
    --------
    >>> import numpy as np, slmq
    >>> w = slmq.QuantizedMatrix.quantize(np.eye(64, dtype=np.float32), "int8")
    >>> (w @ np.ones((1, 64), dtype=np.float32)).shape
    (1, 64)
    """

    def __init__(self, native: _native.Matrix) -> None:
        self._native = native

    @classmethod
    def quantize(
        cls, array: F32, format: WeightFormat = "int4", *, n_threads: int = 1
    ) -> QuantizedMatrix:
        """Quantizes by rounding to nearest, per group of 32 columns.

        Parameters
        ----------
        array : float32[n, k] or float16[n, k]
            Weights: row i gives output i.
        format : str
            "int4", "int8", or a stored format ("q4g32s", "q4g32a", "q8g32s", "f16", "f32").

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, NaN or infinity, or values beyond float16's range.
        """
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float16):
            got = f"{array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"array: expected float32[n, k] or float16[n, k], got {got}")
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"array: expected two non-empty dimensions, got {list(array.shape)}")
        n, k = array.shape
        if n > LARGEST or k > LARGEST:
            raise ValueError(f"array: expected at most 2^28 rows and columns, got {n} x {k}")
        source = "f32" if array.dtype == np.float32 else "f16"
        name = format_named(format).name
        rows = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        return cls(_native.Matrix.pack(source, rows, n, k, name, threads=n_threads))

    @classmethod
    def from_packed(
        cls, packed: npt.NDArray[np.uint8], shape: tuple[int, int], format: str
    ) -> QuantizedMatrix:
        """A matrix over bytes that `packed` gave; shares them if they are 64-byte aligned."""
        name = format_named(format).name
        return cls(_native.Matrix.from_packed(name, shape[0], shape[1], packed))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k): outputs and inputs."""
        return self._native.n, self._native.k

    @property
    def format(self) -> Format:
        """The stored format."""
        return format_named(self._native.format)

    @property
    def nbytes(self) -> int:
        """Packed bytes, rows and columns padded to 32."""
        return self._native.nbytes

    @property
    def packed(self) -> npt.NDArray[np.uint8]:
        """uint8[nbytes]: the stored bytes, read-only and without a copy."""
        return self._native.packed

    def dequantize(self) -> F32:
        """float32[n, k]."""
        return self._native.dequantize(0, self._native.n)

    def matmul(self, x: F32, *, n_threads: int = 1) -> F32:
        """x @ w.T.

        Parameters
        ----------
        x : float32[m, k] or float32[k], C-contiguous

        Returns
        -------
        float32[m, n] or float32[n]
        """
        if isinstance(x, np.ndarray) and x.dtype.kind in "fiu" and x.dtype != np.float32:
            shape, k = ", ".join(map(str, x.shape)), self._native.k
            raise TypeError(
                f"x: expected float32[m, {k}] or float32[{k}], got {x.dtype}[{shape}]; "
                f"x.astype(np.float32) converts it"
            )
        if isinstance(x, np.ndarray) and x.ndim == 1:
            row: F32 = self._native.matmul(x[None], n_threads)[0]
            return row
        return self._native.matmul(x, n_threads)

    def __matmul__(self, x: F32) -> F32:
        return self.matmul(x)

    def __repr__(self) -> str:
        user = {v: k for k, v in USER_FORMATS.items()}.get(self._native.format, self._native.format)
        n, k = self.shape
        bits = self.format.bits_per_weight
        return f"QuantizedMatrix({n} x {k}, {user}, {bits:g} bits per weight)"
