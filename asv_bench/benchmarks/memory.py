"""Most memory that a process holds while it loads a model and answers."""

from __future__ import annotations

from pathlib import Path

from .common import need, once_for_all_isas
from .load import MODELS, stored
from .session import ModelBenchmark


class Memory(ModelBenchmark):
    """Python and NumPy included; the files are written by another process."""

    params = (["gguf", "native"], MODELS)
    param_names = ("stored", "model")

    def setup_cache(self) -> str:
        for kind in self.params[0]:
            for model in self.params[1]:
                try:
                    stored(str(Path.cwd()), model, kind)
                except NotImplementedError:
                    continue  # setup skips it again
        return str(Path.cwd())

    def setup(self, folder: str, kind: str, model: str) -> None:
        once_for_all_isas()
        self.load = need("slmq", "load")
        self.path = stored(folder, model, kind)

    def peakmem_answer(self, *_: object) -> None:
        with self.load(self.path, n_threads=1) as model:
            model.generate(list(range(64)), max_tokens=4, temperature=0.0)
