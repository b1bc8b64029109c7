"""A quantizer of transformers: `from_pretrained(..., quantization_config=Config("int4"))`."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from slmq.formats import format_named
from slmq.torch.replacing import dequantize_, obstacle, packed_layer, put

__all__ = ["Config"]

METHOD = "slmq"


@register_quantization_config(METHOD)  # type: ignore[misc,untyped-decorator,unused-ignore]
class Config(QuantizationConfigMixin):  # type: ignore[misc,unused-ignore]
    """How transformers is to pack a model while it loads it.

    A model that was saved with it loads again without it, if `slmq.torch` was imported.

    Parameters
    ----------
    format : str
        "int4", "int8", or a stored format.
    modules_to_not_convert : list of str, optional
        Layers to leave in floats. By default those that are tied, and the head.
    """

    def __init__(
        self,
        format: str = "int8",
        modules_to_not_convert: list[str] | None = None,
        **_others: Any,
    ) -> None:
        format_named(format)
        self.quant_method = METHOD
        self.format = format
        self.modules_to_not_convert = modules_to_not_convert


@register_quantizer(METHOD)  # type: ignore[misc,untyped-decorator,unused-ignore]
class SlmqQuantizer(HfQuantizer):  # type: ignore[misc,unused-ignore]
    """What transformers calls while it loads a model."""

    quantization_config: Config
    _kept: list[str]

    def validate_environment(self, *_args: Any, device_map: Any = None, **_others: Any) -> None:
        """Refuse devices other than the CPU."""
        devices = device_map.values() if isinstance(device_map, dict) else [device_map]
        strange = [d for d in devices if d is not None and str(d) not in ("cpu", "auto")]
        if strange:
            raise ValueError(f"slmq.torch computes on the CPU; device_map names {strange[0]!r}")

    def update_device_map(self, _device_map: Any) -> Any:
        """All of it on the CPU."""
        return {"": "cpu"}

    def param_needs_quantization(self, model: Any, param_name: str, **_others: Any) -> bool:
        """Whether a weight of a checkpoint of floats is to be packed."""
        layer, _, own = param_name.rpartition(".")
        if self.pre_quantized or own != "weight" or not layer or self._keeps(layer):
            return False
        return obstacle(model.get_submodule(layer)) is None

    def get_quantize_ops(self) -> Any:
        """What packs a weight as it is loaded."""
        return _Pack(self)

    def is_serializable(self) -> bool:
        """It can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on it can be trained."""
        return True

    def _keeps(self, layer: str) -> bool:
        return any(layer == name or layer.endswith(f".{name}") for name in self._kept)

    def _process_model_before_weight_loading(self, model: Any, **_others: Any) -> Any:
        asked = self.quantization_config.modules_to_not_convert
        self._kept = self.get_modules_to_not_convert(model, asked, model._keep_in_fp32_modules)
        self.quantization_config.modules_to_not_convert = sorted(self._kept)
        if not self.pre_quantized:
            return model
        for name, module in list(model.named_modules()):
            if name and not self._keeps(name) and obstacle(module) is None:
                put(model, name, packed_layer(module, self.quantization_config.format))
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        dequantize_(model)
        return model if dtype is None else model.to(dtype)


class _Pack(ConversionOps):  # type: ignore[misc,unused-ignore]
    """Puts a packed layer in the place of one whose weight has just been read."""

    def __init__(self, quantizer: SlmqQuantizer) -> None:
        self._quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        model: Any,
        missing_keys: set[str] | None = None,
        **_others: Any,
    ) -> dict[str, Any]:
        """Packed bytes by their name in the model, which has a buffer for them now."""
        found = {}
        for name, given in input_dict.items():
            value = given[0] if isinstance(given, list) else given
            layer = name.removesuffix(".weight")
            module = model.get_submodule(layer)
            # The bias is loaded before or behind it: the new layer has the old one's, as it is now.
            bias = module.bias
            module._parameters["weight"] = value
            made = packed_layer(module, self._quantizer.quantization_config.format)
            made.register_parameter("bias", bias)
            put(model, layer, made)
            found[f"{layer}.qweight"] = made.qweight
            if missing_keys is not None:
                missing_keys.discard(name)
        return found
