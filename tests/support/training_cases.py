"""What tests of training share: networks of tiny models, texts, and PyTorch beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from golden import GOLDENS, golden_names, read_golden
from kernel_cases import ISAS

import slmq._native as _native
from slmq.checkpoint import open_checkpoint
from slmq.engine.training.base import Base, network_of
from slmq.engine.training.events import Trained
from slmq.engine.training.full import open_full
from slmq.engine.training.low_rank import LowRankPair
from slmq.engine.training.network import Network
from slmq.engine.training.options import TrainOptions
from slmq.engine.training.passes import Piece
from slmq.engine.training.run import Run
from slmq.models.loading import load_weights

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
TRAINED = (
    "arcee", "bitnet", "exaone4", "gemma", "gemma2", "gemma3_text", "granite", "helium",
    "hunyuan_v1_dense", "llama", "mistral", "nanochat", "olmo2", "phi", "qwen2", "qwen3",
    "seed_oss", "smollm3", "stablelm",
)  # fmt: skip
FULL = (*TRAINED, "gpt2", "gpt_neox", "phi3")  # whose weights can all be trained
REFUSED = {
    "apertus": "xIELU", "lfm2": "convolutions", "gpt2": "several matrices in one",
    "gpt_neox": "several matrices in one", "phi3": "several matrices in one",
    "ministral3": "grow with their position", "gemma4_text": "tables that stay in their file",
}  # fmt: skip


REFUSED_IN_FULL = {
    "apertus": "xIELU", "lfm2": "convolutions", "ministral3": "grow with their position",
    "gemma4_text": "columns of a value", "olmoe": "mixtures of experts",
    "qwen3_moe": "mixtures of experts", "granitemoe": "mixtures of experts",
    "qwen3_5_text": "gated delta nets|convolutions", "gpt_oss": "floats|sinks|experts",
}  # fmt: skip


SMALL_RUN: dict[str, Any] = {
    "iters": 6, "batch_size": 2, "max_seq_length": 60, "steps_per_report": 2, "steps_per_eval": 4,
    "save_every": 2, "grad_accumulation_steps": 2, "warmup": 1, "schedule": "cosine",
    "n_threads": 1,
}  # fmt: skip
WORDS = ("red", "blue", "green", "stone", "river", "cloud", "seven", "quiet")
WAYS = [(isa, threads) for isa in ISAS for threads in (1, 2, 3)]
# A run in a process of its own, which tells when it has saved.
KILLED = """
    import json, sys
    from pathlib import Path
    from slmq.engine.training.events import Saved
    from slmq.engine.training.options import TrainOptions
    from slmq.engine.training.run import Run

    model, data, out, options = map(str, sys.argv[1:])

    def tell(event):
        if isinstance(event, Saved):
            print(event.iteration, flush=True)

    Run(model, data, out, TrainOptions(**json.loads(options)), name="tiny", listener=tell).finish()
"""

# Cases that are not the first of their family: without norms of heads, without a vision tower.
CASES = {
    "phi": "half_rotary",
    "stablelm": "qkv_bias",
    "gemma3_text": "two_ropes_and_linear_scaling",
    "helium": "neighbours_turn",
}


def case_of(family: str) -> str:
    """The golden of a family that is trained."""
    return CASES.get(family, golden_names(family)[0])


def folder_of(family: str) -> Path:
    """Its folder."""
    return GOLDENS / family / case_of(family)


def network_for(
    folder: Path,
    *,
    format: str | None = None,
    isa: str | None = None,
    threads: int = 1,
    rows: int = 256,
    **options: Any,
) -> Network:
    """The network of a model's folder, which needs no tokenizer here."""
    full = None
    with open_checkpoint(folder) as checkpoint:
        if options.get("type") == "full":
            layers = options.get("num_layers", -1)
            weights, full = open_full(checkpoint, threads=1, num_layers=layers)
        else:
            weights = load_weights(checkpoint, threads=1, format=format, memory="small")
    tokenizer: Any = None
    base = Base("tiny", weights, tokenizer, [], threads, folder, full)
    return network_of(base, TrainOptions(**options), rows=rows, isa=isa)


