"""The tiny model as one that reasons first: two of its tokens begin and end that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tool_templates import THINKING

OPEN, CLOSE = 256, 257  # where the tokenizer of bytes has other special tokens
BIAS = {CLOSE: 3.0, OPEN: -100.0}


def thinking_folder(tiny_model_path: Path, folder: Path) -> Path:
    """A copy of the tiny model in `folder`, with these tokens and a template for them."""
    shutil.copytree(tiny_model_path, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text("utf-8")
        text = text.replace("<|endoftext|>", "<think>").replace("<|im_start|>", "</think>")
        (folder / name).write_text(text, "utf-8")
    config = {"eos_token": "<|im_end|>", "chat_template": THINKING}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
