"""Every block of docs/tutorial.md runs as it stands, on a tiny model of the family."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from byte_tokenizer import byte_tokenizer
from places import ROOT
from typer.testing import CliRunner

from slmq.cli.app import app

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HIDDEN, LAYERS, POSITIONS, VOCAB = 48, 2, 512, 259
CONFIG = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
    "n_embd": HIDDEN, "n_head": 3, "n_layer": LAYERS, "n_positions": POSITIONS, "n_inner": None,
    "vocab_size": VOCAB, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip


def write_gpt2(folder: Path) -> None:
    """A random GPT-2 whose tokens are bytes, as distilgpt2's repository names its files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (VOCAB, HIDDEN), "wpe.weight": (POSITIONS, HIDDEN)}
    sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    tensors = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    norms = ["ln_f", *(f"h.{i}.{norm}" for i in range(LAYERS) for norm in ("ln_1", "ln_2"))]
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(HIDDEN), f"{name}.bias": np.zeros(HIDDEN)}
    for i in range(LAYERS):
        for name, (inputs, outputs) in sizes.items():
            stem = f"h.{i}.{name}"
            k, n = inputs * HIDDEN, outputs * HIDDEN
            tensors[f"{stem}.weight"] = rng.standard_normal((k, n)) / k**0.5
            tensors[f"{stem}.bias"] = rng.standard_normal(n) / 10
    floats = {name: values.astype(np.float32) for name, values in tensors.items()}
    safetensors.numpy.save_file(floats, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    byte_tokenizer().save(str(folder / "tokenizer.json"))


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block of the page."""
    return BLOCK.findall(PAGE.read_text("utf-8"))


@pytest.mark.skipif(not PAGE.is_file(), reason="reads the source tree")
def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder of this name comes before the catalogue's model
    write_gpt2(tmp_path / "distilgpt2")
    for name in ("some", "other"):
        text = f"An {name} llama sat on a hill, and the sun was red. " * 40
        (tmp_path / f"{name}-text.txt").write_text(text, "utf-8")
    said: list[str] = []
    for language, text in blocks():
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            said.append(capsys.readouterr().out)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "slmq"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (line, done.output)
            said.append(done.stdout)
    assert "distilgpt2-int8 has 8.5 bits per weight" in said[0]
    eight = (
        tmp_path / name / "model.safetensors" for name in ("distilgpt2-int8", "distilgpt2-8bit")
    )
    first, second = (path.read_bytes() for path in eight)
    assert first == second  # Python and the command write the same folder
    assert "same most likely token" in said[4]
    stored = safetensors.numpy.load_file(tmp_path / "distilgpt2-float16" / "model.safetensors")
    assert {values.dtype for values in stored.values()} == {np.dtype(np.float16)}


def test_it_takes_ten_lines_and_four_commands() -> None:
    (python, program), (shell, commands) = blocks()[:2]
    assert (python, shell) == ("python", "sh")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    assert len(commands.splitlines()) == 4