def randomize(network: Network, seed: int = 1) -> None:
    """Numbers for B, too, so that everything has a gradient."""
    rng = np.random.default_rng(seed)
    for pair in network.parameters.pairs.values():
        shape = (pair.rank, pair.size.n)
        pair.b_turned[:, : pair.size.n] = rng.normal(0, 0.1, shape).astype(np.float32)
    network.parameters.turn()


def piece_of(texts: list[list[int]], firsts: list[int]) -> Piece:
    """A piece of these texts, of which tokens from `firsts` on are targets."""
    tokens, starts, rows, targets = list[int](), [0], list[int](), list[int]()
    for text, first in zip(texts, firsts, strict=True):
        rows += range(starts[-1] + first - 1, starts[-1] + len(text) - 1)
        tokens += text[:-1]
        targets += text[first:]
        starts.append(starts[-1] + len(text) - 1)
    return Piece(*(np.array(values, np.int32) for values in (tokens, starts, rows, targets)))


def golden_texts(family: str) -> tuple[list[list[int]], list[int]]:
    """Two texts of a golden, of different lengths, and where their targets begin."""
    golden = read_golden(family, case_of(family))
    return [golden.tokens[0][:40], golden.tokens[1][:23]], [1, 9]


def in_own_order(pair: LowRankPair, turned: F32) -> F32:
    """B, or its gradient, with its rows as the model's own files have them."""
    b = turned[:, : pair.size.n].T.copy()
    if pair.size.order is not None:
        b[pair.size.order] = turned[:, : pair.size.n].T
    return b


def torch_of(folder: Path) -> Any:
    """The same model in transformers, where the gradient of every token counts."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.get_input_embeddings().padding_idx = None
    return model


def peft_of(folder: Path, network: Network) -> Any:
    """The same model in transformers, with the same adapter by PEFT."""
    import peft
    import torch

    model = torch_of(folder)
    low_ranks = network.parameters
    config = peft.LoraConfig(
        r=low_ranks.rank, lora_alpha=low_ranks.alpha, target_modules=sorted(low_ranks.pairs)
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for module, pair in low_ranks.pairs.items():
            layer = model.base_model.model.get_submodule(module)
            layer.lora_A["default"].weight.copy_(torch.tensor(pair.a[:, : pair.size.k]))
            layer.lora_B["default"].weight.copy_(torch.tensor(in_own_order(pair, pair.b_turned)))
    return model


def torch_loss(model: Any, text: list[int], first: int) -> Any:
    """The sum of the losses of a text's targets."""
    import torch

    logits = model(input_ids=torch.tensor([text[:-1]])).logits[0]
    targets = torch.tensor(text[1:])
    return torch.nn.functional.cross_entropy(
        logits[first - 1 :], targets[first - 1 :], reduction="sum"
    )


def rows(values: npt.NDArray[Any]) -> F32:
    """Rows as operators take them, padded with zeros."""
    made = _native.zero_rows(*values.shape)
    made[:, : values.shape[1]] = values
    return made


def everywhere(work: Callable[[_native.Operators], Iterable[F32]]) -> list[F32]:
    """What every ISA and number of threads gives, which is one and the same."""
    wanted: list[F32] = []
    for isa, threads in WAYS:
        got = list(work(_native.Operators(threads, isa)))
        wanted = wanted or got
        for one, other in zip(got, wanted, strict=True):
            assert one.tobytes() == other.tobytes(), (isa, threads)
    return wanted


def lines(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Questions that all have answers of one kind."""
    rng = np.random.default_rng(seed)
    said = [" ".join(rng.choice(WORDS, int(rng.integers(1, 4)))) for _ in range(n)]
    return [{"prompt": text, "completion": f"<{text}>"} for text in said]


def small_data(folder: Path) -> Path:
    """Texts to train on for some batches, and others to look at."""
    folder.mkdir()
    write_lines(folder / "train.jsonl", lines(9))
    write_lines(folder / "valid.jsonl", lines(4, 1))
    return folder


def small_run(model: Path, data: Path, out: Path, **options: Any) -> Trained:
    """A run to its end; `isa`, `resume` and `listener` are not options of it."""
    mine = {name: options.pop(name) for name in ("isa", "resume", "listener") if name in options}
    return Run(model, data, out, TrainOptions(**options), name="tiny", **mine).finish()


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
