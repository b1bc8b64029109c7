"""What `slmq.load` returns: a model that answers prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from slmq.generation.answer import Progress
from slmq.generation.bars import Report, reported
from slmq.generation.core import LoadedModel
from slmq.generation.label_prompts import Example
from slmq.generation.labels import Labeller, Labels
from slmq.generation.mapping import Errors, map_prompts, sample_prompt
from slmq.generation.params import SamplingArgs, SamplingParams
from slmq.generation.prompts import Prompt, one_question, prompt_ids, require_room
from slmq.generation.results import GenerationResult
from slmq.generation.session import MAX_ROUNDS, ChatSession
from slmq.generation.shapes import shape_of
from slmq.generation.stream import TokenStream
from slmq.generation.turn import OnCall
from slmq.settings import takes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from slmq.generation.aio import AsyncTokenStream

__all__ = ["Model", "Prompt"]


class Model(LoadedModel):
    """A loaded model; made by `slmq.load`.

    A prompt is one of

    - a string: encoded as it stands, with the special tokens that the tokenizer adds (such as
      BOS), and special tokens written out in it are recognised, as transformers does; no chat
      template is applied;
    - a sequence of token ids, used as they are;
    - a sequence of messages ``{"role": ..., "content": ...}``: the chat template is applied.

    Answers of any number of threads and streams are made together, and what a prompt shares with
    an earlier one is not computed again. An answer is the same, bit for bit, as alone.
    """

    @takes(SamplingParams)
    def generate(
        self,
        prompt: Prompt,
        *,
        progress: bool | Progress = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **params: Unpack[SamplingArgs],
    ) -> GenerationResult:
        """Answer a prompt.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of mapping
            Text, token ids or messages: see `Model`.
        progress : bool or callable
            True draws a bar on stderr while the prompt is read; a function is called with (prompt
            tokens done, prompt tokens in all).
        chat_template_kwargs : mapping, optional
            Further variables of the chat template, such as ``{"enable_thinking": False}`` for
            Qwen3, and ``tools``: JSON schemas of functions. Only for messages.
        **params
            See `slmq.generation.params.SamplingParams`.

        Returns
        -------
        GenerationResult

        Raises
        ------
        ContextOverflowError
            If prompt and ``max_tokens`` do not fit into the context; nothing is truncated.
        ValueError, TypeError
            If the prompt is empty or invalid, or a parameter is invalid.
        ClosedError
            If the model is closed.
        BusyError
            If too many wait already, or this thread has the engine for itself.
        CacheFullError
            If prompt and answer can never fit the cache of keys and values.
        ConstraintError
            If a schema or grammar is wrong, too complex, or cannot be enforced.
        CheckpointError
            If the model produces NaN.
        """
        stream = self.submit(
            prompt,
            params,
            progress=progress,
            chat_template_kwargs=chat_template_kwargs,
            whole=True,
        )
        return stream.finish()

    @takes(SamplingParams)
    def ask(
        self,
        question: str,
        *,
        system: str | None = None,
        progress: bool | Progress = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **params: Unpack[SamplingArgs],
    ) -> GenerationResult:
        """Answer a question through the chat template, as ``slmq run`` does; errors as `generate`.

        Sampling parameters that are not given are those that the catalogue suggests (`suggested`).

        Parameters
        ----------
        question : str
            The message of the user.
        system : str, optional
            System message.
        progress, chat_template_kwargs
            As in `generate`.
        **params
            As in `generate`.
        """
        stream = self.submit(
            one_question(question, system),
            {**self._suggested, **params},
            progress=progress,
            chat_template_kwargs=chat_template_kwargs,
            whole=True,
        )
        return stream.finish()

    @takes(SamplingParams)
    def stream(
        self,
        prompt: Prompt,
        *,
        progress: bool | Progress = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **params: Unpack[SamplingArgs],
    ) -> TokenStream:
        """Answer a prompt token by token; parameters and errors as in `generate`.

        Invalid arguments raise here. Closing the stream, leaving its ``with`` block or dropping it
        cancels the answer.
        """
        return self.submit(
            prompt, params, progress=progress, chat_template_kwargs=chat_template_kwargs
        )

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        ordered: Literal[True] = True,
        progress: bool | Report = False,
        errors: Literal["raise"] = "raise",
        **params: Unpack[SamplingArgs],
    ) -> Iterator[GenerationResult]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        ordered: Literal[True] = True,
        progress: bool | Report = False,
        errors: Literal["return"],
        **params: Unpack[SamplingArgs],
    ) -> Iterator[GenerationResult | Exception]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        ordered: Literal[False],
        progress: bool | Report = False,
        errors: Literal["raise"] = "raise",
        **params: Unpack[SamplingArgs],
    ) -> Iterator[tuple[int, GenerationResult]]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        ordered: Literal[False],
        progress: bool | Report = False,
        errors: Literal["return"],
        **params: Unpack[SamplingArgs],
    ) -> Iterator[tuple[int, GenerationResult | Exception]]: ...

    @takes(SamplingParams)
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        ordered: bool = True,
        progress: bool | Report = False,
        errors: Errors = "raise",
        **params: Unpack[SamplingArgs],
    ) -> Iterator[Any]:
        """Answer many prompts together, behind everybody who waits for a single one.

        Prompts are taken as there is room, 64 at a time, so they may come without end. Closing or
        dropping the iterator cancels what is under way.

        Parameters
        ----------
        prompts : iterable
            What `generate` takes, any number of them.
        ordered : bool
            Yield results in the order of the prompts; else ``(index, result)`` as they finish.
        progress : bool or callable
            True draws a bar on stderr; a function is called with (answers done, answers in all),
            the second being None if `prompts` has no length.
        errors : {"raise", "return"}
            Raise what is wrong with a prompt and cancel the others, or yield the exception in its
            place and go on.
        **params
            As in `generate`.
        """
        self._require_open()
        shape_of(SamplingParams.from_kwargs(params), self._vocabulary)
        return map_prompts(
            self.submit,
            self.submit_all,
            prompts,
            params,
            ordered=ordered,
            progress=progress,
            errors=errors,
        )

    @takes(SamplingParams)
    def samples(
        self, prompt: Prompt, n: int, **params: Unpack[SamplingArgs]
    ) -> list[GenerationResult]:
        """Answer a prompt `n` times; the prompt is computed once.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of mapping
        n : int
        **params
            As in `generate`, with a temperature above 0. Sample i is the answer to ``seed + i``;
            without a seed the first takes a fresh one.
        """
        self._require_open()
        chat = isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping)
        asked = prompt if chat else prompt_ids(self._engine, prompt)
        return sample_prompt(self.submit, self.submit_all, asked, n, params)

    @takes(SamplingParams)
    async def agenerate(self, prompt: Prompt, **params: Unpack[SamplingArgs]) -> GenerationResult:
        """`generate` for coroutines: cancelling the task cancels the answer.

        Prompts are encoded in the thread of the event loop; no thread waits for the answer.
        """
        return await self.answered(prompt, params)

    @takes(SamplingParams)
    def astream(self, prompt: Prompt, **params: Unpack[SamplingArgs]) -> AsyncTokenStream:
        """`stream` for ``async for``, within a running event loop.

        Leaving its ``async with`` block, dropping it, or cancelling the task that waits for a chunk
        cancels the answer.
        """
        from slmq.generation.aio import AsyncTokenStream

        return AsyncTokenStream(self._scheduler, self.submit(prompt, params))

    def logits(
        self,
        prompt: str | Sequence[int],
        *,
        rows: Literal["all", "last"] = "all",
        progress: bool | Report = False,
    ) -> NDArray[np.float32]:
        """Logits after every token of a text, or after its last.

        Parameters
        ----------
        prompt : str or sequence of int
            Text (encoded as in `generate`) or token ids.
        rows : {"all", "last"}
            "all" takes 4 bytes a token and vocabulary entry: 0.8 GB for 4,000 tokens and 49,152.
        progress : bool or callable
            True draws a bar on stderr; a function is called with (tokens done, tokens in all).

        Returns
        -------
        numpy.ndarray
            float32[n_tokens, n_vocab], where row i predicts token i + 1; float32[n_vocab] for
            "last".

        Raises
        ------
        ContextOverflowError
            If the text is longer than the context.
        ValueError, TypeError
            If the text is empty or invalid, or the model is closed.
        """
        self._require_open()
        if rows not in ("all", "last"):
            raise ValueError(f"rows: expected 'all' or 'last', got {rows!r}")
        ids = prompt_ids(self._engine, prompt)
        require_room(self._engine, len(ids), 0)
        with self.exclusive() as engine, reported(progress, "reading the text") as report:
            found = np.empty((len(ids) if rows == "all" else 1, self.n_vocab), np.float32)
            sequence = engine.sequence()
            try:
                for done in engine.feed_chunks(sequence, ids, found):
                    report(done, len(ids))
            finally:
                sequence.close()
        return found if rows == "all" else found[0]

    @takes(SamplingParams)
    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        forget: bool = False,
        max_rounds: int = MAX_ROUNDS,
        on_call: OnCall | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **params: Unpack[SamplingArgs],
    ) -> ChatSession:
        """Begin a conversation; parameters are those of every answer, unless a turn sets them.

        With ``tools``, a turn runs the calls of the model and tells it their results, until it
        answers. A ``tool_choice`` that makes it call a tool is for the first answer of a turn.

        Parameters
        ----------
        system : str, optional
            System message.
        messages : sequence of mapping, optional
            Go on with a conversation that was had before: the `messages` of its session.
        forget : bool
            Whether the oldest turns are forgotten when the context is full. Otherwise the next turn
            raises ContextOverflowError.
        max_rounds : int
            Most answers of a turn that may be calls; then the model has to answer in words.
        on_call : callable, optional
            Called with every `ToolCall` before it is run. If it returns a text, the call is not
            run and the model is told the text; if it raises, the turn ends.
        chat_template_kwargs : mapping, optional
            As in `generate`, for every turn.
        **params
            See `slmq.generation.params.SamplingParams`.
        """
        self._require_open()
        return ChatSession(
            self.submit,
            system=system,
            messages=messages,
            forget=forget,
            params=params,
            template=chat_template_kwargs,
            max_rounds=max_rounds,
            on_call=on_call,
        )

    def labeller(
        self,
        labels: Labels,
        *,
        instruction: str | None = None,
        examples: Sequence[Example] = (),
        calibrate: bool = False,
    ) -> Labeller:
        """What `label` does, for any number of texts that come one after the other.

        Its call takes an iterable of texts, also one without end, and yields their labels.
        """
        self._require_open()
        return Labeller(
            self.exclusive,
            self._engine,
            labels,
            instruction=instruction,
            examples=examples,
            calibrate=calibrate,
        )

    def label(
        self,
        texts: str | Iterable[str],
        labels: Labels,
        *,
        instruction: str | None = None,
        examples: Sequence[Example] = (),
        calibrate: bool = False,
    ) -> Any:
        """Choose a label for each text, by how likely it is as the model's answer.

        Nothing is generated, so there is always a label, with a probability for each.

        Parameters
        ----------
        texts : str or iterable of str
            One text, or any number of them.
        labels : sequence of str, or mapping of str to sequence of str
            At least two. A mapping asks several questions about each text, which is read once for
            all of them: names, such as "Sentiment", with the labels of each.
        instruction : str, optional
            What is asked, such as "Is this review positive or negative?".
        examples : sequence of (str, str)
            Texts with their labels, shown to the model before the text.
        calibrate : bool
            Take out what the model prefers when there is no text.

        Returns
        -------
        Label, or list of Label
            One for one text. Of several questions a dict of them, by name.

        Raises
        ------
        ContextOverflowError
            If a text does not fit into the context; nothing is truncated.
        ValueError, TypeError
            If an argument is invalid.
        CheckpointError
            If the model produces NaN.
        """
        labeller = self.labeller(
            labels, instruction=instruction, examples=examples, calibrate=calibrate
        )
        if isinstance(texts, str):
            return next(labeller([texts]))
        if not isinstance(texts, Iterable):
            raise TypeError(f"texts: expected a str or an iterable of them, got {type(texts)}")
        return list(labeller(texts))
