"""What training writes: an adapter as PEFT has it, and the state to go on from.

Each file appears whole or not at all, under its name. Of a run that was killed the last state is
therefore whole; the adapter is written before it, and anew from it when the run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.safetensors import open_single
from slmq.engine.training.low_rank import LowRankPair, LowRanks
from slmq.errors import CheckpointError, WriteError
from slmq.machine.disk import create, publish, remove

__all__ = [
    "STATE",
    "read_state",
    "seconds_to_write",
    "write_adapter",
    "write_parts",
    "write_state",
    "write_text",
]

F32 = npt.NDArray[np.float32]
CONFIG, TENSORS, STATE = "adapter_config.json", "adapter_model.safetensors", "training.safetensors"
PREFIX = "base_model.model."
TRIED_BYTES = 64 << 20  # that are written to learn how fast a folder takes them
TRIED_PIECE = 1 << 20
SMALL_BYTES = 16 << 20  # that no run waits for


def write_adapter(folder: Path, low_ranks: LowRanks, values: F32, base: str) -> None:
    """Write the adapter of these parameters, a folder that PEFT and slmq load.

    Raises
    ------
    WriteError
        The disk is full, or the folder is not ours.
    """
    at, tensors = 0, dict[str, F32]()
    rank = low_ranks.rank
    for module, pair in low_ranks.pairs.items():
        for name, view, width in (("A", pair.a, pair.size.k), ("B", pair.b_turned, pair.size.n)):
            part = values[at : at + view.size].reshape(view.shape)[:, :width]
            at += view.size
            tensors[f"{PREFIX}{module}.lora_{name}.weight"] = (
                part if name == "A" else _b(pair, part)
            )
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": low_ranks.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(low_ranks.pairs),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    write_parts(folder / TENSORS, _safetensors(tensors, {"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _b(pair: LowRankPair, turned: F32) -> F32:
    """B with its rows in the order of the model's own files."""
    order = pair.size.order
    b: F32 = np.empty_like(turned.T)
    b[slice(None) if order is None else order] = turned.T
    return b


def write_state(folder: Path, tensors: Mapping[str, F32], facts: Mapping[str, Any]) -> None:
    """Write all that a run needs to go on with the same bits; errors as `write_adapter`."""
    write_parts(folder / STATE, _safetensors(tensors, {"slmq": json.dumps(facts)}))


def read_state(folder: Path, into: Mapping[str, F32]) -> dict[str, Any]:
    """Read what `write_state` wrote into these arrays, and return what it says of the run.

    What the state lacks stays as it is; it has at least values, mean and square.

    Raises
    ------
    CheckpointError
        It is damaged, or of another run.
    """
    path = folder / STATE
    stored = open_single(path, {})
    with stored:
        text = stored.file_metadata.get("slmq", "")
        for name, info in stored.tensors.items():
            if name not in into:
                continue
            if info.dtype != "f32" or tuple(info.shape) != into[name].shape:
                raise CheckpointError(
                    f"expected float32 {list(into[name].shape)}, found {info.dtype} "
                    f"{list(info.shape)}: is it the state of another model or rank?",
                    file=path,
                    tensor=name,
                )
            into[name][:] = stored.read(name).view("<f4")
            stored.release(name)
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise CheckpointError("expected the state of a training run", file=path) from error
    if not isinstance(facts, dict) or not {"values", "mean", "square"} <= stored.tensors.keys():
        raise CheckpointError("expected the state of a training run", file=path)
    return facts


def write_text(path: Path, text: str) -> None:
    """Write a file of text; errors as `write_adapter`."""
    write_parts(path, [text.encode("utf-8")])


def _safetensors(
    tensors: Mapping[str, F32], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """A file in parts: a copy of all parameters would be the most memory that a run takes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in tensors.items():
        end = at + 4 * tensor.size
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        yield np.ascontiguousarray(tensor, "<f4").reshape(-1).view(np.uint8).data


def seconds_to_write(folder: Path, nbytes: int) -> float:
    """How long a folder takes for so many bytes, from a part of them that is written and removed;
    errors as `write_adapter`."""
    if nbytes < SMALL_BYTES:
        return 0.0
    pieces = min(nbytes, TRIED_BYTES) // TRIED_PIECE
    path, piece = folder / ".trial", bytes(TRIED_PIECE)
    began_s = time.monotonic()
    write_parts(path, (piece for _ in range(pieces)))
    took_s = time.monotonic() - began_s
    remove(path, folder)
    return took_s * nbytes / (pieces * TRIED_PIECE)


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file of these parts; errors as `write_adapter`."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = create(part, path.parent)
        try:
            for data in parts:
                file.write(data)
            publish(file, part, path, path.parent)
        except BaseException:
            file.close()
            remove(part, path.parent)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"cannot write {path}: {reason}; what was there before is whole"
        ) from error
