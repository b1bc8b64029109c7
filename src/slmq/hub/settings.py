"""What the environment says about the model hub: the variables mean what they mean everywhere."""

from __future__ import annotations

import os
from pathlib import Path

from slmq.machine.disk import read_regular

__all__ = ["hub_cache", "hub_endpoint", "hub_is_offline", "hub_token"]

_TOKEN_BYTES = 4096


def hub_endpoint() -> str:
    """Return the address of the hub or its mirror: ``HF_ENDPOINT``."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_is_offline() -> bool:
    """Tell whether the user forbids us to ask the hub: ``HF_HUB_OFFLINE``."""
    return _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE")


def hub_cache() -> Path:
    """Return the folder that all programs share for what they fetch from the hub.

    ``HF_HUB_CACHE`` when set, else ``hub`` in ``HF_HOME``, which is in the user's cache folder.
    """
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _path(chosen) if chosen else _home() / "hub"


def hub_token() -> str | None:
    """Return the user's token: ``HF_TOKEN``, or what ``hf auth login`` has left."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token and not _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        path = _path(os.environ.get("HF_TOKEN_PATH") or str(_home() / "token"))
        try:
            token = read_regular(path, _TOKEN_BYTES).decode("ascii")
        except (OSError, UnicodeError):
            return None  # nobody has logged in
    return "".join((token or "").split()) or None


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _path(os.environ.get("HF_HOME") or os.path.join(base, "huggingface"))  # noqa: PTH118


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
