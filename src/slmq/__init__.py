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
    from slmq.conversion.convert import convert
    from slmq.conversion.dequantize import dequantize
    from slmq.evaluation import compare, evaluate, perplexity
    from slmq.generation.loading import load
    from slmq.generation.model import Model
    from slmq.generation.results import GenerationResult, StreamChunk
    from slmq.machine.runtime import isa, show_runtime
    from slmq.quantized import QuantizedMatrix
    from slmq.quantizer import QuantizedFolder, quantize
    from slmq.tools.calls import ToolCall
    from slmq.tools.mcp import McpServer
    from slmq.tools.tool import Tool

    __version__: str

__all__ = [
    "BusyError",
    "CacheFullError",
    "CheckpointError",
    "ClosedError",
    "ConstraintError",
    "ContextOverflowError",
    "DataError",
    "DeadlineError",
    "DownloadError",
    "Error",
    "GenerationResult",
    "IncompleteError",
    "Label",
    "McpServer",
    "Model",
    "ModelNotFoundError",
    "QuantizedFolder",
    "QuantizedMatrix",
    "StreamChunk",
    "TemplateError",
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
    "isa",
    "load",
    "perplexity",
    "quantize",
    "show_runtime",
]

# Imported on first use: `import slmq` stays instant.
_LAZY = {
    "GenerationResult": "slmq.generation.results",
    "Label": "slmq.generation.labels",
    "McpServer": "slmq.tools.mcp",
    "Model": "slmq.generation.model",
    "QuantizedFolder": "slmq.quantizer",
    "QuantizedMatrix": "slmq.quantized",
    "StreamChunk": "slmq.generation.results",
    "Tool": "slmq.tools.tool",
    "ToolCall": "slmq.tools.calls",
    "compare": "slmq.evaluation",
    "convert": "slmq.conversion.convert",
    "dequantize": "slmq.conversion.dequantize",
    "evaluate": "slmq.evaluation",
    "isa": "slmq.machine.runtime",
    "load": "slmq.generation.loading",
    "perplexity": "slmq.evaluation",
    "quantize": "slmq.quantizer",
    "show_runtime": "slmq.machine.runtime",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("slmq")
    if name not in _LAZY:
        raise AttributeError(f"module 'slmq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
