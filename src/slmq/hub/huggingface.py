"""Models of a hub repository, in the cache that the ``huggingface_hub`` library keeps.

That library does the talking, so ``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``
mean what they mean everywhere, and a model that another program fetched is not fetched again.
"""

from __future__ import annotations

import errno
import json
import queue
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from slmq.errors import DownloadError, ModelNotFoundError
from slmq.hub.cache import cache_error, megabytes, require_free, sha256_of
from slmq.hub.progress import LogProgress, Progress

__all__ = ["HubModel", "delete", "download_model", "find_local", "parse_hub_id", "select_files"]

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?::(?P<pattern>[^:]+))?")
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer*",
    "chat_template*",
)
# What older repositories have instead of tokenizer.json.
_OLD_TOKENIZERS = ("vocab.json", "merges.txt", "spiece.model", "added_tokens.json")
_INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)
_WAIT_S = 8.0
_POLL_S = 0.2


@dataclass(frozen=True)
class HubModel:
    """What a hub id means: a repository and, for GGUF, which of its files."""

    repo: str
    pattern: str | None
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.pattern is None else f"{self.repo}:{self.pattern}"


def parse_hub_id(model: str, revision: str | None = None) -> HubModel | None:
    """Read ``org/name`` or ``org/name:pattern``; None when `model` is neither."""
    match = _HUB_ID.fullmatch(model)
    if match is None or ".." in match["repo"] or match["repo"].endswith(".gguf"):
        return None
    return HubModel(match["repo"], match["pattern"], revision)


def select_files(names: Sequence[str], model: HubModel) -> list[str]:
    """Choose what to load out of the files of a repository.

    Without a pattern: `config.json`, the tokenizer and the safetensors weights, or the only GGUF
    file. With one: the GGUF file that it matches (``Q4_0``, ``*q4_0.gguf``), case ignored.

    Raises
    ------
    ModelNotFoundError
        When nothing fits, or several GGUF files do.
    """
    top = [name for name in names if "/" not in name]
    if model.pattern is None and "config.json" in top:
        weights = [name for name in top if name == "model.safetensors"]
        if not weights and _INDEX in top:
            weights = [_INDEX, *(name for name in top if fnmatchcase(name, _SHARDS))]
        if weights:
            wanted = _COMPANIONS if "tokenizer.json" in top else (*_COMPANIONS, *_OLD_TOKENIZERS)
            companions = [
                name for name in top if any(fnmatchcase(name, pattern) for pattern in wanted)
            ]
            return [*companions, *weights]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    pattern = (model.pattern or "*").lower()
    pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in ggufs if fnmatchcase(name.lower(), pattern)]
    if len(found) == 1:
        return found
    if not ggufs:
        raise ModelNotFoundError(
            f"{model}: the repository has neither config.json with model.safetensors (or "
            f"{_INDEX}) nor a GGUF file"
        )
    several = f"{len(found)} GGUF files match" if found else "no GGUF file matches"
    raise ModelNotFoundError(
        f"{model}: {several}; choose one as {model.repo}:PATTERN out of {', '.join(ggufs)}"
    )


def _repo_folder(model: HubModel) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / ("models--" + model.repo.replace("/", "--"))


