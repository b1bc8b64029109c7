"""KL divergence from the float model: folders of slmq quantize beside llama.cpp's files.

FLOATS is a folder of floats of the Llama family whose tokenizer and sizes are those of BASE, a GGUF
file: tools/continue_training.py makes one. Its weights go into a GGUF file of floats, from which
llama.cpp makes its types, without and with an importance matrix: the mean squares of inputs on the
same text that slmq calibrates with. Every file runs in slmq, which keeps these types without loss,
so the differences are those of the weights.

    python benchmarks/quantize_peers.py FLOATS --base BASE.gguf --text CALIBRATION --test TEXT \
        --llama PYTHON [--chunks 16]

PYTHON is an interpreter that has llama-cpp-python, as benchmarks/peers.py installs it.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq
from slmq.checkpoint import open_checkpoint
from slmq.engine import open_engine
from slmq.models import llama
from slmq.models.common import interleaved_to_halves
from slmq.quantizer.calibration import collect, read_calibration
from slmq.quantizer.runner import Runner, StageWeights
from slmq.quantizer.stages import FloatSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
gguf_writer: Any = importlib.import_module("gguf_writer")

F32 = npt.NDArray[np.float32]
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}

WORKER = """
import ctypes, sys
import numpy as np
import llama_cpp
source, target, ftype, matrix = sys.argv[1:]
quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: it is called to the end
llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = 2, int(ftype)
if matrix:
    found = np.load(matrix)
    entry = llama_cpp.llama_cpp.llama_model_imatrix_data
    entries = (entry * (len(found.files) + 1))()
    keep = []
    for i, name in enumerate(found.files):
        data = np.ascontiguousarray(found[name], np.float32)
        keep += [data, name.encode()]
        entries[i].name = keep[-1]
        entries[i].data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries[i].size = len(data)
    params.imatrix = entries
assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0
"""


def write_floats(floats: Path, base: Path, path: Path) -> None:
    """A GGUF file with the metadata of `base` and the weights of `floats`."""
    with open_checkpoint(base) as file, open_checkpoint(floats) as checkpoint:
        source = FloatSource(checkpoint, "f32", 2)
        config = source.opened.config
        tensors: dict[str, F32] = {}
        for wish in source.wishes:
            values = np.concatenate(list(source.pieces(wish)))
            for part, heads in (("q_proj", config.n_heads), ("k_proj", config.n_kv_heads)):
                if f".{part}." in wish.tensor.name:
                    ours, values = values, np.empty_like(values)
                    values[interleaved_to_halves(heads, config.head_dim)] = ours
            tensors[llama.GGUF.name(wish.tensor.name)] = values
        gguf_writer.write_gguf(path, dict(file.metadata), tensors)


def write_importance(floats: Path, text: Path, path: Path) -> None:
    """The mean square of every input channel of every matrix, by GGUF names."""
    found: dict[str, F32] = {}
    with open_checkpoint(floats) as checkpoint:
        source = FloatSource(checkpoint, "f32", 2)
        calibration = read_calibration(text, checkpoint, source.opened.config.max_positions)
        runner = Runner(source, calibration, 2)
        hidden: F32 | None = None
        for stage in runner.stages:
            run = runner.run(stage, hidden, StageWeights(source))
            moments, hidden = collect(run, len(calibration.tokens), 2)
            for some in moments:
                for wish in some.wishes:
                    found[llama.GGUF.name(wish.tensor.name)] = some.importance
    np.savez(path, **found)  # type: ignore[arg-type]


def bits_of(model: Path) -> float:
    """Stored bits per weight of the matrices."""
    with open_checkpoint(model) as checkpoint:
        matrices = [t for t in checkpoint.tensors.values() if len(t.shape) == 2]
        weights = sum(t.shape[0] * t.shape[1] for t in matrices)
        return 8 * sum(t.nbytes for t in matrices) / weights


def line(label: str, model: Path, floats: Path, text: str, chunks: int) -> None:
    """Prints a line of the table."""
    exact = open_engine(floats, quant="f32", n_threads=2)
    engine = open_engine(model, n_threads=2)
    found = slmq.compare(exact, engine, text, chunks=chunks)
    engine.close()
    exact.close()
    kl, ratio, same = found.kl_mean, found.perplexity_ratio, found.top1_agreement
    print(
        f"| {label} | {bits_of(model):.3f} | {kl} | {found.kl_p99:.3f} "
        f"| {100 * same.value:.1f}% | {ratio.value:.4f} |",
        flush=True,
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("floats", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q4_K_M"], choices=list(TYPES))
    parser.add_argument("--formats", nargs="*", default=["q4g32s", "q4g32a"])
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    parser.add_argument("--chunks", type=int, default=16)
    options = parser.parse_args()
    text = options.test.read_text("utf-8")
    print("| | bits | KL, nats | KL, 99% | same token | perplexity ratio |\n|" + "---|" * 6)
    with tempfile.TemporaryDirectory(dir=options.floats.parent) as name:
        folder = Path(name)
        write_floats(options.floats, options.base, folder / "f32.gguf")
        write_importance(options.floats, options.text, folder / "importance.npz")
        for kind in options.types:
            for matrix in ("", str(folder / "importance.npz")):
                made = folder / "made.gguf"
                arguments = [str(folder / "f32.gguf"), str(made), str(TYPES[kind]), matrix]
                subprocess.run([options.llama, "-c", WORKER, *arguments], check=True)
                label = f"llama.cpp {kind}" + (", importance matrix" if matrix else "")
                line(label, made, options.floats, text, options.chunks)
        wanted: list[dict[str, Any]] = [{"format": fmt} for fmt in options.formats]
        for setting in wanted + [{"bits": bits} for bits in options.bits]:
            for calibrate in (None, options.text):
                ours = slmq.quantize(
                    options.floats, folder / "q", force=True, calibrate=calibrate, **setting
                )
                ((key, value),) = setting.items()
                label = f"slmq {key} {value}" + (", calibrated" if calibrate else "")
                line(label, ours.path, options.floats, text, options.chunks)


if __name__ == "__main__":
    main()
