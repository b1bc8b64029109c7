"""Sizes, names and metadata of models with states, for random_gguf.py: LFM2 and Qwen3.5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slmq.models import lfm2, qwen3_5_text

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["STATEFUL", "StatefulShape"]

F32 = npt.NDArray[np.float32]
Matrices = Iterator[tuple[str, tuple[int, int]]]
Vectors = Iterator[tuple[str, F32]]

STATEFUL = {"lfm2": "lfm2", "qwen3_5_text": "qwen35"}
SECTIONS = (11, 11, 10, 0)  # of pictures; llama.cpp wants them said


class StatefulShape:
    """A model by its configuration, in Hugging Face's terms.

    Parameters
    ----------
    config : mapping
        Of one of the model types in `STATEFUL`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.architecture = STATEFUL[config["model_type"]]
        self._convolves = self.architecture == "lfm2"
        family = lfm2 if self._convolves else qwen3_5_text
        self.cfg: Any = family.Config.from_dict(config)
        self.vocab: int = self.cfg.vocab_size
        self.layers: int = self.cfg.n_layers
        self.tied: bool = self.cfg.tied

    @cached_property
    def _states(self) -> tuple[bool, ...]:
        """Which layers have a state."""
        states: tuple[bool, ...] = self.cfg.convolves if self._convolves else self.cfg.delta
        return states

    def matrices(self) -> Matrices:
        """Name and (outputs, inputs) of every matrix."""
        cfg = self.cfg
        hidden, inner = cfg.hidden_size, cfg.intermediate_size
        yield "token_embd.weight", (self.vocab, hidden)
        if not self.tied:
            yield "output.weight", (self.vocab, hidden)
        for i, has_state in enumerate(self._states):
            if not has_state:
                doubled = 1 if self._convolves else 2  # queries and their gates
                yield f"blk.{i}.attn_q.weight", (doubled * cfg.q_size, hidden)
                yield f"blk.{i}.attn_k.weight", (cfg.kv_size, hidden)
                yield f"blk.{i}.attn_v.weight", (cfg.kv_size, hidden)
                yield f"blk.{i}.attn_output.weight", (hidden, cfg.q_size)
            elif self._convolves:
                yield f"blk.{i}.shortconv.in_proj.weight", (3 * hidden, hidden)
                yield f"blk.{i}.shortconv.out_proj.weight", (hidden, hidden)
            else:
                yield f"blk.{i}.attn_qkv.weight", (2 * cfg.keys + cfg.values, hidden)
                yield f"blk.{i}.attn_gate.weight", (cfg.values, hidden)
                yield f"blk.{i}.ssm_alpha.weight", (cfg.value_heads, hidden)
                yield f"blk.{i}.ssm_beta.weight", (cfg.value_heads, hidden)
                yield f"blk.{i}.ssm_out.weight", (hidden, cfg.values)
            yield f"blk.{i}.ffn_gate.weight", (inner, hidden)
            yield f"blk.{i}.ffn_up.weight", (inner, hidden)
            yield f"blk.{i}.ffn_down.weight", (hidden, inner)

    def vectors(self) -> Vectors:
        """Norms of ones, taps that differ, states that decay."""
        cfg = self.cfg
        hidden = np.ones(cfg.hidden_size, np.float32)
        head = np.ones(cfg.head_dim, np.float32)
        yield "token_embd_norm.weight" if self._convolves else "output_norm.weight", hidden
        behind = "ffn_norm" if self._convolves else "post_attention_norm"
        for i, has_state in enumerate(self._states):
            yield f"blk.{i}.attn_norm.weight", hidden
            yield f"blk.{i}.{behind}.weight", hidden
            if not has_state:
                yield f"blk.{i}.attn_q_norm.weight", head
                yield f"blk.{i}.attn_k_norm.weight", head
            elif self._convolves:
                yield f"blk.{i}.shortconv.conv.weight", taps(cfg.hidden_size, cfg.taps)
            else:
                heads = np.ones(cfg.value_heads, np.float32)
                yield f"blk.{i}.ssm_conv1d.weight", taps(2 * cfg.keys + cfg.values, cfg.taps)
                yield f"blk.{i}.ssm_a", -heads
                yield f"blk.{i}.ssm_dt.bias", heads
                yield f"blk.{i}.ssm_norm.weight", np.ones(cfg.value_dim, np.float32)

    def add_metadata(self, writer: GGUFWriter) -> None:
        """What the file says of the sizes."""
        cfg = self.cfg
        writer.add_vocab_size(self.vocab)
        writer.add_context_length(cfg.max_positions)
        writer.add_embedding_length(cfg.hidden_size)
        writer.add_feed_forward_length(cfg.intermediate_size)
        writer.add_block_count(self.layers)
        writer.add_head_count(cfg.n_heads)
        writer.add_key_length(cfg.head_dim)
        writer.add_value_length(cfg.head_dim)
        writer.add_rope_dimension_count(cfg.rope.rotary)
        writer.add_rope_freq_base(cfg.rope.base)
        writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
        if self._convolves:
            writer.add_head_count_kv([0 if state else cfg.n_kv_heads for state in self._states])
            writer.add_shortconv_l_cache(cfg.taps)
            return
        writer.add_head_count_kv(cfg.n_kv_heads)
        writer.add_rope_dimension_sections(SECTIONS)
        writer.add_array("qwen35.attention.recurrent_layers", list(self._states))
        writer.add_ssm_conv_kernel(cfg.taps)
        writer.add_ssm_state_size(cfg.key_dim)
        writer.add_ssm_group_count(cfg.key_heads)
        writer.add_ssm_time_step_rank(cfg.value_heads)
        writer.add_ssm_inner_size(cfg.values)


def taps(channels: int, count: int) -> F32:
    """Taps of convolutions: float32[channels, count]."""
    values: F32 = np.linspace(-0.5, 0.5, channels * count, dtype=np.float32)
    return values.reshape(channels, count)
