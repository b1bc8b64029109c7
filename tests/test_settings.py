"""Options: one definition for signatures, type checkers, checks and messages."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_type_hints

import pytest

import slmq
import slmq._native as _native
from slmq.engine import opening
from slmq.engine.options import MAX_THREADS, LoadArgs, LoadOptions
from slmq.formats import FORMATS, ROUNDED, USER_FORMATS
from slmq.generation.params import SamplingArgs, SamplingParams
from slmq.generation.session import ChatSession
from slmq.quantizer.grids import GRIDS
from slmq.settings import (
    Activations,
    EncoderActivations,
    KvDtype,
    Memory,
    PackedFormat,
    WeightFormat,
    check_options,
    described,
    from_keywords,
    integer,
    option,
    option_of,
    takes,
    truth,
    written_hints,
)
from slmq.weights.placement import MEMORIES

KINDS = [LoadOptions, SamplingParams]


# --- one definition ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "args"), [(LoadOptions, LoadArgs), (SamplingParams, SamplingArgs)]
)
def test_type_checkers_know_what_the_dataclass_knows(kind: type, args: type) -> None:
    assert get_type_hints(args) == get_type_hints(kind)
    assert list(get_type_hints(args)) == [entry.name for entry in fields(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_documented_and_its_default_is_valid(kind: type) -> None:
    text = described(kind)
    for entry in fields(kind):
        assert entry.name in text
        assert option_of(entry).help.endswith(".")
        assert option_of(entry).check(entry.name, entry.default) in (entry.default, ())
    with pytest.raises(FrozenInstanceError):
        setattr(kind(), fields(kind)[0].name, None)


def test_words_are_those_that_are_known() -> None:
    assert set(get_args(WeightFormat)) == {*USER_FORMATS, *ROUNDED}
    assert set(get_args(PackedFormat)) == {*USER_FORMATS, *GRIDS}
    assert set(USER_FORMATS.values()) <= FORMATS.keys()
    assert set(get_args(Memory)) == set(MEMORIES)
    assert set(get_args(EncoderActivations)) == opening.ACTIVATIONS.keys()
    assert set(get_args(Activations)) < set(get_args(EncoderActivations))
    for word in get_args(KvDtype):
        _native.Recording(1, 1, 1, 1, word, None)
    with pytest.raises(ValueError, match="kv_type"):
        _native.Recording(1, 1, 1, 1, "f8", None)


def test_threads_end_where_the_native_code_ends() -> None:
    assert _native.resolve_threads(MAX_THREADS)["threads"] == MAX_THREADS
    with pytest.raises(ValueError, match="n_threads"):
        _native.resolve_threads(MAX_THREADS + 1)


# --- signatures -------------------------------------------------------------------------------


def test_completion_and_help_offer_every_load_option() -> None:
    parameters = inspect.signature(slmq.load).parameters
    assert list(parameters) == [
        "model",
        "revision",
        "local_files_only",
        "progress",
        *get_type_hints(LoadArgs),
    ]
    assert parameters["kv_dtype"].default == "f16"
    assert parameters["kv_dtype"].kind is inspect.Parameter.KEYWORD_ONLY
    text = inspect.getdoc(slmq.load)
    assert text is not None
    assert described(LoadOptions) in text
    assert "**options" not in text


@pytest.mark.parametrize(
    ("function", "own"),
    [
        (slmq.Model.generate, ["self", "prompt", "progress", "chat_template_kwargs"]),
        (slmq.Model.ask, ["self", "question", "system", "progress", "chat_template_kwargs"]),
        (slmq.Model.stream, ["self", "prompt", "progress", "chat_template_kwargs"]),
        (
            slmq.Model.chat,
            [
                *["self", "system", "messages", "forget", "max_rounds", "on_call"],
                "chat_template_kwargs",
            ],
        ),
        (ChatSession.send, ["self", "text", "progress"]),
        (ChatSession.stream, ["self", "text", "progress"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_completion_offers_every_sampling_parameter(function: Any, own: list[str]) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters) == own + list(get_type_hints(SamplingArgs))
    assert parameters["temperature"].default == 0.0


def test_help_of_generate_describes_them() -> None:
    text = inspect.getdoc(slmq.Model.generate)
    assert text is not None
    assert described(SamplingParams) in text


def test_the_entry_of_the_keywords_gives_way_to_the_parameters() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Drink:
        """What to pour.

        Parameters
        ----------
        sugar : int
            Lumps.
        milk : bool
            Whether there is milk.

        Raises
        ------
        ValueError
        """

        sugar: int = option(0, "Lumps.", integer("an int >= 0", low=0))
        milk: bool = option(False, "Milk.", truth)

    @takes(Drink)
    def pour(cup: str, **wishes: Any) -> None:
        """Pour.

        Parameters
        ----------
        cup : str
            Where.
        **wishes
            See `Drink`, which
            is described there.

        Returns
        -------
        None
        """

    shown = str(inspect.signature(pour))
    assert shown == "(cup: 'str', *, sugar: 'int' = 0, milk: 'bool' = False) -> 'None'"
    assert inspect.getdoc(pour) == (
        "Pour.\n\nParameters\n----------\ncup : str\n    Where.\nsugar : int\n    Lumps.\n"
        "milk : bool\n    Whether there is milk.\n\nReturns\n-------\nNone"
    )


MISTAKES = """
import slmq
slmq.load("m", format="int3")
slmq.load("m", kv_dtype="f12")
slmq.load("m", memory="big")
slmq.load("m", activations="some")
slmq.load("m", n_ctxt=1)
slmq.load("m", kv_bytes=0.5)
slmq.load("m", kv_bytes="512MB", draft="n")
slmq.quantize("a", "b", format="q9")
with slmq.load("m", format="int4", kv_dtype="int8", memory="mmap", activations="exact") as m:
    m.generate("x", temperature=1, min_p=0.5)
    m.generate("x", temprature=1)
    m.generate("x", max_tokens="all")
    m.ask("x", max_tokens=None, progress=True).txt
    m.logits("x", rows="first")
    chat: slmq.ChatSession = m.chat(messages=[], forget=True)
    stream: slmq.TokenStream = m.stream("x", top_k=2)
