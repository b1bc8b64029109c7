"""Small language models on an ordinary CPU.

>>> import slmq
>>> with slmq.load("smollm2-135m-instruct") as m:  # doctest: +SKIP
...     print(m.generate("Why is the sky blue?", max_tokens=64).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slmq.errors import (
    BusyError,
    CacheFullError,
    CheckpointError,
    ClosedError,
    ConstraintError,
    ContextOverflowError,
    DataError,
    DeadlineError,
    DownloadError,
    Error,
    IncompleteError,
    ModelNotFoundError,
    TemplateError,
    TokenizerError,
    ToolServerError,
    UnsupportedModelError,
    WriteError,
)

if TYPE_CHECKING:
    from slmq import hub
    from slmq.conversion.convert import convert
    from slmq.conversion.dequantize import dequantize
    from slmq.conversion.merge import merge
    from slmq.embedding.encoder import Encoder
    from slmq.embedding.head import Head
    from slmq.embedding.loading import load_encoder
    from slmq.embedding.routing.router import Router
    from slmq.evaluation import compare, evaluate, perplexity
    from slmq.generation.loading import load
    from slmq.generation.model import Model
    from slmq.generation.params import SamplingParams
    from slmq.generation.results import GenerationResult, StreamChunk
    from slmq.generation.session import ChatSession
    from slmq.generation.stream import TokenStream
    from slmq.generation.training import train
    from slmq.hub import list_models, pull
    from slmq.machine.runtime import isa, show_runtime
    from slmq.quantizer import QuantizedFolder, quantize
    from slmq.search.index import Index
    from slmq.tools.calls import ToolCall
    from slmq.tools.mcp import McpServer
    from slmq.tools.tool import Tool
    from slmq.weights.quantized import QuantizedMatrix

    __version__: str

__all__ = [
    "BusyError",
    "CacheFullError",
    "ChatSession",
    "CheckpointError",
    "ClosedError",
    "ConstraintError",
    "ContextOverflowError",
    "DataError",
    "DeadlineError",
    "DownloadError",
    "Encoder",
    "Error",
    "GenerationResult",
    "Head",
    "IncompleteError",
    "Index",
    "Label",
    "McpServer",
    "Model",
    "ModelNotFoundError",
    "QuantizedFolder",
    "QuantizedMatrix",
    "Router",
    "SamplingParams",
    "StreamChunk",
    "TemplateError",
    "TokenStream",
    "TokenizerError",
    "Tool",
    "ToolCall",
    "ToolServerError",
    "UnsupportedModelError",
    "WriteError",
    "__version__",
    "compare",
    "convert",
    "dequantize",
    "evaluate",
    "hub",
    "isa",
    "list_models",
    "load",
    "load_encoder",
    "merge",
    "perplexity",
    "pull",
    "quantize",
    "show_runtime",
    "train",
]

# Imported on first use: `import slmq` stays instant.
_LAZY = {
    "ChatSession": "slmq.generation.session",
    "Encoder": "slmq.embedding.encoder",
    "GenerationResult": "slmq.generation.results",
    "Head": "slmq.embedding.head",
    "Index": "slmq.search.index",
    "Label": "slmq.generation.labels",
    "McpServer": "slmq.tools.mcp",
    "Model": "slmq.generation.model",
    "QuantizedFolder": "slmq.quantizer",
    "QuantizedMatrix": "slmq.weights.quantized",
    "Router": "slmq.embedding.routing.router",
    "SamplingParams": "slmq.generation.params",
    "StreamChunk": "slmq.generation.results",
    "TokenStream": "slmq.generation.stream",
    "Tool": "slmq.tools.tool",
    "ToolCall": "slmq.tools.calls",
    "compare": "slmq.evaluation",
    "convert": "slmq.conversion.convert",
    "dequantize": "slmq.conversion.dequantize",
    "evaluate": "slmq.evaluation",
    "isa": "slmq.machine.runtime",
    "list_models": "slmq.hub",
    "load": "slmq.generation.loading",
    "load_encoder": "slmq.embedding.loading",
    "merge": "slmq.conversion.merge",
    "perplexity": "slmq.evaluation",
    "pull": "slmq.hub",
    "quantize": "slmq.quantizer",
    "show_runtime": "slmq.machine.runtime",
    "train": "slmq.generation.training",
}


if not TYPE_CHECKING:  # type checkers would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("slmq")
        if name == "hub":
            return importlib.import_module("slmq.hub")
        if name not in _LAZY:
            import difflib

            near = difflib.get_close_matches(name, __all__, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module 'slmq' has no attribute {name!r}{hint}")
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
