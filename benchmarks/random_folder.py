"""Writes a folder of packed random weights of a known shape, with a tokenizer of real size.

    python benchmarks/random_folder.py FOLDER [--shape tinyllama-1.1b] [--format q4g32s]

What such a model says is noise; how fast it loads and runs is that of a real one. Folders of the
same arguments are the same, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from slmq.checkpoint.packed_folder import PackedWriter
from slmq.formats import format_named
from slmq.speed.shapes import Shape, random_blocks, shape_named

SPECIALS = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_weights(path: Path, shape: Shape, format_name: str) -> None:
    """model.safetensors: random tiles, vectors of ones."""
    tensors = [wish.tensor for wish in shape.weights(format_named(format_name))]
    blocks: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}
    with PackedWriter(path, tensors) as file:
        for tensor in tensors:
            if len(tensor.shape) == 1:
                file.write(np.ones(tensor.shape, "<f4").tobytes())
            else:
                fmt, width = format_named(tensor.format), tensor.shape[1]
                key = (fmt.name, 0 if fmt.run else width)
                if key not in blocks:
                    blocks[key] = random_blocks(fmt, width, np.random.default_rng(0))
                block = blocks[key]
                copies = -(-tensor.nbytes // len(block))
                file.write(np.tile(block, copies)[: tensor.nbytes].data)


def make_tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens whose merges make words of random letters."""
    rng = random.Random(0)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*"etaoinshrdlucmfwypvbgk", "\u0120"]
    pieces, seen, merges = list(letters), set(tokens), []
    while len(tokens) + len(SPECIALS) < size:
        left, right = rng.choice(pieces), rng.choice(pieces)
        if left + right not in seen and len(left + right) <= 12:
            merges.append((left, right))
            for found in (tokens, pieces):
                found.append(left + right)
            seen.add(left + right)
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *tokens])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return tokenizer


def write_folder(folder: Path, shape: Shape, format_name: str) -> None:
    """All files of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / "model.safetensors", shape, format_name)
    make_tokenizer(shape.config["vocab_size"]).save(str(folder / "tokenizer.json"))
    texts = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(texts), "utf-8")
    config = {**shape.config, "slmq": {"source": []}}
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--format", default="q4g32s")
    given = parser.parse_args()
    write_folder(given.folder, shape_named(given.shape), given.format)


if __name__ == "__main__":
    main()