slmq.lod("x")
slmq.hub.pull("x")
print(slmq.pull("x").path, slmq.list_models(), slmq.SamplingParams(seed=1), slmq.__version__)
"""


def test_mypy_sees_wrong_words(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="of the lint extra")
    file = tmp_path / "mistakes.py"
    file.write_text(MISTAKES, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # mypy refuses to start where packages are installed
    )
    lines = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert lines == [3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16, 19], done.stdout


# --- checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "q4_k_m", "format: expected one of 'int4', 'int8', .*; got 'q4_k_m'"),
        ("format", "q5k", "format: expected one of"),
        ("n_ctx", 0, "n_ctx: expected an int in 1..16777216, got 0"),
        ("n_ctx", 1 << 25, "n_ctx: expected"),
        ("n_threads", 0, "n_threads: expected an int in 1..1024, got 0"),
        ("kv_dtype", "int2", "kv_dtype: expected one of 'f16', 'f32', 'int8', 'int4'; got 'int2'"),
        ("kv_dtype", None, "kv_dtype: expected one of"),
        ("memory", "disk", "memory: expected one of 'mmap', 'huge', 'small'; got 'disk'"),
        ("activations", "a16g32", "activations: expected one of 'mixed', 'exact'"),
        ("activations", [], "activations: expected one of"),
        ("kv_bytes", 0, "kv_bytes: expected a number of bytes, such as .*, got 0"),
        ("kv_bytes", "0", "kv_bytes: expected a number of bytes"),
        ("kv_bytes", "much", "kv_bytes: expected a number of bytes, .*, got 'much'"),
        ("kv_bytes", "-1MB", "kv_bytes: expected a number of bytes"),
        ("kv_bytes", "1MBit", "kv_bytes: expected a number of bytes"),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_looked_for(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        slmq.load("no-such-model", **{name: value})


@pytest.mark.parametrize(("name", "value"), [("n_ctx", 1.0), ("n_ctx", True), ("n_threads", "2")])
def test_a_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(
        TypeError, match=f"{name}: expected an int in .*, got {type(value).__name__}"
    ):
        slmq.load("no-such-model", **{name: value})


@pytest.mark.parametrize(("name", "value"), [("kv_bytes", 1.5), ("kv_bytes", True), ("draft", 3)])
def test_no_number_of_bytes_and_no_name(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected .*, got {type(value).__name__} {value}"):
        slmq.load("no-such-model", **{name: value})


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (None, None),
        (4096, 4096),
        ("4096", 4096),
        ("512MB", 512_000_000),
        (" 1.5 gb ", 1_500_000_000),
        ("64kB", 64_000),
        ("64 KiB", 65536),
        ("2GiB", 2 << 30),
        ("0.7TiB", 769658139443),
        ("12b", 12),
    ],
)
def test_numbers_of_bytes(given: int | str | None, count: int | None) -> None:
    assert LoadOptions(kv_bytes=given).kv_bytes == count


def test_an_unknown_option_names_its_neighbour() -> None:
    with pytest.raises(TypeError, match="unknown parameter 'kv_type'; did you mean 'kv_dtype'"):
        slmq.load("no-such-model", kv_type="f16")  # type: ignore[call-arg]


def test_the_former_name_warns_at_the_caller(tiny_model_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="quant= is now format=") as caught:
        model = slmq.load(tiny_model_path, quant="int8")  # type: ignore[call-arg]
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name]
    assert model.engine.info.formats.keys() >= {"q8g32s"}
    model.close()
    with pytest.raises(TypeError, match="quant= is the former name of format="):
        slmq.load(tiny_model_path, quant="int8", format="int8")  # type: ignore[call-arg]


def test_the_former_name_warns_once_a_place() -> None:
    def ask() -> None:
        from_keywords(LoadOptions, {"quant": "int8"}, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            ask()
    assert len(caught) == 1


def test_a_check_may_change_what_it_is_given() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Only:
        count: int = option(1, "A count.", integer("an int from 1", low=1))

        def __post_init__(self) -> None:
            check_options(self)

    import numpy as np

    assert type(Only(count=np.int16(3)).count) is int  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count: expected an int from 1, got 0"):
        Only(count=0)


def test_hints_are_those_that_were_written() -> None:
    """Python 3.10 puts Optional around what has None as its default."""

    def command(
        prompt: Annotated[str | None, "help"] = None, *, days: int | None = None, raw: bool = False
    ) -> None: ...

    plain = {"days": int | None, "raw": bool, "return": type(None)}
    assert written_hints(command) == {"prompt": Annotated[str | None, "help"], **plain}
    command.__annotations__["prompt"] = Optional[Annotated[str | None, "help"]]  # noqa: UP045
    assert written_hints(command)["prompt"] == Annotated[str | None, "help"]
