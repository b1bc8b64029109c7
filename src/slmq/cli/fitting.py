"""How large models of the catalogue are, and which of them this machine has the memory for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmq.machine.disk import readable_bytes

if TYPE_CHECKING:
    from slmq.generation.model import Model
    from slmq.hub import CatalogueEntry

__all__ = ["better_model", "download_bytes", "fits", "memory_bytes", "readable_count"]

# Per weight, as publishers store them: of gpt-oss and BitNet the sizes of their files are known.
BITS = {
    "safetensors": 16,
    "safetensors, MXFP4": 5.26,
    "safetensors, ternary": 3.91,
    "GGUF Q4_K_M": 4.85,
}
INT4_BITS = 5.0
# Beside the weights: code and buffers, and a cache of keys and values for some thousand tokens.
BESIDE_BYTES, BESIDE_SHARE = 150e6, 0.15

VERY_SMALL = 400e6  # weights: such models are made for one task each, or to try things out
# What to take instead, best first: free licences, no long thoughts before the answer, and quick.
BETTER = ("qwen2.5-1.5b-instruct", "qwen2.5-0.5b-instruct")


def download_bytes(entry: CatalogueEntry) -> int | None:
    """Bytes to download, known or estimated; None if neither."""
    from slmq.hub import ArchiveEntry, FileEntry

    if isinstance(entry, (ArchiveEntry, FileEntry)):
        return entry.bytes
    bits = BITS.get(entry.format)
    return None if entry.parameters is None or bits is None else int(entry.parameters * bits / 8)


def memory_bytes(entry: CatalogueEntry) -> int | None:
    """Memory to run a model in, estimated: with int4 weights, if it is not stored in few bits."""
    stored = download_bytes(entry)
    if stored is None or entry.parameters is None:
        return None
    weights = min(stored, int(entry.parameters * INT4_BITS / 8))
    return int(weights * (1 + BESIDE_SHARE) + BESIDE_BYTES)


def fits(entry: CatalogueEntry, available: int | None) -> bool | None:
    """Whether this much memory is enough; None if that is unknown."""
    needed = memory_bytes(entry)
    return None if needed is None or available is None else needed <= available


def better_model(model: Model) -> str | None:
    """For a very small model, the command that runs a better one in the memory there is."""
    import slmq.hub as hub
    from slmq.machine.memory import available_memory_bytes

    if model.engine.info.parameters > VERY_SMALL:
        return None
    available = available_memory_bytes()
    for entry in (hub.catalogue()[name] for name in BETTER):
        size = download_bytes(entry)
        if fits(entry, available) and size is not None:
            return f"slmq chat {entry.name} --format int4 ({readable_bytes(size)} to download)"
    return None


def readable_count(number: int) -> str:
    """A number of weights: "135 M", "1.5 B"."""
    return f"{number / 1e9:.1f} B" if number >= 999.5e6 else f"{number / 1e6:.0f} M"
