"""A processor for `ray.data`, in the shape of Ray's own: rows go in, rows with answers come out.

A request travels as JSON in a column of its own, so the others pass by as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmq.batch.answers import call_body
from slmq.batch.lines import CHAT, COMPLETIONS
from slmq.batch.requests import RequestError, read_request, seed_of
from slmq.engine.options import LoadOptions
from slmq.errors import ClosedError, Error
from slmq.settings import from_keywords

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

    from slmq.generation.results import GenerationResult

__all__ = ["Processor", "ProcessorConfig", "build_processor"]

Row = dict[str, Any]
BESIDE = ("tools", "tool_choice", "chat_template_kwargs")  # messages
FIELDS = ("messages", "prompt", "sampling_params", "custom_id", *BESIDE)
REQUEST = "__slmq_request"
ERROR = "__inference_error__"  # as Ray calls it
WORDS = (ERROR, "generated_text", "reasoning", "tool_calls", "finish_reason")
COUNTS = ("num_input_tokens", "num_generated_tokens")


@dataclass(frozen=True)
class ProcessorConfig:
    """What answers, and where; the names are those of Ray's own configurations.

    Attributes
    ----------
    model_source : str or path
        As `slmq.load` takes it; each node needs the model, or a way to fetch it.
    engine_kwargs : mapping
        Options of `slmq.load`.
    sampling_params : mapping
        Sampling parameters of rows that do not set them.
    batch_size : int
        Rows that are handed over together. All of them are computed together.
    concurrency : int or (int, int)
        Copies of the model, or least and most of them: one for each NUMA node is best.
    num_cpus : int
        Threads of each copy.
    max_concurrent_batches : int
        Batches that a copy has at a time; with 1, it waits at the end of each for the longest row.
    """

    model_source: str | os.PathLike[str]
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampling_params: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    concurrency: int | tuple[int, int] = 1
    num_cpus: int = 1
    max_concurrent_batches: int = 4

    def __post_init__(self) -> None:
        from_keywords(LoadOptions, dict(self.engine_kwargs))
        least, most = self.copies
        if not 1 <= least <= most:
            raise ValueError(f"concurrency: expected 1 or more copies, got {self.concurrency!r}")
        for name in ("batch_size", "num_cpus", "max_concurrent_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")

    @property
    def copies(self) -> tuple[int, int]:
        """Least and most copies of the model."""
        given = self.concurrency
        return (given, given) if isinstance(given, int) else given


def build_processor(
    config: ProcessorConfig,
    preprocess: Callable[[Row], Row] | None = None,
    postprocess: Callable[[Row], Row] | None = None,
) -> Processor:
    """A function from a data set of Ray's to one with answers.

    Parameters
    ----------
    config : ProcessorConfig
    preprocess : callable, optional
        Makes of a row what is asked: `messages` or `prompt`, and perhaps `sampling_params` and
        `custom_id`. What it leaves out is taken from the row.
    postprocess : callable, optional
        Makes of a row with its answer what is kept of both.

    Returns
    -------
    Processor

    Examples
    --------
    >>> from slmq.server.ray import ProcessorConfig, build_processor  # doctest: +SKIP
    >>> answered = build_processor(  # doctest: +SKIP
    ...     ProcessorConfig("smollm2-135m-instruct", concurrency=4, num_cpus=8),
    ...     preprocess=lambda row: {"messages": [{"role": "user", "content": row["question"]}]},
    ... )(ray.data.read_parquet("questions"))
    """
    return Processor(config, preprocess, postprocess)


class Processor:
    """What `build_processor` makes: call it with a data set."""

    def __init__(
        self,
        config: ProcessorConfig,
        preprocess: Callable[[Row], Row] | None,
        postprocess: Callable[[Row], Row] | None,
    ) -> None:
        self._config = config
        self._preprocess = preprocess
        self._postprocess = postprocess

    def __call__(self, dataset: Dataset) -> Dataset:
        """The rows with columns of their answers.

        These are `generated_text`, `reasoning`, `tool_calls` (JSON), `finish_reason`,
        `num_input_tokens` and `num_generated_tokens`. A row that was refused or failed has a
        message in `__inference_error__`, which is empty elsewhere; the others go on.
        """
        from ray.data import ActorPoolStrategy

        config, preprocess, postprocess = self._config, self._preprocess, self._postprocess
        least, most = config.copies

        def ask(row: Row) -> Row:
            asked = {**row, **(preprocess(row) if preprocess is not None else {})}
            request = {name: asked[name] for name in FIELDS if name in asked}
            return {**row, REQUEST: _as_json(request)}

        answered = dataset.map(ask).map_batches(
            _Engine,
            fn_constructor_args=(config,),
            batch_size=config.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=least,
                max_size=most,
                max_tasks_in_flight_per_actor=config.max_concurrent_batches,
            ),
            num_cpus=config.num_cpus,
            max_concurrency=config.max_concurrent_batches,
        )
        answered = answered.drop_columns([REQUEST])
        return answered if postprocess is None else answered.map(postprocess)


class _Engine:
    """A model in a process of Ray's; its batches share every step."""

    def __init__(self, config: ProcessorConfig) -> None:
        from slmq.generation.loading import load

        # Ray tells libraries their threads by OMP_NUM_THREADS, which slmq does not read.
        options = {"n_threads": config.num_cpus, **config.engine_kwargs}
        self._model = load(config.model_source, progress=False, **options)
        self._defaults = {**self._model.suggested, **config.sampling_params}

    async def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        rows = batch.column(REQUEST).to_pylist()
        answers = await asyncio.gather(*(self._answer(json.loads(row)) for row in rows))
        for kind, names in ((pyarrow.string(), WORDS), (pyarrow.int64(), COUNTS)):
            for name in names:
                values = [answer[name] for answer in answers]
                batch = batch.append_column(name, pyarrow.array(values, kind))
        return batch

    async def _answer(self, request: Row) -> Row:
        try:
            prompt, params, template = _read(request, self._defaults)
            result = await self._model.answered(
                prompt, params, chat_template_kwargs=template, batch=True
            )
        except ClosedError:
            raise
        except (Error, ValueError, TypeError) as error:
            return _columns(None, f"{type(error).__name__}: {error}")
        return _columns(result, "")


