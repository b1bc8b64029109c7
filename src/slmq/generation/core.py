"""A model that is loaded: engine, scheduler, and the one way in that everything else stands on."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from slmq.errors import ClosedError
from slmq.generation.answer import Progress, Request
from slmq.generation.bars import prompt_bar
from slmq.generation.constraints import Vocabulary
from slmq.generation.draft import Draft
from slmq.generation.pages import limit_caches
from slmq.generation.params import CHAT_LIMIT, TEXT_LIMIT, SamplingParams
from slmq.generation.prompts import Prompt, prompt_ids, require_room, speech_of
from slmq.generation.results import GenerationResult
from slmq.generation.scheduler import MOST_WAITING, Scheduler
from slmq.generation.shapes import shape_of
from slmq.generation.stats import Stats
from slmq.generation.stream import TokenStream
from slmq.generation.window import Outcome, Start, in_flight
from slmq.weights.lora import read_lora

if TYPE_CHECKING:
    from typing_extensions import Self

    from slmq.engine.adapters import Adapter
    from slmq.engine.engine import Engine
    from slmq.tokenizer import Tokenizer

__all__ = ["LoadedModel"]


class LoadedModel:
    """What a `slmq.Model` is made of; its ways to ask for answers are built on `submit`."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler | None = None,
        *,
        draft: Engine | None = None,
        suggested: Mapping[str, Any] | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._engine = engine
        self._suggested = dict(suggested or {})
        if scheduler is None:
            limit_caches(engine, draft)
            scheduler = Scheduler(
                engine,
                most_waiting=most_waiting,
                draft=None if draft is None else Draft(draft, engine),
            )
        self._scheduler = scheduler
        self._vocabulary = Vocabulary(engine.tokenizer)
        self._adapters: dict[str, Adapter] = {}
        self._streams: weakref.WeakSet[TokenStream] = weakref.WeakSet()

    @property
    def engine(self) -> Engine:
        """The engine under this model; to run it, have it alone: see `exclusive`."""
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._engine.tokenizer

    @property
    def name(self) -> str:
        """The name that the model was loaded by."""
        return self._engine.name

    @property
    def n_ctx(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._engine.n_ctx

    @property
    def n_vocab(self) -> int:
        """Number of tokens that the model knows."""
        return self._engine.n_vocab

    @property
    def suggested(self) -> dict[str, Any]:
        """Sampling parameters that the catalogue suggests; empty for models that it lacks."""
        return dict(self._suggested)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._scheduler.closed

    @property
    def adapters(self) -> dict[str, str]:
        """The adapters that are loaded: by name, a hash of all that each adds."""
        return {name: adapter.digest for name, adapter in self._adapters.items()}

    def load_adapter(self, path: str | os.PathLike[str], name: str | None = None) -> str:
        """Load a low-rank adapter, for requests that ask for it with ``adapter=NAME``.

        Answers with different adapters, and without one, are made together; those without one are
        the same, to the bit, as if there were none. An adapter of the same name is replaced:
        answers that are under way keep the old one.

        Parameters
        ----------
        path : str or path
            A folder of PEFT (``adapter_config.json``, ``adapter_model.safetensors``) or mlx-lm
            (``adapters.safetensors``), or a GGUF file.
        name : str, optional
            By default the name of the folder or file.

        Returns
        -------
        str
            The name.

        Raises
        ------
        CheckpointError
            If it is damaged, or does not fit the model.
        UnsupportedModelError
            If it does more than add products of two matrices.
        ClosedError
            If the model is closed.
        """
        lora = read_lora(Path(path))
        name = lora.path.resolve().stem if name is None else name
        if not name:
            raise ValueError("name: expected a text, got ''")
        with self.exclusive() as engine:
            self._adapters[name] = engine.fit(lora)
        return name

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Answers that are under way keep it.

        Raises
        ------
        ValueError
            If none of this name is loaded.
        """
        self._adapter(name)
        del self._adapters[name]

    def adapter_bytes(self, name: str) -> int:
        """Memory that an adapter takes.

        Raises
        ------
        ValueError
            If none of this name is loaded.
        """
        return self._adapter(name).native.nbytes

    def _adapter(self, name: str) -> Adapter:
        try:
            return self._adapters[name]
        except KeyError:
            loaded = ", ".join(map(repr, self._adapters)) or "none"
            raise ValueError(
                f"adapter: expected one that is loaded ({loaded}), got {name!r:.80}; "
                f"load_adapter(path) loads it"
            ) from None

    def exclusive(self) -> AbstractContextManager[Engine]:
        """The engine, for this thread alone within a ``with`` block: all answers wait.

        Raises
        ------
        ClosedError
            If the model is closed.
        BusyError
            If this thread is in such a block already.
        """
        return self._scheduler.exclusive()

    def stats(self) -> Stats:
        """What is going on, and what has been done so far."""
        return self._scheduler.stats()

    def close(self) -> None:
        """Cancel what is running and free weights and caches; later calls raise ClosedError."""
        if not self.closed:
            self._scheduler.close()
        for stream in list(self._streams):
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled or copied: its weights belong to this process; load the "
            f"model in each process (folders of `slmq convert` share their memory)"
        )

    def __repr__(self) -> str:
        if self.closed:
            return f"<slmq.Model {self.name!r}, closed>"
        return f"<slmq.Model {self.name!r}, n_ctx={self.n_ctx}, n_vocab={self.n_vocab}>"

    def submit(
        self,
        prompt: Prompt,
        params: Mapping[str, Any],
        *,
        progress: bool | Progress | None = None,
        on_finish: Callable[[GenerationResult], None] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch: bool = False,
        deadline_s: float | None = None,
        salt: Hashable = None,
        whole: bool = False,
        room: int = 1,
    ) -> TokenStream:
        """Queue a prompt; what `generate`, `stream`, chats and servers stand on.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of mapping
        params : mapping
            The arguments of `slmq.generation.sampling.SamplingParams`.
        progress : bool or callable, optional
            As in `generate`, called by the thread that reads the stream.
        on_finish : callable, optional
            Called with the result when the reader has come to the end, or has closed the stream.
        chat_template_kwargs : mapping, optional
            As in `generate`.
        batch : bool
            Whether everybody else goes first.
        deadline_s : float, optional
            Seconds after which the answer fails with DeadlineError.
        salt : hashable, optional
            Only prompts of the same salt share what was computed.
        whole : bool
            Whether the stream has one chunk only, the last, with the result.
        room : int
            Tokens for which there must be room behind the prompt, or a quarter of the context, if
            `params` name no limit.

        Raises
        ------
        BusyError
            If too many wait already.
        CacheFullError
            If prompt and answer can never fit the cache of keys and values.
        ContextOverflowError, ValueError, TypeError
            As in `generate`.
        """
        self._require_open()
        report = prompt_bar() if progress is True else progress or None
        if "n" in params:
            raise TypeError("n: expected one answer; m.samples(prompt, n) gives several")
        checked = SamplingParams.from_kwargs(params)
        began_s = time.perf_counter()
        speech = speech_of(self._engine, prompt, checked.wish, chat_template_kwargs)
        ids = prompt_ids(self._engine, prompt if speech is None else speech)
        encode_s = time.perf_counter() - began_s
        if speech is not None and speech.banned:
            biases = {**(checked.logit_bias or {}), **dict.fromkeys(speech.banned, -math.inf)}
            checked = replace(checked, logit_bias=biases)
        least = max(1, min(room, self.n_ctx // 4))
        require_room(self._engine, len(ids), least if checked.limit is None else checked.limit)
        shape = shape_of(checked, self._vocabulary, speech)
        request = Request(
            ids,
            checked,
            encode_s,
            batch,
            deadline_s,
            salt,
            follow=report is not None,
            continues=speech is None,
            whole=whole,
            shape=shape,
            speech=speech,
            usual=TEXT_LIMIT if speech is None else CHAT_LIMIT,
            adapter=None if checked.adapter is None else self._adapter(checked.adapter),
        )
        job = self._scheduler.submit(request)
        stream = TokenStream(self._scheduler, job, report, on_finish)
        self._streams.add(stream)
        return stream

    async def answered(
        self, prompt: Prompt, params: Mapping[str, Any], **options: Any
    ) -> GenerationResult:
        """The whole answer to what `submit` takes; cancelling the task cancels it."""
        from slmq.generation.aio import finish

        start = partial(self.submit, prompt, params, whole=True, **options)
        return await finish(self._scheduler, start)

    def submit_all(
        self, starts: Iterable[Start], *, ordered: bool = False
    ) -> Generator[tuple[int, Outcome], None, None]:
        """Submit requests as there is room; what `map` and batch jobs stand on.

        Parameters
        ----------
        starts : iterable of callable
            Each calls `submit` with ``whole=True`` and returns the stream.
        ordered : bool
            Whether results come in the order of the requests, or as they finish.

        Yields
        ------
        int
            Number of the request, from 0.
        GenerationResult or Exception
        """
        return in_flight(self._scheduler, starts, ordered=ordered)

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedError(f"the model {self.name!r} is closed")
