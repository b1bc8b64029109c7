"""`slmq.torch.quantize_` on whole models of transformers, adapters of PEFT, and its quantizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")

import torch
import transformers

import slmq.torch
from slmq.torch import Config, SlmqLinear


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=160, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=160, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, num_mel_bins=16,
        max_source_positions=32, max_target_positions=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def qwen2_moe() -> Any:
    config = transformers.Qwen2MoeConfig(
        vocab_size=160, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
        shared_expert_intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return transformers.Qwen2MoeForCausalLM(config)


MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama, "qwen2_moe": qwen2_moe, "whisper": whisper}
# Layers that are packed, and some weights that must be named as left.
PACKED = {"bert": 14, "gpt2": 8, "llama": 14, "qwen2_moe": 16, "whisper": 32}
LEFT = {
    "bert": "bert.embeddings.word_embeddings.weight",
    "gpt2": "transformer.wte.weight",
    "llama": "lm_head.weight",
    "qwen2_moe": "model.layers.0.mlp.experts.gate_up_proj",
    "whisper": "model.encoder.conv1.weight",
}


def made(name: str) -> Any:
    torch.manual_seed(1)
    return MODELS[name]().eval()


def inputs(name: str) -> dict[str, Any]:
    torch.manual_seed(2)
    ids = torch.randint(3, 160, (2, 11))
    if name == "whisper":
        return {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": ids}
    return {"input_ids": ids}


def answer(model: Any, name: str) -> Any:
    with torch.no_grad():
        return model(**inputs(name)).logits


def error(got: Any, want: Any) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_with_its_weights_in_floats(name: str, format: str) -> None:
    model = made(name)
    floats = answer(model, name)
    done = slmq.torch.quantize_(model, format)
    assert len(done.layers) == PACKED[name], done
    assert LEFT[name] in done.skipped, done
    assert done.bytes_after < done.bytes_before
    assert sum(isinstance(m, SlmqLinear) for m in model.modules()) == PACKED[name]
    got = answer(model, name)
    widened = copy.deepcopy(model)
    assert slmq.torch.dequantize_(widened) == done.layers
    assert error(got, answer(widened, name)) < 3e-4
    assert 1e-5 < error(got, floats) < (0.35 if format == "int4" else 0.03)


@pytest.mark.parametrize("name", MODELS)
def test_a_state_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = made(name)
    slmq.torch.quantize_(model, "int8")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    other = MODELS[name]().eval()
    slmq.torch.quantize_(other, "int8")
    assert not torch.equal(answer(other, name), answer(model, name))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(answer(other, name), answer(model, name))


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_packs_while_it_loads(name: str, format: str, tmp_path: Path) -> None:
    """from_pretrained with a configuration, save_pretrained, and from_pretrained without."""
    model = made(name)
    model.save_pretrained(tmp_path / "floats")
    kind = type(model)
    packed = kind.from_pretrained(tmp_path / "floats", quantization_config=Config(format)).eval()
    layers = [n for n, m in packed.named_modules() if isinstance(m, SlmqLinear)]
    assert layers
    assert not any(p.is_meta for p in (*packed.parameters(), *packed.buffers()))
    want = copy.deepcopy(packed)
    slmq.torch.dequantize_(want)
    got = answer(packed, name)
    assert error(got, answer(want, name)) < 3e-4
    assert error(got, answer(model, name)) < (0.35 if format == "int4" else 0.03)
    packed.save_pretrained(tmp_path / "packed")
    saved = json.loads((tmp_path / "packed" / "config.json").read_text("utf-8"))
    assert saved["quantization_config"]["quant_method"] == "slmq"
    assert saved["quantization_config"]["format"] == format
    sizes = [
        (tmp_path / kind / "model.safetensors").stat().st_size for kind in ("packed", "floats")
    ]
    assert sizes[0] < sizes[1]
    again = kind.from_pretrained(tmp_path / "packed").eval()
    assert [n for n, m in again.named_modules() if isinstance(m, SlmqLinear)] == layers
    assert torch.equal(answer(again, name), got)
    floats = again.dequantize()
    assert not any(isinstance(m, SlmqLinear) for m in floats.modules())
    assert error(answer(floats, name), got) < 3e-4


def test_what_the_quantizer_refuses(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path / "floats")
    load = transformers.LlamaForCausalLM.from_pretrained
    with pytest.raises(ValueError, match="computes on the CPU; device_map names 'cuda'"):
        load(tmp_path / "floats", quantization_config=Config("int8"), device_map={"": "cuda"})
    with pytest.raises(ValueError, match="expected a weight format"):
        Config("int3")
    kept = Config("int8", modules_to_not_convert=["o_proj"])
    model = load(tmp_path / "floats", quantization_config=kept)
    assert type(model.model.layers[0].self_attn.o_proj) is torch.nn.Linear
    assert isinstance(model.model.layers[0].self_attn.q_proj, SlmqLinear)


def test_generate() -> None:
    model = made("llama")
    slmq.torch.quantize_(model, "int8")
    ids = inputs("llama")["input_ids"]
    found = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert found.shape == (2, 19)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_ten_steps_of_peft(name: str) -> None:
    """An adapter on packed layers learns as on the same weights in floats."""
    peft = pytest.importorskip("peft")
    packed = made(name)
    slmq.torch.quantize_(packed, "int8")
    plain = copy.deepcopy(packed)
    slmq.torch.dequantize_(plain)
    targets = {"gpt2": ["c_attn", "c_fc"], "bert": ["query", "value"]}.get(
        name, ["q_proj", "v_proj"]
    )
    curves = []
    for model in (packed, plain):
        torch.manual_seed(3)
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
        ).train()
        for module in tuned.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        weights = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=5e-3)
        given = inputs(name)
        labels = torch.tensor([0, 1]) if name == "bert" else given["input_ids"]
        losses = []
        for _ in range(10):
            loss = tuned(**given, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
        assert losses[-1] < losses[0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    adapted = next(m for m in packed.modules() if hasattr(m, "lora_A"))
    with pytest.raises(TypeError, match="cannot be changed in place"):
        adapted.merge()


def test_names_of_what_is_left() -> None:
    model = torch.nn.Module()
    model.attention = torch.nn.MultiheadAttention(32, 4)
    model.first, model.lm_head = torch.nn.Linear(32, 32), torch.nn.Linear(32, 8)
    model.second = torch.nn.Linear(32, 32)
    model.second.weight = model.first.weight
    model.third = torch.nn.Linear(32, 32)
    model.third.register_forward_hook(lambda *_: None)
    done = slmq.torch.quantize_(model, "int8")
    assert done.layers == []
    assert done.skipped == {
        "attention.in_proj_weight": "MultiheadAttention multiplies with it in its own way",
        "attention.out_proj.weight": "NonDynamicallyQuantizableLinear is no linear layer",
        "first.weight": "shared with second.weight",
        "lm_head.weight": "skipped by its name",
        "second.weight": "shared with first.weight",
        "third.weight": "it has hooks",
    }
    assert "left as it is: third.weight (it has hooks)" in str(done)
    again = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    again[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1\.weight: "):
        slmq.torch.quantize_(again, "int8")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got str"):
        slmq.torch.quantize_("x", "int8")
    with pytest.raises(ValueError, match="got a linear layer"):
        slmq.torch.quantize_(torch.nn.Linear(4, 4), "int8")