def _local_files(model: HubModel) -> tuple[Path, list[str]] | None:
    """Return the snapshot folder and the chosen files when all of them are on this disk."""
    repo = _repo_folder(model)
    commit = model.revision or "main"
    with suppress(OSError):  # a commit is its own reference
        commit = (repo / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = repo / "snapshots" / commit
    if re.fullmatch("[0-9a-f]{40}", commit) is None or not folder.is_dir():
        return None
    present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        files = select_files(present, model)
        if _INDEX in files:
            shards = set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
            if not shards <= set(present):
                return None
    except (ModelNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder, files


def _model_path(folder: Path, files: Sequence[str]) -> Path:
    return folder / files[0] if files[0].lower().endswith(".gguf") else folder


def find_local(model: HubModel) -> tuple[Path, int] | None:
    """Return path and bytes of a model that is on this disk whole, without asking the network."""
    found = _local_files(model)
    if found is None:
        return None
    folder, files = found
    return _model_path(folder, files), sum((folder / name).stat().st_size for name in files)


def delete(model: HubModel) -> int:
    """Delete the files of a model from the hub's cache and return the bytes freed.

    Files that another snapshot of the repository shares are kept there.
    """
    found = _local_files(model)
    if found is None:
        return 0
    folder, files = found
    freed = 0
    for name in files:
        link = folder / name
        data = link.resolve()
        bytes_here = data.stat().st_size
        link.unlink()
        shared = any(other.resolve() == data for other in folder.parent.rglob("*"))
        if not shared and data.is_relative_to(_repo_folder(model).resolve()):
            # Where links are not allowed the data lay under the name itself, and are gone.
            data.unlink(missing_ok=True)
            freed += bytes_here
    if not any(folder.iterdir()):
        folder.rmdir()
    return freed


def download_model(model: HubModel, progress: Progress) -> Path:
    """Download what is missing of a model, check it, and return its path.

    Raises
    ------
    ModelNotFoundError
        When the repository, the revision or a fitting file does not exist.
    DownloadError
        When the hub does not answer or refuses (a gated model), or a checksum is wrong.
    CacheError
        When the disk is full or refuses.
    """
    from huggingface_hub import hf_hub_download

    with _plain_errors(model, "did not answer"):
        info = _listing(model)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = select_files(list(siblings), model)
    snapshot = _repo_folder(model) / "snapshots" / str(info.sha)
    missing = [name for name in names if not (snapshot / name).exists()]
    need = sum(siblings[name].size or 0 for name in missing)
    require_free(_repo_folder(model), need, str(model), variable="HF_HOME")
    if missing:
        progress.message(f"{model}: downloading {len(missing)} files, {megabytes(need)}")
    kept = "stopped responding; complete files are kept, so try again to continue"
    watched = _watched(model, siblings, missing, need, progress)
    with _plain_errors(model, kept), _quiet_bars(), watched:
        for name in names:
            path = hf_hub_download(model.repo, name, revision=model.revision, etag_timeout=_WAIT_S)
            if Path(path) != snapshot / name:
                raise DownloadError(f"{model} changed during the download; try again")
            if name in missing:
                _verify(model, snapshot / name, siblings[name])
    return _model_path(snapshot, names)


def _listing(model: HubModel) -> Any:
    """Ask the hub what the repository holds, and give up on one that stays silent.

    The library tries again by itself, and no socket timeout covers the name lookup; hence a thread.
    """
    from huggingface_hub import HfApi

    replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            reply: Any = HfApi().model_info(
                model.repo, revision=model.revision, files_metadata=True, timeout=_WAIT_S
            )
        except Exception as error:  # it belongs to the thread that waits
            reply = error
        replies.put(reply)

    threading.Thread(target=ask, daemon=True).start()
    try:
        reply = replies.get(timeout=_WAIT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_WAIT_S:g} s") from None
    if isinstance(reply, Exception):
        raise reply
    return reply


def _verify(model: HubModel, path: Path, sibling: Any) -> None:
    """Check a file, before the next one is fetched, against the hub's checksum of large files."""
    expected = getattr(sibling.lfs, "sha256", None)
    if expected is None:
        return
    got = sha256_of(path, path.name, LogProgress())
    if got != expected:
        data = path.resolve()
        path.unlink()
        data.unlink(missing_ok=True)
        raise DownloadError(
            f"{model}: wrong checksum of {path.name}: expected sha256 {expected}, got {got}; "
            "the file was deleted; try again"
        )


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Keep the library's own bars off the terminal."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


@contextmanager
def _watched(
    model: HubModel, siblings: Any, names: Sequence[str], total: int, progress: Progress
) -> Iterator[None]:
    """Report how the blobs grow on disk: the one sign that every release of the library gives."""
    blobs = _repo_folder(model) / "blobs"
    etags = [
        getattr(siblings[name].lfs, "sha256", None) or siblings[name].blob_id for name in names
    ]
    done = threading.Event()

    def grown() -> int:
        sizes = [
            max((path.stat().st_size for path in blobs.glob(f"{etag}*")), default=0)
            for etag in etags
            if etag
        ]
        return min(sum(sizes), total) if total else sum(sizes)

    def watch() -> None:
        while not done.wait(_POLL_S):
            try:
                progress.update(str(model), grown(), total or None)
            except FileNotFoundError:
                continue  # a blob got its final name between listing and looking

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    if total:
        progress.update(str(model), total, total)


@contextmanager
def _plain_errors(model: HubModel, otherwise: str) -> Iterator[None]:
    """Say what the library's errors mean and what to do; `otherwise` is for those of the line."""
    try:
        yield
    except (DownloadError, ModelNotFoundError):
        raise
    except Exception as error:
        raise _translated(model, error, otherwise) from error


def _translated(model: HubModel, error: Exception, otherwise: str) -> Exception:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{model.repo}"
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{model} is gated; accept its conditions at {page}, then set HF_TOKEN to a token of "
            "your account (or run `hf auth login`)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{model}: {page} has no revision {model.revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{model}: {page} does not exist or is private; if it is private, set HF_TOKEN "
            "to a token of an account that has access"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(f"{model} is not in the cache, and HF_HUB_OFFLINE forbids downloading")
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return cache_error(error, _repo_folder(model), variable="HF_HOME")
    words = str(error).strip().partition("\n")[0]
    return DownloadError(
        f"{model}: {constants.ENDPOINT} {otherwise} ({type(error).__name__}: {words})"
    )
