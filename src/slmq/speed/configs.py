"""What config.json says of the models in the catalogue, as far as a shape needs it.

Dimensions, windows, biases and ties are those of the published files, and so is what else decides
which steps a family records. Left out is what only changes numbers: longrope's divisors are ones.
The numbers are those of config.json on the hub, of the repositories that the catalogue names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["CONFIGS"]

Config = dict[str, Any]


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


def decoder(*sizes: int, **more: Any) -> Config:
    """`SIZES` in their order, and what else a configuration says."""
    common = {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    return dict(zip(SIZES, sizes, strict=True)) | common | more


def llama(*sizes: int, **more: Any) -> Config:
    """Llama: TinyLlama, SmolLM2, Orca 2."""
    return decoder(*sizes, model_type="llama", **more)


def mistral(*sizes: int, **more: Any) -> Config:
    """Mistral: Mistral 7B from v0.2 on and Rakuten AI 2.0 mini see the whole context."""
    return decoder(*sizes, model_type="mistral", sliding_window=None, **more)


def qwen2(*sizes: int) -> Config:
    """Qwen2.5, TinySwallow: windows are named but off; the small ones are tied."""
    return decoder(
        *sizes,
        32768,
        model_type="qwen2",
        tie_word_embeddings=True,
        use_sliding_window=False,
        sliding_window=32768,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
    )


def qwen3(*sizes: int) -> Config:
    """Qwen3: heads of 128 channels whatever the width."""
    return decoder(
        151936,
        *sizes,
        8,
        40960,
        model_type="qwen3",
        head_dim=128,
        tie_word_embeddings=True,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
    )


def phi3(*sizes: int, **more: Any) -> Config:
    """Phi-3, Phi-3.5, Phi-4 and Phi-4-mini."""
    return decoder(*sizes, model_type="phi3", **more)


def longrope(pairs: int) -> Config:
    """The long contexts of Phi-3.5 and Phi-4-mini, made of 4096 positions."""
    ones = [1.0] * pairs
    return {
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "short_factor": ones, "long_factor": ones},
    }


def gemma(*sizes: int, **more: Any) -> Config:
    """What all Gemmas have: tied, heads of 256 channels."""
    common = {"model_type": "gemma", "head_dim": 256, "tie_word_embeddings": True}
    return decoder(*sizes, **{**common, "rms_norm_eps": 1e-6, **more})


def gemma3(*sizes: int, **more: Any) -> Config:
    """Gemma 3's text models: five layers with a window, then one without."""
    return gemma(
        *sizes,
        model_type="gemma3_text",
        query_pre_attn_scalar=256,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        sliding_window_pattern=6,
        hidden_activation="gelu_pytorch_tanh",
        **more,
    )


STABLELM: Config = {
    "model_type": "stablelm",
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "layer_norm_eps": 1e-5,
    "hidden_act": "silu",
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000,
    "use_qkv_bias": True,
}


def lfm2(*sizes: int) -> Config:
    """LFM2: six of sixteen layers attend; the width of the MLP is two thirds of what is said."""
    return decoder(
        65536,
        *sizes,
        8,
        128000,
        model_type="lfm2",
        full_attn_idxs=[2, 5, 8, 10, 12, 14],
        conv_L_cache=3,
        tie_word_embeddings=True,
        rope_theta=1e6,
    )


def gemma4(*sizes: int, every: int, shared: int, wide: bool) -> Config:
    """Gemma 4's small ones: 256 channels a layer from a table of tokens, keys of earlier layers."""
    kinds = ["sliding_attention"] * (every - 1) + ["full_attention"]
    layers = sizes[2]
    return gemma(
        262144,
        *sizes,
        131072,
        model_type="gemma4_text",
        global_head_dim=512,
        layer_types=kinds * (layers // every),
        sliding_window=512,
        num_kv_shared_layers=shared,
        use_double_wide_mlp=wide,
        hidden_size_per_layer_input=256,
        final_logit_softcapping=30.0,
        hidden_activation="gelu_pytorch_tanh",
    )


def qwen3_5(*sizes: int, value_heads: int, tied: bool) -> Config:
    """Qwen3.5: three of four layers have a gated delta net with 16 key heads."""
    return decoder(
        248320,
        *sizes,
        262144,
        model_type="qwen3_5_text",
        head_dim=256,
        linear_num_value_heads=value_heads,
        tie_word_embeddings=tied,
        rope_theta=1e7,
        rms_norm_eps=1e-6,
    )


def mixture(model_type: str, *sizes: int, experts: int, top_k: int, **more: Any) -> Config:
    """Mixtures of experts: so many in a layer, of which a row goes to `top_k`."""
    counts = {"num_experts": experts, "num_local_experts": experts, "num_experts_per_tok": top_k}
    return decoder(*sizes, model_type=model_type, **counts, **more)


def granite_mixture(hidden: int, layers: int, heads: int, *, experts: int, theta: float) -> Config:
    """Granite 3.1's mixtures: a row goes to 8 experts of 512 values."""
    return mixture(
        "granitemoe",
        *(49155, hidden, 512, layers, heads, 8, 131072),
        experts=experts,
        top_k=8,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_theta=theta,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.015625,
        logits_scaling=6.0,
    )


def yarn(factor: float, original: int) -> Config:
    """A context that is `factor` times as long as the `original` one."""
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }


CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "smollm2-135m-instruct": llama(
            49152, 576, 1536, 30, 9, 3, 8192, tie_word_embeddings=True, rope_theta=1e5
        ),
        "smollm2-360m-instruct": llama(
            49152, 960, 2560, 32, 15, 5, 8192, tie_word_embeddings=True, rope_theta=1e5
        ),
        "smollm2-1.7b-instruct": llama(
            49152, 2048, 8192, 24, 32, 32, 8192, tie_word_embeddings=True, rope_theta=1.3e5
        ),
        "tinyllama-1.1b-chat": llama(32000, 2048, 5632, 22, 32, 4, 2048),
        "qwen2.5-0.5b-instruct": qwen2(151936, 896, 4864, 24, 14, 2),
        "qwen2.5-1.5b-instruct": qwen2(151936, 1536, 8960, 28, 12, 2),
        "qwen2.5-3b-instruct": qwen2(151936, 2048, 11008, 36, 16, 2),
        "qwen3-0.6b": qwen3(1024, 3072, 28, 16),
        "qwen3-1.7b": qwen3(2048, 6144, 28, 16),
        "qwen3-4b": qwen3(2560, 9728, 36, 32),
        "tinyswallow-1.5b-instruct": qwen2(151936, 1536, 8960, 28, 12, 2),
        "rakutenai-2.0-mini-instruct": mistral(48000, 2048, 8192, 22, 16, 4, 131072),
        "gemma-2b-it": gemma(256000, 2048, 16384, 18, 8, 1, 8192),
        "gemma-7b-it": gemma(256000, 3072, 24576, 28, 16, 16, 8192),
        "gemma-2-2b-it": gemma(
            256000,
            2304,
            9216,
            26,
            8,
            4,
            8192,
            model_type="gemma2",
            sliding_window=4096,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=256,
            hidden_activation="gelu_pytorch_tanh",
        ),
        "gemma-3-270m-it": gemma3(262144, 640, 2048, 18, 4, 1, 32768, sliding_window=512),
        "gemma-3-1b-it": gemma3(262144, 1152, 6912, 26, 4, 1, 32768, sliding_window=512),
        "gemma-3-4b-it": gemma3(
            262208,
            2560,
            10240,
            34,
            8,
            4,
            131072,
            sliding_window=1024,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        "phi-3-mini-4k-instruct": phi3(32064, 3072, 8192, 32, 32, 32, 4096, sliding_window=2047),
        "phi-3.5-mini-instruct": phi3(32064, 3072, 8192, 32, 32, 32, 131072, **longrope(48)),
        "phi-4-mini-instruct": phi3(
            200064,
            3072,
            8192,
            32,
            24,
            8,
            131072,
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            **longrope(48),
        ),
        "phi-4": phi3(100352, 5120, 17920, 40, 40, 10, 16384, rope_theta=250000),
        "mistral-7b-instruct-v0.3": mistral(32768, 4096, 14336, 32, 32, 8, 32768, rope_theta=1e6),
        "orca-2-7b": llama(32003, 4096, 11008, 32, 32, 32, 4096),
        "stablelm-2-1.6b-chat": STABLELM,
        "stablelm-2-zephyr-1.6b": STABLELM,
        "smollm3-3b": decoder(
            128256,
            2048,
            11008,
            36,
            16,
            4,
            65536,
            model_type="smollm3",
            tie_word_embeddings=True,
            rope_theta=5e6,
        ),
        "olmo-2-1b-instruct": decoder(
            100352, 2048, 8192, 16, 16, 16, 4096, model_type="olmo2", rope_theta=5e5
        ),
        "granite-3.3-2b-instruct": decoder(
            49159,
            2048,
            8192,
            40,
            32,
            8,
            131072,
            model_type="granite",
            tie_word_embeddings=True,
            rope_theta=1e7,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.015625,
            logits_scaling=8.0,
        ),
        "exaone-4.0-1.2b": decoder(
            102400,
            2048,
            4096,
            30,
            32,
            8,
            65536,
            model_type="exaone4",
            tie_word_embeddings=True,
            sliding_window=None,
            rope_theta=1e6,
        ),
        "lfm2-350m": lfm2(1024, 6656, 16, 16),
        "lfm2-700m": lfm2(1536, 10240, 16, 24),
        "lfm2-1.2b": lfm2(2048, 12288, 16, 32),
        "bitnet-b1.58-2b-4t": decoder(
            128256,
            2560,
            6912,
            30,
            20,
            5,
            4096,
            model_type="bitnet",
            hidden_act="relu2",
            tie_word_embeddings=True,
            rope_theta=5e5,
        ),
        "gemma-4-e2b-it": gemma4(1536, 6144, 35, 8, 1, every=5, shared=20, wide=True),
        "gemma-4-e4b-it": gemma4(2560, 10240, 42, 8, 2, every=6, shared=18, wide=False),
        "qwen3.5-0.8b": qwen3_5(1024, 3584, 24, 8, 2, value_heads=16, tied=True),
        "qwen3.5-9b": qwen3_5(4096, 12288, 32, 16, 4, value_heads=32, tied=False),
        "qwen3-30b-a3b": mixture(
            "qwen3_moe",
            *(151936, 2048, 6144, 48, 32, 4, 40960),
            experts=128,
            top_k=8,
            head_dim=128,
            moe_intermediate_size=768,
            norm_topk_prob=True,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
        ),
        "olmoe-1b-7b-instruct": mixture(
            "olmoe", *(50304, 2048, 1024, 16, 16, 16, 4096), experts=64, top_k=8
        ),
        "granite-3.1-1b-a400m-instruct": granite_mixture(1024, 24, 16, experts=32, theta=1.5e6),
        "granite-3.1-3b-a800m-instruct": granite_mixture(1536, 32, 24, experts=40, theta=1e7),
        "lfm2-8b-a1b": mixture(
            "lfm2_moe",
            *(65536, 2048, 7168, 24, 32, 8, 128000),
            experts=32,
            top_k=4,
            moe_intermediate_size=1792,
            num_dense_layers=2,
            norm_topk_prob=True,
            use_expert_bias=True,
            layer_types=[
                "full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)
            ],
            conv_L_cache=3,
            tie_word_embeddings=True,
            rope_theta=1e6,
        ),
        "gpt-oss-20b": mixture(
            "gpt_oss",
            *(201088, 2880, 2880, 24, 64, 8, 131072),
            experts=32,
            top_k=4,
            head_dim=64,
            attention_bias=True,
            sliding_window=128,
            layer_types=["sliding_attention", "full_attention"] * 12,
            rope_theta=150000.0,
            rope_scaling=yarn(32.0, 4096) | {"truncate": False},
        ),
        "ministral-3-3b-instruct": decoder(
            *(131072, 3072, 9216, 26, 32, 8, 262144),
            model_type="ministral3",
            head_dim=128,
            tie_word_embeddings=True,
            rope_parameters={
                **yarn(16.0, 16384),
                "rope_theta": 1e6,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        ),
        "olmo-3-7b-instruct": decoder(
            *(100278, 4096, 11008, 32, 32, 32, 65536),
            model_type="olmo3",
            rms_norm_eps=1e-6,
            sliding_window=4096,
            layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
            rope_theta=5e5,
            rope_scaling=yarn(8.0, 8192) | {"attention_factor": 1.2079441541679836},
        ),
        "granite-4.0-micro": decoder(
            *(100352, 2560, 8192, 40, 40, 8, 131072),
            model_type="granitemoehybrid",
            num_local_experts=0,
            shared_intermediate_size=8192,
            layer_types=["attention"] * 40,
            position_embedding_type="rope",
            tie_word_embeddings=True,
            rope_theta=1e7,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.015625,
            logits_scaling=10.0,
        ),
        "afm-4.5b": decoder(
            *(128005, 2560, 18432, 36, 20, 4, 65536),
            model_type="arcee",
            head_dim=128,
            hidden_act="relu2",
            rope_theta=10000.0,
            rope_scaling=yarn(20.0, 4096),
        ),
        "apertus-8b-instruct": decoder(
            *(131072, 4096, 21504, 32, 32, 8, 65536),
            model_type="apertus",
            hidden_act="xielu",
            rope_theta=1.2e7,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        "helium-1-preview-2b": decoder(
            *(48000, 2560, 7040, 24, 20, 20, 4096),
            model_type="helium",
            head_dim=128,
            rms_norm_eps=1e-8,
            rope_theta=1e5,
        ),
        "hunyuan-1.8b-instruct": decoder(
            *(120818, 2048, 6144, 32, 16, 4, 262144),
            model_type="hunyuan_v1_dense",
            head_dim=128,
            tie_word_embeddings=True,
            rope_theta=10000.0,
            rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        ),
        "nanochat-d32": decoder(
            *(65536, 2048, 8192, 32, 16, 16, 2048),
            model_type="nanochat",
            hidden_act="relu2",
            rms_norm_eps=1e-6,
            final_logit_softcapping=15.0,
            rope_theta=10000.0,
        ),
        "distilgpt2": {
            "model_type": "gpt2",
            "vocab_size": 50257,
            "n_embd": 768,
            "n_layer": 6,
            "n_head": 12,
            "n_positions": 1024,
            "n_ctx": 1024,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
        },
    }
)
