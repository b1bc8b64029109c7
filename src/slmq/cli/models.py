"""`slmq pull`, `list`, `show`, `rm`: the models in the cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.errors import one_line
from slmq.cli.fitting import download_bytes, fits, memory_bytes, readable_count
from slmq.cli.output import Downloads, note, print_json, print_table, write
from slmq.errors import ModelNotFoundError
from slmq.machine.disk import readable_bytes

if TYPE_CHECKING:
    from slmq.checkpoint import Checkpoint
    from slmq.hub import CatalogueEntry

__all__ = ["describe", "list_models", "pull", "remove", "show"]


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name or hub id.")],
    revision: o.Revision = None,
    as_json: o.Json = False,
) -> None:
    """Download a model if it is not in the cache, and print its path."""
    import slmq.hub as hub

    with Downloads() as progress:
        found = hub.pull(model, revision=revision, progress=progress)
    if as_json:
        print_json({"name": found.name, "path": str(found.path), "bytes": stored_bytes(found.path)})
    else:
        write(f"{found.path}\n")


def list_models(
    of_catalogue: Annotated[
        bool,
        typer.Option(
            "--catalogue", help="List every model that slmq knows by name, downloaded or not."
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """List the models in the cache."""
    import slmq.hub as hub

    if of_catalogue:
        _list_catalogue(as_json)
        return
    models = hub.list_models()
    if as_json:
        print_json([{**asdict(m), "path": str(m.path)} for m in models])
        return
    if models:
        rows = [(m.name, readable_bytes(m.bytes), m.licence or "-", m.source) for m in models]
        print_table(("name", "size>", "licence", "source"), rows)
        note("`slmq show NAME` tells more; `slmq list --catalogue` lists what can be had")
    else:
        note(
            "no models yet: `slmq run smollm2-135m-instruct Hello` fetches a small one, and "
            "`slmq list --catalogue` lists what can be had"
        )


def _list_catalogue(as_json: bool) -> None:
    import slmq.hub as hub
    from slmq.machine.memory import available_memory_bytes

    available = available_memory_bytes()
    pulled = {model.name for model in hub.list_models()}
    entries = [entry for _, entry in sorted(hub.catalogue().items())]
    if as_json:
        print_json(
            [
                {
                    **from_catalogue(entry),
                    "download_bytes": download_bytes(entry),
                    "memory_bytes": memory_bytes(entry),
                    "fits": fits(entry, available),
                    "pulled": entry.name in pulled,
                }
                for entry in entries
            ]
        )
        return
    rows = [
        (
            entry.name,
            "-" if entry.parameters is None else readable_count(entry.parameters),
            _size(download_bytes(entry)),
            _size(memory_bytes(entry)),
            _here(entry, entry.name in pulled, available),
            entry.licence.replace("LicenseRef-", ""),
        )
        for entry in entries
    ]
    print_table(("name", "weights>", "download>", "memory>", "here", "licence"), rows)
    free = "unknown" if available is None else readable_bytes(available)
    note(
        f"memory: estimated, with --format int4 where weights are not stored in few bits; {free} "
        "available now"
    )


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else readable_bytes(nbytes)


def _here(entry: CatalogueEntry, pulled: bool, available: int | None) -> str:
    """What stands between a user and an entry, in a word."""
    from slmq.models.registry import ENCODERS, FAMILIES

    if entry.architecture not in FAMILIES | ENCODERS:
        return "no family"
    if pulled:
        return "pulled"
    return {True: "fits", False: "too large", None: ""}[fits(entry, available)]


def show(
    model: o.ModelName,
    revision: o.Revision = None,
    as_json: o.Json = False,
) -> None:
    """Describe a model from its headers, without reading weights or downloading anything."""
    import slmq.hub as hub
    from slmq.checkpoint import open_checkpoint

    try:
        found = hub.resolve(model, revision=revision, local_files_only=True)
    except ModelNotFoundError:
        entry = hub.catalogue().get(model.lower())
        if entry is None:
            raise
        facts = from_catalogue(entry)
    else:
        with open_checkpoint(found.path) as checkpoint:
            facts = describe(checkpoint)
        facts = {"name": found.name, **facts, "path": str(found.path)}
        if found.entry is not None:
            facts["licence"] = found.entry.licence
            facts["sampling"] = dict(found.entry.sampling)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name in ("repository", "sampling") and not value:
            continue
        write(f"{name.replace('_', ' '):14}{shown(name, value)}\n")


def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name or hub id.")],
    as_json: o.Json = False,
) -> None:
    """Delete a model from the cache."""
    import slmq.hub as hub

    freed = hub.remove(model)
    if as_json:
        print_json({"name": model, "bytes": freed})
    else:
        write(f"{model}: {readable_bytes(freed)} freed\n")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts of a checkpoint's headers, also of one whose architecture slmq lacks.

    Returns
    -------
    dict
        architecture, supported, parameters, format, bytes, memory, context, licence, and for a
        folder of packed weights its source; None for what the headers do not say.
    """
    from slmq.checkpoint import PACKED
    from slmq.weights.placement import choose_memory

    meta = checkpoint.metadata
    architecture = meta.get(checkpoint.architecture_key)
    types: Counter[str] = Counter()
    parameters = 0
    for tensor in checkpoint.tensors.values():
        parameters += math.prod(tensor.shape)
        types[tensor.dtype] += tensor.nbytes
    choice, problem = choose_memory(None, checkpoint), problem_of(checkpoint)
    language = meta.get("text_config")  # where the model is more than its language model
    named = language if isinstance(language, dict) else meta
    in_gguf = checkpoint.layout.gguf_terms
    context = named.get(f"{architecture}.context_length" if in_gguf else "max_position_embeddings")
    facts = {
        "architecture": architecture,
        "supported": problem is None,
        **({} if problem is None else {"problem": problem}),
        "parameters": parameters,
        "format": f"{checkpoint.kind} {' + '.join(name for name, _ in types.most_common())}",
        "bytes": sum(file.size for file in checkpoint.files),
        "memory": f"{choice.memory}: {choice.why}",
        "context": context if isinstance(context, int) else None,
        "licence": licence_of(meta),
    }
    if checkpoint.packed:
        facts["source"] = source_of(meta.get(PACKED))
    return facts


