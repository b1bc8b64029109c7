"""`slmq train --config`: files in the words of mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slmq.cli.app import app
from slmq.cli.train_config import read_config
from slmq.errors import DataError

# As mlx-lm's example has them, with its comments.
EXAMPLE = """\
# The path to the local model directory or Hugging Face repo.
model: "some/model"
train: true

# The fine-tuning method
fine_tune_type: lora
optimizer: adamw
# optimizer_config:
#   adamw:
#     betas: [0.9, 0.98]
data: "path/to/#1"   # a folder
seed: 0
num_layers: 16
batch_size: 4
iters: 1000
val_batches: 25
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
resume_adapter_file: null
adapter_path: 'adapters'
save_every: 100
test: false
test_batches: 100
max_seq_length: 2048
grad_checkpoint: false
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
lr_schedule:
  name: cosine_decay
  warmup: 100
  arguments: [1e-4, 1000, 1e-7]
"""


def test_the_example_of_mlx_lm(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EXAMPLE, "utf-8")
    found = read_config(path)
    assert found[:3] == ("some/model", "path/to/#1", "adapters")
    assert found.options == {
        "type": "lora", "optimizer": "adamw", "seed": 0, "num_layers": 16, "batch_size": 4,
        "iters": 1000, "val_batches": 25, "learning_rate": 1e-4, "steps_per_report": 10,
        "steps_per_eval": 200, "save_every": 100, "max_seq_length": 2048, "grad_checkpoint": False,
        "rank": 8, "keys": ("self_attn.q_proj", "self_attn.v_proj"), "alpha": 160.0,
        "schedule": "cosine", "warmup": 100,
    }  # fmt: skip


def test_lists_below_their_key_and_json(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for text in (
        "keys:\n- q_proj\n- v_proj\n",
        "keys:\n  - q_proj\n  - 'v_proj'\n",
        '{"keys": ["q_proj", "v_proj"]}',
    ):
        path.write_text(text, "utf-8")
        assert read_config(path).options == {"keys": ("q_proj", "v_proj")}
    full = "fine_tune_type: full\nlora_parameters:\n  rank: 4\n"  # which mlx-lm does not look at
    path.write_text(full, "utf-8")
    assert read_config(path).options == {"type": "full"}
    decay = "optimizer_config:\n  adam:\n  adamw:\n    weight_decay: 0.5\n"
    path.write_text(decay, "utf-8")
    assert read_config(path).options == {"weight_decay": 0.5}
    path.write_text("# nothing\n", "utf-8")
    assert read_config(path).options == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iters 5", "line 1: expected keys with values"),
        ("iters: 5\niters: 6", "line 2: expected keys"),
        ("iters: 5\n  seed: 1", "line 2: expected keys"),
        ("lora_parameters: 5", "lora_parameters: expected keys and values, got int 5"),
        ("lora_parameters: &a", "line 1: expected keys"),
        ("keys: [a, [b]]", "line 1: expected keys"),
        ("keys: 'a", "line 1: expected keys"),
        ("itres: 5", "itres: not known"),
        ("train: false", "train: expected true, got bool False"),
        ("fine_tune_type: dora", "fine_tune_type: expected 'lora' or 'full', got str 'dora'"),
        ("resume_adapter_file: x", "resume_adapter_file: expected nothing, got str 'x'"),
        ("model: 5", "model: expected a text, got int 5"),
        ("lora_parameters:\n  dropout: 0.1", "dropout is not done"),
        ("lora_parameters:\n  alpha: 1", "lora_parameters: alpha: not known"),
        ("lora_parameters:\n  scale: x", "scale: expected a number, got str 'x'"),
        ("lr_schedule:\n  name: steps", "name: expected cosine_decay, .* got str 'steps'"),
        ("lr_schedule:\n  name: constant\n  warmup_init: 1e-7", "a warm-up begins at 0"),
        ("optimizer_config:\n  adamw:\n    betas: [0.9, 0.98]", "betas: not known"),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_not_understood(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_config(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_config(tmp_path / "nowhere")
    path = tmp_path / "config"
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="expected UTF-8"):
        read_config(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(DataError, match="expected at most 1048576 bytes"):
        read_config(path)


def test_a_run_by_a_file(longer_model_path: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.jsonl").write_text('{"text": "it is seven"}\n' * 3, "utf-8")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {longer_model_path}\ndata: {texts}\nadapter_path: {tmp_path / 'out'}\n"
        f"iters: 3\nbatch_size: 1\noptimizer: adam\nlora_parameters:\n  rank: 2\n  scale: 3\n",
        "utf-8",
    )
    done = CliRunner().invoke(app, ["train", "-c", str(path), "--iters", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["iterations"] == 2  # what is given goes before
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    path.write_text("iters: 0\n", "utf-8")
    for arguments, message in (
        (["-c", str(path), str(longer_model_path), "--data", str(texts)], "expected an int >= 1"),
        ([str(longer_model_path)], "expected a folder, here or in --config"),
        (["--data", str(texts)], "expected a model, here or in --config"),
    ):
        done = CliRunner().invoke(app, ["train", *arguments])
        assert done.exit_code != 0
        assert message in " ".join(done.stderr.split())