def _read(request: Row, defaults: Mapping[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """Prompt, sampling parameters and template variables of a row."""
    given = request.get("sampling_params") or {}
    if not isinstance(given, dict):
        raise RequestError(f"sampling_params: expected a mapping, got {given!r:.80}")
    url = CHAT if request.get("messages") is not None else COMPLETIONS
    field_of = "messages" if url == CHAT else "prompt"
    body = {**given, field_of: request.get(field_of)}
    for name in BESIDE:
        if url == CHAT and request.get(name) is not None:
            body[name] = request[name]
    custom_id = request.get("custom_id")
    # The same row, computed again, draws the same.
    seed = seed_of(_as_json(body) if custom_id is None else str(custom_id))
    asked = read_request(url, body, seed, defaults)
    answers = list(asked.answers())
    if len(answers) != 1:
        raise RequestError(f"expected one answer for each row, got {len(answers)}")
    ((prompt, params),) = answers
    return prompt, params, asked.template


def _columns(result: GenerationResult | None, error: str) -> Row:
    if result is None:
        return {**dict.fromkeys(WORDS, ""), **dict.fromkeys(COUNTS, 0), ERROR: error}
    calls = [call_body(call) for call in result.tool_calls or ()]
    return {
        ERROR: error,
        "generated_text": result.text,
        "reasoning": result.reasoning or "",
        "tool_calls": json.dumps(calls) if calls else "",
        "finish_reason": result.finish_reason,
        "num_input_tokens": result.prompt_tokens,
        "num_generated_tokens": result.generated_tokens,
    }


def _as_json(value: Row) -> str:
    """What a row holds, for which rows of Arrow have arrays and numbers of NumPy's."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """The same in lists, dictionaries and plain values; fields that are None are left out."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