def problem_of(checkpoint: Checkpoint) -> str | None:
    """Why slmq cannot run a model, as its headers tell; None if nothing speaks against it."""
    from slmq.checkpoint.foreign.weight import foreign_weights
    from slmq.errors import Error
    from slmq.models.registry import errors_of, family_of

    try:
        family, config = family_of(checkpoint)
        with errors_of(checkpoint):
            family.Config.from_dict(config)
        foreign_weights(checkpoint)
    except Error as error:
        return one_line(error)
    return None


def licence_of(meta: Mapping[str, Any]) -> str | None:
    """The licence that a header names, if it names one."""
    for key in ("general.license", "license"):
        if isinstance(meta.get(key), str):
            return str(meta[key])
    return None


def source_of(section: Any) -> str | None:
    """The files that a folder of packed weights was made of, if it says so."""
    files = section.get("source") if isinstance(section, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        return None
    return ", ".join(f"{file.get('name')} (sha256 {file.get('sha256')})" for file in files)


def from_catalogue(entry: CatalogueEntry) -> dict[str, Any]:
    """What the catalogue says of a model that was not pulled."""
    from slmq.hub import ArchiveEntry, FileEntry, RepositoryEntry
    from slmq.models.registry import ENCODERS, FAMILIES

    return {
        "name": entry.name,
        "title": entry.title,
        "architecture": entry.architecture,
        "supported": entry.architecture in FAMILIES | ENCODERS,
        "parameters": entry.parameters,
        "format": entry.format,
        "bytes": entry.bytes if isinstance(entry, (ArchiveEntry, FileEntry)) else None,
        "context": entry.context,
        "licence": entry.licence,
        "repository": entry.repository if isinstance(entry, RepositoryEntry) else None,
        "sampling": dict(entry.sampling),
        "path": None,
    }


def stored_bytes(path: Path) -> int:
    """Bytes of a model file, or of the weights in a folder."""
    if path.is_file():
        return path.stat().st_size
    files = [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    return sum(file.stat().st_size for file in files)


def shown(name: str, value: Any) -> str:
    """A fact for people."""
    if value is None:
        return "not downloaded" if name == "path" else "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no, slmq cannot run it"
    if name == "sampling":
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    if name == "parameters":
        return f"{value:,} ({value / 1e6:,.0f} million)"
    if name == "bytes":
        return f"{value:,} ({readable_bytes(value)})"
    return f"{value:,} tokens" if name == "context" else str(value)
