"""Small tokenizers as files of both kinds, and text to try them on."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from places import SHARED_DATA
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, trainers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

DATA = SHARED_DATA

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<think>", "    ")

WORDS = """
the of and a in to was is for on it's I'll we've DON'T can't HTTPServer snake_case
x86_64 3.14 1,000,000 2026-01-31 0xFF 100% foo(bar) {} [] == != -> :: ... -- " `` '' $5
€5 № ¿ <think> </think> <|im_start|> <|im_end|> <|endoftext|> <|im_start im_end|>
https://a.b/c?d=e&f=1 #include naïve Straße Ωμέγα Привет עברית العربية हिन्दी ไทย 한국어
吾輩は 猫 である。 東京 ｱｲｳ １２３ ٣٤ ½ ² Ⅷ ﬁ ſ İ é ä 😀 👩‍👩‍👧 🇯🇵 ❤️ 👍🏽
""".split()  # noqa: SIM905 - easier to read and to add to
SPACES = [
    " ",
    "  ",
    "    ",
    "     ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "",
]


@lru_cache
def lines(count: int = 2500) -> list[str]:
    """Awkward lines: words of many scripts between all kinds of white space, and stray characters.

    Where ``../shared/data`` is present, a third of them are English and Japanese sentences.
    """
    rng = random.Random(7)
    made = []
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(1, 12))
        made.append("".join(word + rng.choice(SPACES) for word in words))
    for _ in range(count // 10):
        codes = rng.choices([*range(0x250), *range(0x2000, 0x2070), 0x1F600, 0x10FFFF], k=8)
        made.append("".join(map(chr, codes)))
    for path in (DATA / "wikitext2" / "wiki.test.raw", DATA / "ja" / "neko.txt"):
        if path.exists():
            made += path.read_text(encoding="utf-8").splitlines()[: count // 3]
    return ["", *made]


def train(pre_tokenizer: dict[str, Any], *, normalizer: str | None = None) -> Tokenizer:
    """A byte-level BPE of 900 tokens whose cutting is given as in a tokenizer.json."""
    description = {
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "pre_tokenizer": pre_tokenizer,
        "normalizer": normalizer and {"type": normalizer},
    }
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[AddedToken(text, normalized=False) for text in SPECIAL],
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    for text in USER_DEFINED:
        tokenizer.add_tokens([AddedToken(text, normalized=False)])
    return tokenizer


def bos_first(tokenizer: Tokenizer) -> None:
    """Let a tokenizer put its first special token before every text."""
    tokenizer.post_processor = TemplateProcessing(
        single=[SPECIAL[0], "$A"], special_tokens=[(SPECIAL[0], 0)]
    )


def gguf_keys(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """What llama.cpp's converter writes about a byte-level tokenizer."""
    description = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = dict.fromkeys(SPECIAL, 3) | dict.fromkeys(USER_DEFINED, 4)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(text, 1) for text in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in description["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    }


def write_gguf(path: Path, keys: dict[str, Any]) -> Path:
    """Write a GGUF file that holds these keys and no tensors; None leaves a key out."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_int64(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_folder(path: Path, files: dict[str, Any]) -> Path:
    """Write a safetensors folder with these files: strings or JSON; None leaves a file out."""
    path.mkdir(exist_ok=True)
    save_file({"x": np.zeros(1, np.float32)}, path / "model.safetensors")
    for name, value in ({"config.json": {"model_type": "llama"}} | files).items():
        if value is not None:
            target = path / name
            target.parent.mkdir(exist_ok=True)
            text = value if isinstance(value, str) else json.dumps(value)
            target.write_text(text, encoding="utf-8")
    return path
