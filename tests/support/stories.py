"""stories260K, the one real unquantized decoder at hand, as a Hugging Face folder.

``../shared/data/stories260k`` holds it in llama2.c's version-0 layout: seven int32 (dim,
hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size - negative if the output matrix is not the
embedding - and max_seq_len), then float32 matrices, each kind for all layers together, with rope
pairs interleaved. Its tokenizer file is an int32 (longest token), then per token a float32 score,
an int32 length and the bytes.

`convert` writes config.json, model.safetensors, tokenizer.json and their small companions.
`RunTokenizer` is the encoder of llama2.c's run.c, step by step, to hold tokenizer.json against.
"""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy_weights import Weights, unpermute_rope
from places import SHARED_DATA
from safetensors.numpy import save_file

DATA = SHARED_DATA
STORIES_BIN = DATA / "stories260k" / "stories260K.bin"
STORIES_TOKENIZER = DATA / "stories260k" / "tok512.bin"
TINYSTORIES = DATA / "tinystories" / "tinystories_1000.json"

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3  # ids 3..258 are the bytes, <0x00> to <0xFF>
FIRST_PIECE = FIRST_BYTE + 256
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space

CONFIG = {  # what is the same for every model in this layout
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": BOS,
    "eos_token_id": [BOS, EOS],  # stories were joined by BOS, and run.c stops at it
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}
BOS_FIRST = [{"SpecialToken": {"id": "<s>", "type_id": 0}}]
TEXT_A, TEXT_B = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
NORMALIZERS = [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]
DECODERS = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def tinystories(count: int) -> list[str]:
    """The first `count` TinyStories, without the white space around them."""
    stories = json.loads(TINYSTORIES.read_text("utf-8"))
    return [str(s).strip() for s in stories[:count]]


def read_model(path: Path = STORIES_BIN) -> tuple[dict[str, Any], Weights]:
    """Config (Hugging Face keys, as transformers 4 writes them) and weights (Hugging Face names).

    The q and k rows are reordered to half-split rope pairs.
    """
    blob = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, max_len = struct.unpack_from("<7i", blob)
    floats = np.frombuffer(blob, "<f4", offset=28)
    head_dim = dim // heads
    kv_dim = kv_heads * head_dim
    at = 0

    def take(*shape: int) -> npt.NDArray[np.float32]:
        nonlocal at
        begin, at = at, at + int(np.prod(shape))
        return floats[begin:at].reshape(shape).astype(np.float32)

    weights: Weights = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    per_layer = {  # in the order of the file
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv_dim, dim),
        "self_attn.v_proj": (kv_dim, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    for name, shape in per_layer.items():
        for i, w in enumerate(take(layers, *shape)):
            pairs_first = name.endswith(("q_proj", "k_proj"))
            rows = unpermute_rope(w, len(w) // head_dim) if pairs_first else w
            weights[f"model.layers.{i}.{name}.weight"] = np.ascontiguousarray(rows)
    weights["model.norm.weight"] = take(dim)
    take(2, max_len, head_dim // 2)  # cosines and sines, which readers compute themselves
    if vocab < 0:
        weights["lm_head.weight"] = take(-vocab, dim)
    if at != len(floats):
        raise ValueError(f"expected {at} floats after the header of {path.name}, got {len(floats)}")
    config = CONFIG | {
        "hidden_size": dim,
        "intermediate_size": hidden,
        "max_position_embeddings": max_len,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": vocab > 0,
        "vocab_size": abs(vocab),
    }
    return config, weights


@dataclass(frozen=True)
class RunTokenizer:
    """The tokenizer of llama2.c's run.c: greedy merges of the best-scored adjacent pair."""

    pieces: list[bytes]
    scores: list[float]

    @classmethod
    def read(cls, path: Path = STORIES_TOKENIZER) -> RunTokenizer:
        """Read a llama2.c tokenizer file."""
        blob, at = path.read_bytes(), 4
        pieces, scores = [], []
        while at < len(blob):
            score, length = struct.unpack_from("<fi", blob, at)
            pieces.append(blob[at + 8 : at + 8 + length])
            scores.append(score)
            at += 8 + length
        return cls(pieces, scores)

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of `text`: BOS, a space before the text, code points or else their bytes,
        then, until nothing merges, the adjacent pair whose union scores highest (the leftmost
        of equals) becomes one token."""
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        tokens = []
        for char in " " + text if text else "":
            raw = char.encode()
            tokens += [ids[raw]] if raw in ids else [FIRST_BYTE + b for b in raw]
        unions: dict[tuple[int, int], int | None] = {}  # only a cache of the lookups
        while True:
            best, best_at, best_score = -1, -1, -1e10
            for at, pair in enumerate(itertools.pairwise(tokens)):
                if pair not in unions:
                    unions[pair] = ids.get(self.pieces[pair[0]] + self.pieces[pair[1]])
                union = unions[pair]
                if union is not None and self.scores[union] > best_score:
                    best, best_at, best_score = union, at, self.scores[union]
            if best_at < 0:
                return [BOS, *tokens] if bos else tokens
            tokens[best_at : best_at + 2] = [best]

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`; the space that `encode` put in front is dropped after BOS."""
        out = b""
        for previous, token in itertools.pairwise([-1, *tokens]):
            if FIRST_BYTE <= token < FIRST_PIECE:
                out += bytes([token - FIRST_BYTE])
            elif token >= FIRST_PIECE:
                piece = self.pieces[token]
                out += piece.removeprefix(b" ") if previous == BOS else piece
        return out.decode("utf-8", "replace")


def tokenizer_json(run: RunTokenizer) -> dict[str, Any]:
    """The content of a ``tokenizer.json`` that encodes as `run` does.

    A SentencePiece vocabulary names no merges: every split of a piece into two pieces is one,
    and the score of the piece is its rank. U+2581 in a text reads as a space, as it does in
    every tokenizer of this kind.
    """
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    names += [p.decode().replace(" ", SPACE) for p in run.pieces[FIRST_PIECE:]]
    pieces = set(names[FIRST_PIECE:])
    merges = []
    for i in sorted(range(FIRST_PIECE, len(names)), key=lambda i: -run.scores[i]):
        splits = ((names[i][:n], names[i][n:]) for n in range(1, len(names[i])))
        merges += [[a, b] for a, b in splits if a in pieces and b in pieces]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": names[i], **special, "special": True} for i in (UNK, BOS, EOS)
        ],
        "normalizer": {"type": "Sequence", "normalizers": NORMALIZERS},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*BOS_FIRST, TEXT_A],
            "pair": [*BOS_FIRST, TEXT_A, TEXT_B],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": DECODERS},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": merges,
        },
    }


def convert(folder: Path) -> Path:
    """Write stories260K as a Hugging Face folder, and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = read_model()
    tokenizer_config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "LlamaTokenizer",
    }
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    for name, content in {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config,
        "tokenizer.json": tokenizer_json(RunTokenizer.read()),
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
