"""From a file in the system's cache to a model that answers."""

from __future__ import annotations

from pathlib import Path

from .common import THREADS, need, need_own_curve, need_threads
from .session import ModelBenchmark, model_file

MODELS = ["smollm2-135m/q4g32a", "tinyllama-cut/q4g32s"]
PROMPT = list(range(8))


def stored(folder: str, model: str, kind: str) -> Path:
    """The model as a GGUF file, or as the native folder that `slmq convert` makes of it."""
    source = model_file(folder, model)
    if kind == "gguf":
        return source
    convert = need("slmq", "convert")
    native = source.with_suffix(".native")
    if not native.exists():
        convert(source, native)
    return native


class Load(ModelBenchmark):
    """Loading, tokenizer included."""

    params = (["gguf", "native"], MODELS, THREADS)
    param_names = ("stored", "model", "threads")
    repeat = (3, 10, 2.0)

    def setup(self, folder: str, kind: str, model: str, threads: int) -> None:
        need_threads(threads)
        need_own_curve()
        self.load = need("slmq", "load")
        self.path = stored(folder, model, kind)

    def time_load(self, _folder: str, _kind: str, _model: str, threads: int) -> None:
        self.load(self.path, n_threads=threads).close()

    def time_first_token(self, _folder: str, _kind: str, _model: str, threads: int) -> None:
        """Loading, a prompt of eight tokens, and the first token of the answer."""
        with self.load(self.path, n_threads=threads) as model:
            model.generate(PROMPT, max_tokens=1, temperature=0.0)
