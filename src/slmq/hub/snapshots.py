"""The hub's cache on this disk, in the layout that the ``huggingface_hub`` library gave it.

A file lies once in ``blobs``, under its checksum; ``snapshots/COMMIT`` has a link for each file of
a version, and ``refs`` says which commit a branch was last seen at. Other programs share all of it,
so what is written here lies where they look. Whatever is made or deleted lies in the folder of its
repository: `slmq.machine.disk` checks that for every single file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from slmq.errors import ModelNotFoundError
from slmq.hub.names import INDEX, HubModel, select_files
from slmq.hub.settings import hub_cache
from slmq.machine.disk import (
    create,
    link,
    make_folders,
    publish,
    read_regular,
    remove,
    remove_empty,
    rename,
)

__all__ = [
    "delete",
    "find_local",
    "link_blob",
    "lock_path",
    "model_path",
    "repo_folder",
    "write_ref",
]

_REF_BYTES = 4096
_INDEX_BYTES = 64 << 20


def repo_folder(model: HubModel) -> Path:
    """Return the folder that the cache has for a repository; it need not exist."""
    return hub_cache() / _folder_name(model)


def lock_path(model: HubModel) -> Path:
    """Return the file that is locked while we write to the repository's folder."""
    return hub_cache() / ".locks" / _folder_name(model) / "slmq.lock"


def _folder_name(model: HubModel) -> str:
    return "models--" + model.repo.replace("/", "--")


def _local_files(model: HubModel) -> tuple[Path, list[str]] | None:
    """Return the snapshot folder and the chosen files when all of them are on this disk."""
    repo = repo_folder(model)
    commit = model.revision or "main"
    with suppress(OSError, UnicodeError):  # a commit is its own reference
        commit = read_regular(repo / "refs" / commit, _REF_BYTES).decode("ascii").strip()
    folder = repo / "snapshots" / commit
    if re.fullmatch("[0-9a-f]{40}", commit) is None or not folder.is_dir():
        return None
    present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        files = select_files(present, model)
        if INDEX in files:
            index = json.loads(read_regular(folder / INDEX, _INDEX_BYTES))
            if not set(index["weight_map"].values()) <= set(present):
                return None
    except (
        *(ModelNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError),
        RecursionError,
    ):
        return None
    return folder, files


def model_path(folder: Path, files: Sequence[str]) -> Path:
    """Return what to load: the GGUF file, or the folder."""
    return folder / files[0] if files[0].lower().endswith(".gguf") else folder


def find_local(model: HubModel) -> tuple[Path, int] | None:
    """Return path and bytes of a model that is on this disk whole, without asking the network."""
    found = _local_files(model)
    if found is None:
        return None
    folder, files = found
    return model_path(folder, files), sum((folder / name).stat().st_size for name in files)


def delete(model: HubModel) -> int:
    """Delete the files of a model from the hub's cache and return the bytes freed.

    Files that another snapshot of the repository shares are kept there, and so is what lies
    elsewhere, wherever links lead.
    """
    found = _local_files(model)
    if found is None:
        return 0
    folder, files = found
    repo = repo_folder(model)
    freed = 0
    for name in files:
        path = folder / name
        data = path.parent / path.readlink() if path.is_symlink() else path
        # One step, not all the way: the blob may itself be a link, which is then all that is ours.
        data = Path(os.path.realpath(data.parent)) / data.name
        target = data.resolve()
        remove(path, repo)
        shared = any(other.resolve() == target for other in folder.parent.rglob("*"))
        if shared or not data.is_relative_to(os.path.realpath(repo)):
            continue
        if data.is_file() and not data.is_symlink():
            freed += data.stat().st_size
        remove(data, repo)
    remove_empty(folder, repo)
    return freed


def link_blob(model: HubModel, blob: Path, path: Path) -> None:
    """Give a blob its name in a snapshot: by a link, or by moving it where links are not allowed.

    Raises
    ------
    OSError
        As the operating system raises it.
    """
    repo = repo_folder(model)
    make_folders(path.parent, repo)
    try:
        link(path, blob, repo)
    except (OSError, NotImplementedError):
        rename(blob, path, repo)


def write_ref(model: HubModel, commit: str) -> None:
    """Remember at which commit a branch or tag was seen."""
    revision = model.revision or "main"
    if revision == commit:
        return
    repo = repo_folder(model)
    ref = repo / "refs" / revision
    make_folders(ref.parent, repo)
    temporary = ref.with_name(f"{ref.name}.slmq.tmp")
    with create(temporary, repo) as file:
        file.write(commit.encode("ascii"))
        publish(file, temporary, ref, repo)
