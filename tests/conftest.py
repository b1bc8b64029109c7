"""Models that tests share: a tiny one from the goldens, the real one, and the data beside us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden import GOLDENS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from slmq import hub
from slmq.errors import DownloadError, ModelNotFoundError

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token per byte (ids 0-255, in the byte-level alphabet's order), then `SPECIALS`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return tokenizer


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
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, downloaded into the cache when it is not there.

    Tests that use it are slow.
    """
    try:
        return hub.resolve("smollm2-135m-instruct").path
    except (DownloadError, ModelNotFoundError) as error:
        pytest.skip(f"SmolLM2-135M-Instruct is not cached and cannot be downloaded: {error}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED_DATA
