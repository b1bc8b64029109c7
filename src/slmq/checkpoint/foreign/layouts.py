"""Where GPTQ, AWQ and compressed-tensors put the parts of a weight [n, k].

With `per` = 32 / bits codes in a word, the lowest bits first::

    GPTQ  <stem>.qweight [k / per, n]     words along k
          <stem>.qzeros  [groups, n / per]   words along n; the first format stores zero - 1
          <stem>.scales  [groups, n]
          <stem>.g_idx   [k]              group of each column, where desc_act reordered them
    AWQ   <stem>.qweight [k, n / 8]       words along n, in the order 0 2 4 6 1 3 5 7
          <stem>.qzeros  [groups, n / 8]     likewise
          <stem>.scales  [groups, n]
    compressed-tensors, "pack-quantized"
          <stem>.weight_packed     [n, k / per]        words along k, padded
          <stem>.weight_scale      [n, groups]
          <stem>.weight_zero_point [n / per, groups]   words along n, or int8[n, groups], signed
          <stem>.weight_shape      [2]                 n, k
          <stem>.weight_g_idx      [k]                 as g_idx; -1: in order
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.base import Checkpoint
from slmq.checkpoint.foreign.config import AWQ, COMPRESSED, GPTQ, QuantConfig
from slmq.checkpoint.foreign.integers import WORDS, ForeignLinear
from slmq.checkpoint.foreign.words import AWQ_ORDER, unpack_words

__all__ = ["AwqLinear", "CompressedLinear", "GptqLinear", "foreign_linears"]

I16 = npt.NDArray[np.int16]
U8 = npt.NDArray[np.uint8]


class GptqLinear(ForeignLinear):
    """A weight of AutoGPTQ or GPTQModel."""

    SUFFIXES: ClassVar = {
        "codes": ".qweight",
        "zeros": ".qzeros",
        "scales": ".scales",
        "groups": ".g_idx",
    }
    OPTIONAL = ("groups",)
    BY_COLUMN = True

    def _size(self) -> tuple[int, int, int]:
        words, n = self._matrix_of_words()
        bits = self._config.bits[0]
        if "groups" in self._names:  # one entry a column: tells the width where it is mixed
            k = self._checkpoint.tensors[self._names["groups"]].nbytes // 4
            bits = next((x for x in self._config.bits if 32 * words == k * x), bits)
        return bits, n, 32 // bits * words

    def _check_zeros(self, n: int, groups: int) -> None:
        self._info("zeros", WORDS)
        self._expect("zeros", (groups, -(-n * self.bits // 32)))

    def _codes(self, begin: int, end: int) -> U8:
        return unpack_words(self._array("codes")[:, begin:end].T, self.bits)

    def _zeros(self, begin: int, end: int) -> I16:
        stored = unpack_words(self._array("zeros"), self.bits)[:, begin:end].T
        largest = np.uint8((1 << self.bits) - 1)
        zeros: U8 = (stored + np.uint8(self._config.zero_offset)) & largest
        return zeros.astype(np.int16)


class AwqLinear(ForeignLinear):
    """A weight of AutoAWQ in its "gemm" version."""

    SUFFIXES: ClassVar = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales"}
    OPTIONAL = ()
    BY_COLUMN = True

    def _size(self) -> tuple[int, int, int]:
        k, words = self._matrix_of_words()
        return 4, 8 * words, k

    def _check_zeros(self, n: int, groups: int) -> None:
        self._info("zeros", WORDS)
        self._expect("zeros", (groups, n // 8))

    def _codes(self, begin: int, end: int) -> U8:
        return _awq_rows(self._array("codes"), begin, end)

    def _zeros(self, begin: int, end: int) -> I16:
        return _awq_rows(self._array("zeros"), begin, end).astype(np.int16)


class CompressedLinear(ForeignLinear):
    """A weight of compressed-tensors in its format "pack-quantized"."""

    SUFFIXES: ClassVar = {
        "codes": ".weight_packed",
        "scales": ".weight_scale",
        "zeros": ".weight_zero_point",
        "shape": ".weight_shape",
        "groups": ".weight_g_idx",
    }
    OPTIONAL = ("zeros", "groups")
    BY_COLUMN = False

    def _size(self) -> tuple[int, int, int]:
        rows, words = self._matrix_of_words()
        name = self._info("shape", ("i32", "i64")).name
        self._expect("shape", (2,))
        n, k = (int(x) for x in self._array("shape"))
        for bits in self._config.bits:
            if k > 0 and (n, -(-k * bits // 32)) == (rows, words):
                return bits, n, k
        widths = " or ".join(map(str, sorted(set(self._config.bits))))
        raise self._error(
            name, f"expected the size of {rows} rows of {words} words of {widths}-bit weights, "
            f"found {n} x {k}"
        )  # fmt: skip

    def _check_zeros(self, n: int, groups: int) -> None:
        if "zeros" not in self._names:
            return
        packed = self._info("zeros", (*WORDS, "i8")).dtype != "i8"
        self._expect("zeros", (-(-n * self.bits // 32) if packed else n, groups))

    def _codes(self, begin: int, end: int) -> U8:
        k = self.info.shape[1]
        return unpack_words(self._array("codes")[begin:end], self.bits)[:, :k]

    def _zeros(self, begin: int, end: int) -> I16:
        middle = 1 << self.bits - 1  # codes are signed, stored plus this
        zeros: I16
        if "zeros" not in self._names:
            zeros = np.full((end - begin, self._array("scales").shape[1]), middle, np.int16)
        elif (stored := self._array("zeros")).dtype == np.int8:
            zeros = stored[begin:end] + np.int16(middle)
        else:
            zeros = unpack_words(stored.T, self.bits)[:, begin:end].T.astype(np.int16)
        return zeros


LAYOUTS: dict[str, type[ForeignLinear]] = {
    GPTQ: GptqLinear,
    AWQ: AwqLinear,
    COMPRESSED: CompressedLinear,
}


def foreign_linears(checkpoint: Checkpoint, config: QuantConfig) -> dict[str, ForeignLinear]:
    """The quantized weights of a folder by the names of what they stand for: "<stem>.weight".

    Raises
    ------
    CheckpointError
        A part is missing, or of another type or shape than the others ask for.
    """
    layout = LAYOUTS[config.method]
    ending = layout.SUFFIXES["codes"]
    stems = [name.removesuffix(ending) for name in checkpoint.tensors if name.endswith(ending)]
    return {f"{stem}.weight": layout(checkpoint, stem, config) for stem in stems}


def _awq_rows(words: npt.NDArray[Any], begin: int, end: int) -> U8:
    """Columns `begin` to `end` of words along the columns, as rows: uint8[end - begin, rows]."""
    first = begin // 8
    across = np.ascontiguousarray(words[:, first : -(-end // 8)].T).view(np.uint32)
    rows: U8 = np.empty((len(across), 8, len(words)), np.uint8)
    for column, field in enumerate(AWQ_ORDER):
        shift = np.uint32(4 * field)
        np.bitwise_and(across >> shift, 15, out=rows[:, column], casting="unsafe")
    return rows.reshape(-1, len(words))[begin - 8 * first : end - 8 * first]
