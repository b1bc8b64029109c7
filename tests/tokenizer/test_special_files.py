"""Whatever is opened by name in a model's folder is a regular file of plausible size."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import GOLDENS

from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError, TokenizerError
from slmq.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")

MODEL = GOLDENS / "llama" / "odd_sizes"
NAMES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "quantize_config.json",
    "quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "merges.txt",
    "vocab.json",
)
OLDER = {"added_tokens.json", "tokenizer.model", "spiece.model", "merges.txt", "vocab.json"}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder_at(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def opened(folder: Path) -> BaseException | None:
    """What loading the folder's weights and tokenizer raises, given ten seconds."""
    raised: list[BaseException] = []

    def load() -> None:
        try:
            with open_checkpoint(folder) as checkpoint:
                from slmq.weights.reader import WeightReader

                WeightReader(checkpoint, format=None, threads=1)
                load_tokenizer(checkpoint)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for a pipe"
    return raised[0] if raised else None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [pipe, endless, folder_at, huge])
def test_special_files_are_refused(
    name: str, make: Callable[[Path], None], tiny_model_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    assert opened(folder) is None
    path = folder / name
    path.unlink(missing_ok=True)
    if name in OLDER:
        (folder / "tokenizer.json").unlink()
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    if name in ("merges.txt", "vocab.json"):
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (folder / "vocab.json").write_text('{"a": 0}')
        (folder / "merges.txt").write_text("")
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    make(path)
    error = opened(folder)
    assert isinstance(error, CheckpointError | TokenizerError), repr(error)
    if make is huge:
        assert "expected" in str(error)
    else:
        assert "expected a regular file" in str(error)


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    for make in (pipe, endless, folder_at):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder / "x.gguf")
        with pytest.raises(CheckpointError, match="expected a regular file"):
            open_checkpoint(folder)
