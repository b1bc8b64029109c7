"""KL divergence from the float model: folders of slmq quantize beside llama.cpp's files.

FLOATS is a GGUF file of floats (tools/off_grid.py makes one), or a folder of floats of the Llama
family whose tokenizer and sizes are those of BASE, a GGUF file: tools/continue_training.py makes
one. llama.cpp makes its types of it, without and with an importance matrix: the mean squares of
inputs on the same text that slmq calibrates with, embedding included. Every file runs in slmq,
which keeps these types without loss, so the differences are those of the weights.

    python benchmarks/quantize_peers.py FLOATS [--base BASE.gguf] --text CALIBRATION --test TEXT \
        --llama PYTHON [--chunks 16] [--types Q4_K_M Q4_K_M:Q5_0]

KIND:TYPE is a mix of llama.cpp whose embedding and head have that type.

PYTHON is an interpreter that has llama-cpp-python, as benchmarks/peers.py installs it.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq
from slmq.checkpoint import open_checkpoint
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.evaluation.divergence import compare_logits
from slmq.evaluation.metrics import exp_of_mean, mean
from slmq.evaluation.windows import cut, leading_bos, scored_blocks, token_ids
from slmq.models import llama
from slmq.models.parts.gguf import interleaved_to_halves
from slmq.quantizer.calibration import collect, read_calibration
from slmq.quantizer.runner import Runner, StageWeights
from slmq.quantizer.source import FloatSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
gguf_writer: Any = importlib.import_module("gguf_writer")

F32 = npt.NDArray[np.float32]
CTX = 512  # tokens of a window; those of its second half are scored, as in `slmq compare`
TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
TENSOR_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ4_NL": 20, "IQ4_XS": 23,
}  # fmt: skip

WORKER = """
import ctypes, sys
import numpy as np
import llama_cpp
source, target, ftype, matrix, embedding = sys.argv[1:]
quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: it is called to the end
llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = 2, int(ftype)
if embedding:
    params.token_embedding_type = params.output_tensor_type = int(embedding)
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
        assert isinstance(config, llama.Config)
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
        names = None if floats.is_file() else llama.GGUF
        source = FloatSource(checkpoint, "f32", 2)
        calibration = read_calibration(text, checkpoint, source.opened.config.max_positions)
        runner = Runner(source, calibration, 2)
        hidden: F32 | None = None
        for stage in runner.stages:
            run = runner.run(stage, hidden, StageWeights(source))
            moments, hidden = collect(run, len(calibration.tokens), 2)
            for some in moments:
                for wish in some.wishes:
                    name = wish.stored if names is None else names.name(wish.tensor.name)
                    found[name] = some.importance
    np.savez(path, **found)  # type: ignore[arg-type]


def bits_of(model: Path) -> float:
    """Stored bits per weight of the matrices."""
    with open_checkpoint(model) as checkpoint:
        matrices = [t for t in checkpoint.tensors.values() if len(t.shape) == 2]
        weights = sum(t.shape[0] * t.shape[1] for t in matrices)
        return 8 * sum(t.nbytes for t in matrices) / weights


