"""Encoders under the names and configurations of their first files, and of transformers' now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import rewrite_tensors
from encoder_golden import EncoderGolden, open_runner, read_encoder

from slmq.errors import UnsupportedModelError
from slmq.models import gte, nomic_bert


def copied(
    golden: EncoderGolden,
    target: Path,
    rename: Callable[[str], list[str]],
    config: dict[str, Any] | None = None,
) -> Path:
    """A golden model with other names; a tensor that gets several is cut into as many parts."""
    shutil.copytree(golden.folder, target)
    rewrite_tensors(target / "model.safetensors", rename)
    if config is not None:
        (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def assert_alike(golden: EncoderGolden, folder: Path) -> None:
    got, want = open_runner(folder, format="f32"), open_runner(golden.folder, format="f32")
    for runners in ((got.states, want.states), (got.heads, want.heads)):
        if runners[0] == got.heads and not golden.heads:
            continue
        pairs = zip(*(run(golden.texts) for run in runners), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def in_parts(name: str, table: dict[str, list[str]]) -> list[str]:
    """The first match of a table, or the name as it is."""
    for old, new in table.items():
        if old in name:
            return [name.replace(old, one) for one in new]
    return [name]


QKV = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


@pytest.mark.parametrize("case", ["three_labels", "masks", "tags_without_types"])
def test_gte_in_the_names_of_transformers(case: str, tmp_path: Path) -> None:
    golden = read_encoder("gte", case)

    def rename(name: str) -> list[str]:
        name = name.replace("encoder.layer.", "layers.").replace("attn_ln", gte.PLAIN.attn_norm)
        name = name.replace("mlp_ln", gte.PLAIN.mlp_norm).replace(
            "lm_head.norm", "lm_head.layer_norm"
        )
        return in_parts(
            name.replace("attention.o_proj", "self_attn.o_proj"),
            {"attention.qkv_proj": QKV, "mlp.up_gate_proj": ["mlp.up_proj", "mlp.gate_proj"]},
        )

    assert_alike(golden, copied(golden, tmp_path / "m", rename))


def test_gte_as_it_was_first_published(tmp_path: Path) -> None:
    golden = read_encoder("gte", "three_labels")
    config = json.loads((golden.folder / "config.json").read_text("utf-8"))
    theta = config.pop("rope_parameters")["rope_theta"]
    config |= {"model_type": "new", "rope_theta": theta, "position_embedding_type": "rope"}
    folder = copied(golden, tmp_path / "m", lambda name: [name.replace("gte.", "new.")], config)
    assert_alike(golden, folder)


def test_gte_ntk_scaling() -> None:
    """The base grows by the factor, and frequencies shrink by its root of half the head's size."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 9, "vocab_size": 9}
    layers = {"num_hidden_layers": 1, "rope_theta": 20000, **sizes}
    scaled = gte.Config.from_dict({**layers, "rope_scaling": {"type": "ntk", "factor": 8.0}})
    channels = np.arange(0, 32, 2)
    want = 1.0 / (20000 * 8.0) ** (channels / 32) / 8.0 ** (2 / 32)
    assert np.allclose(scaled.rope.at(100).frequencies, want, rtol=1e-6)
    for wrong in ({"mixed_b": 0.6}, {"type": "curious"}):
        with pytest.raises(UnsupportedModelError):
            gte.Config.from_dict(
                {**layers, "rope_scaling": {"type": "ntk", "factor": 8.0, **wrong}}
            )
    with pytest.raises(UnsupportedModelError, match="logn_attention_scale"):
        gte.Config.from_dict({**layers, "logn_attention_scale": True})


@pytest.mark.parametrize("case", ["pairs_one_score", "masks_gelu", "body"])
def test_nomic_bert_in_the_names_of_transformers(case: str, tmp_path: Path) -> None:
    golden = read_encoder("nomic_bert", case)
    table = {
        "attn.Wqkv": QKV,
        "attn.out_proj": ["self_attn.o_proj"],
        "fc11": ["up_proj"],
        "fc12": ["gate_proj"],
        "fc2": ["down_proj"],
        "norm1": ["post_attention_layernorm"],
        "norm2": ["post_mlp_layernorm"],
        "emb_ln": ["embeddings.LayerNorm"],
    }
    folder = copied(
        golden,
        tmp_path / "m",
        lambda name: in_parts(name.replace("encoder.layers", "layers"), table),
    )
    assert_alike(golden, folder)


def test_nomic_bert_as_it_was_first_published(tmp_path: Path) -> None:
    golden = read_encoder("nomic_bert", "body")
    config = json.loads((golden.folder / "config.json").read_text("utf-8"))
    first = {
        theirs: config[ours] for ours, theirs in nomic_bert.OTHER_NAMES.items() if ours in config
    }
    first |= {
        "model_type": "nomic_bert",
        "vocab_size": config["vocab_size"],
        "type_vocab_size": 2,
        "rotary_emb_base": 1000,
        "n_positions": 8192,
        "max_trained_positions": 128,
        "rotary_scaling_factor": 2,
        "activation_function": "swiglu",
    }
    folder = copied(golden, tmp_path / "m", lambda name: [name], first)
    assert_alike(golden, folder)
    assert open_runner(folder).body.config.max_positions == 128


@pytest.mark.parametrize(
    "wrong",
    [
        {"prenorm": True},
        {"rotary_emb_interleaved": True},
        {"rotary_emb_fraction": 0.5},
        {"hidden_act": "relu"},
        {"n_embd": 64, "activation_function": "gelu"},
        {"n_embd": 64, "activation_function": "swiglu", "rotary_emb_scale_base": 512},
    ],
)
def test_nomic_bert_refusals(wrong: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 9, "vocab_size": 9}
    with pytest.raises(UnsupportedModelError):
        nomic_bert.Config.from_dict({**sizes, "num_hidden_layers": 1, **wrong})
