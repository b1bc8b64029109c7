"""Floats that look like those a quantized GGUF file was made from: its weights, moved off the grid.

The package indexes carry real decoders only in quantized files. Their weights lie on the grid of
their type, which favours that type. This script decodes such a file and adds to every weight of a
matrix Gaussian noise of `--noise` times a sixteenth of the largest magnitude in its group of 32:
about what four bits took from it. The result is a GGUF file of floats, for any quantizer. It needs
the gguf package.

    python tools/off_grid.py MODEL.gguf OUT.gguf [--noise 0.3] [--seed 0]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from slmq.checkpoint import open_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
gguf_writer: Any = importlib.import_module("gguf_writer")

F32 = npt.NDArray[np.float32]
GROUP = 32


def off_grid(weights: F32, noise: float, generator: np.random.Generator) -> F32:
    """Rows of weights with noise of `noise` sixteenths of each group's largest magnitude."""
    groups = weights.reshape(-1, GROUP)
    step = np.abs(groups).max(1, keepdims=True) / 16
    moved = groups + noise * step * generator.standard_normal(groups.shape, np.float32)
    return moved.reshape(weights.shape).astype(np.float32)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    tensors: dict[str, F32] = {}
    for tensor in gguf.GGUFReader(options.model).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        rows = values.reshape(tensor.shape[::-1]).astype(np.float32)
        moves = rows.ndim == 2 and rows.shape[1] % GROUP == 0
        tensors[tensor.name] = off_grid(rows, options.noise, generator) if moves else rows
    with open_checkpoint(options.model) as file:
        gguf_writer.write_gguf(options.out, dict(file.metadata), tensors)


if __name__ == "__main__":
    main()