class Reference:
    """What the model of floats says about a text: its logits, in a file."""

    def __init__(self, floats: Path, text: str, chunks: int, file: Path) -> None:
        engine = open_engine(floats, LoadOptions(format="f32", n_threads=2))
        ids = token_ids(engine.tokenizer, text)
        self._windows = cut(ids, CTX, chunks, n_ctx=engine.n_ctx, bos=leading_bos(engine.tokenizer))
        size = (len(self._windows) * (CTX - 1 - CTX // 2), engine.n_vocab)
        if not file.exists():
            new = file.with_suffix(".new")
            found = np.memmap(new, np.float32, "w+", shape=size)
            for at, logits, _ in self._blocks(engine):
                found[at : at + len(logits)] = logits
            found.flush()
            new.rename(file)
        engine.close()
        self._logits = np.memmap(file, np.float32, "r", shape=size)

    def line(self, label: str, model: Path) -> str:
        """A line of the table."""
        engine = open_engine(model, LoadOptions(n_threads=2))
        rows = np.concatenate(
            [
                compare_logits(self._logits[at : at + len(logits)], logits, tokens)
                for at, logits, tokens in self._blocks(engine)
            ]
        )
        engine.close()
        kl, same = mean(rows["kl"]), mean(rows["same"])
        ratio = exp_of_mean(rows["log_a"] - rows["log_b"])
        own = exp_of_mean(-rows["log_b"])
        return (
            f"| {label} | {bits_of(model):.3f} | {kl.value:.5f} +- {kl.standard_error:.5f} "
            f"| {np.quantile(rows['kl'], 0.99):.3f} | {100 * same.value:.1f}% "
            f"| {own.value:.3f} | {ratio.value:.4f} +- {ratio.standard_error:.4f} |"
        )

    def _blocks(self, engine: Engine) -> Iterator[tuple[int, F32, npt.NDArray[np.int64]]]:
        at = 0
        for window in self._windows:
            for logits, tokens in scored_blocks(engine, window):
                yield at, logits, tokens
                at += len(logits)


def peer_models(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """llama.cpp's files, with what they are called."""
    matrix = folder / "importance.npz"
    floats = options.floats if options.floats.is_file() else folder / "f32.gguf"
    for wanted in options.types:
        kind, _, embedding = wanted.partition(":")
        for importance in (matrix,) if options.importance else (None, matrix):
            if not floats.exists():
                write_floats(options.floats, options.base, floats)
            if importance is not None and not importance.exists():
                write_importance(options.floats, options.text, importance)
            name = wanted.replace(":", "-embedding-")
            made = folder / f"{name}{'-importance' if importance else ''}.gguf"
            arguments = [str(floats), str(made), str(TYPES[kind]), str(importance or "")]
            arguments.append(str(TENSOR_TYPES[embedding]) if embedding else "")
            if not made.exists():
                subprocess.run([options.llama, "-c", WORKER, *arguments], check=True)
            label = f"{kind}, embedding {embedding}" if embedding else kind
            yield f"llama.cpp {label}" + (", importance matrix" if importance else ""), made


def our_models(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Folders of slmq, with what they are called."""
    text: dict[str, Any] = {"calibrate": options.text, "method": options.method}
    wanted: list[tuple[str, dict[str, Any]]] = []
    for fmt in options.formats:
        wanted += [(fmt, {"format": fmt}), (f"{fmt}, calibrated", {"format": fmt, **text})]
    wanted += [(f"{b:g} bits, calibrated", {"bits": b, **text}) for b in options.bits]
    for label, setting in wanted:
        made = folder / label.replace(", ", "-").replace(" ", "-")
        if not made.exists():
            slmq.quantize(options.floats, made, **setting)
        yield f"slmq {label}", made


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("floats", type=Path)
    parser.add_argument("--base", type=Path, help="needed where FLOATS is a folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--types", nargs="*", default=["Q4_0", "Q4_K_M"], help=", ".join(TYPES))
    parser.add_argument("--importance", action="store_true", help="no llama.cpp files without it")
    parser.add_argument("--formats", nargs="*", default=["q4g32s", "q4g32a"])
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    parser.add_argument("--method", default="auto", help="of those that are calibrated")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--keep", type=Path, help="folder of what is made; what is there is used")
    options = parser.parse_args()
    text = options.test.read_text("utf-8")
    with tempfile.TemporaryDirectory(dir=options.floats.parent) as name:
        folder = options.keep or Path(name)
        folder.mkdir(exist_ok=True)
        reference = Reference(options.floats, text, options.chunks, folder / "logits")
        print("| | bits | KL, nats | KL, 99% | same token | perplexity | over floats |")
        print("|" + "---|" * 7, flush=True)
        for label, model in chain(peer_models(options, folder), our_models(options, folder)):
            print(reference.line(label, model), flush=True)


if __name__ == "__main__":
    main()
