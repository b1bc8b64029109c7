"""Small folders of encoders, with a tokenizer of words and what sentence-transformers writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from encoder_golden import read_encoder
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

FRAME = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "a man is playing the guitar dog cat eats fast slow in paris lives anna rain sun"
WORDS = TEXT.split()
PIECES = ["##s", "##er", "##ly", ".", ",", "?"]


def word_tokenizer(size: int) -> Tokenizer:
    """A WordPiece tokenizer as BERT has it, of `size` tokens."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    entries = [*FRAME, *WORDS, *PIECES, *(letter for letter in letters if letter not in WORDS)]
    entries += [f"##{letter}" for letter in letters]
    entries = list(dict.fromkeys(entries))[:size]
    entries += [f"[unused{i}]" for i in range(size - len(entries))]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(entries)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(FRAME)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def encoder_folder(target: Path, case: str = "body", family: str = "bert", **config: Any) -> Path:
    """A golden model with a tokenizer of words; `config` changes its configuration."""
    golden = read_encoder(family, case)
    shutil.copytree(golden.folder, target)
    found = json.loads((target / "config.json").read_text("utf-8")) | config
    (target / "config.json").write_text(json.dumps(found), "utf-8")
    word_tokenizer(found["vocab_size"]).save(str(target / "tokenizer.json"))
    names = {f"{name.strip('[]').lower()}_token": name for name in FRAME}
    (target / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    return target


def write_json(path: Path, value: Any) -> None:
    """A file of JSON in a folder that may have to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def rewrite_tensors(file: Path, change: Callable[[str], list[str]], **added: Any) -> None:
    """Give tensors of a .safetensors file other names; several names cut it into as many parts.

    `added` are int64 arrays by name.
    """
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = {}
    parts: list[bytes] = []

    def put(name: str, dtype: str, shape: list[int], piece: bytes) -> None:
        at = sum(map(len, parts))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(piece)]}
        parts.append(piece)

    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        names, (first, end) = change(name), entry["data_offsets"]
        step = (end - first) // len(names)
        shape = [entry["shape"][0] // len(names), *entry["shape"][1:]]
        for i, new in enumerate(names):
            at = begin + first + i * step
            put(new, entry["dtype"], shape, data[at : at + step])
    for name, values in added.items():
        put(name.replace("__", "."), "I64", list(values.shape), values.astype("<i8").tobytes())
    head = json.dumps(header).encode("ascii")
    head += b" " * (-len(head) % 8)
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))


def sentence_folder(
    target: Path,
    *,
    pooling: dict[str, Any] | None = None,
    dense: list[tuple[int, str]] = (),  # type: ignore[assignment]
    normalize: bool = True,
    settings: dict[str, Any] | None = None,
    length: dict[str, Any] | None = None,
) -> Path:
    """A model of sentences as sentence-transformers saves it: BERT, 64 numbers a token."""
    encoder_folder(target)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(
        target / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 64, **(pooling or {"pooling_mode_mean_tokens": True})},
    )
    width = 64
    rng = np.random.default_rng(5)
    for i, (outputs, activation) in enumerate(dense):
        folder = target / f"{i + 2}_Dense"
        kinds.append((folder.name, "Dense"))
        write_json(
            folder / "config.json",
            {
                "in_features": width,
                "out_features": outputs,
                "bias": True,
                "activation_function": f"torch.nn.modules.activation.{activation}",
            },
        )
        tensors = {
            "linear.weight": rng.normal(0, 0.2, (outputs, width)).astype(np.float32),
            "linear.bias": rng.normal(0, 0.2, outputs).astype(np.float32),
        }
        save_file(tensors, folder / "model.safetensors")
        width = outputs
    if normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(target / "modules.json", modules)
    write_json(target / "config_sentence_transformers.json", settings or {})
    write_json(target / "sentence_bert_config.json", length or {"max_seq_length": 64})
    return target
