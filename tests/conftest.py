"""Models that tests share: a tiny one from the goldens, the real one, and the data beside us."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from byte_tokenizer import byte_tokenizer
from golden import GOLDENS
from places import SHARED_DATA

from slmq import hub
from slmq.errors import DownloadError, ModelNotFoundError

# Two seconds for each process with a cache of its own; tests/plan/test_tuning.py turns it on.
os.environ.setdefault("SLMQ_TUNE", "0")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of odd sizes with a tokenizer of bytes and a chat template."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    shutil.copytree(GOLDENS / "llama" / "odd_sizes", folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
    config = json.dumps(special | {"chat_template": CHAT_TEMPLATE})
    (folder / "tokenizer_config.json").write_text(config, "utf-8")
    return folder


@pytest.fixture(scope="session")
def longer_model_path(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with room for a conversation."""
    folder = tmp_path_factory.mktemp("longer") / "longer-llama"
    shutil.copytree(tiny_model_path, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    longer = json.dumps(config | {"max_position_embeddings": 1024})
    (folder / "config.json").write_text(longer, "utf-8")
    return folder


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, downloaded into the cache when it is not there.

    Tests that use it are slow.
    """
    try:
        return hub.resolve("smollm2-135m-instruct").path
    except (DownloadError, ModelNotFoundError) as error:
        pytest.skip(f"SmolLM2-135M-Instruct is not cached and cannot be downloaded: {error}")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2, as `smollm2_path`."""
    try:
        return hub.resolve("all-minilm-l6-v2").path
    except (DownloadError, ModelNotFoundError) as error:
        pytest.skip(f"all-MiniLM-L6-v2 is not cached and cannot be downloaded: {error}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED_DATA
