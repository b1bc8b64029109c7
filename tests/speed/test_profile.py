"""Profile: what is counted against the plan, what is said, printed and drawn."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from small_shapes import small_shape
from typer.testing import CliRunner

from slmq.cli.app import app
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.errors import WriteError
from slmq.formats import format_named
from slmq.speed import bench as b
from slmq.speed import shapes
from slmq.speed.bench import Loaded
from slmq.speed.limits import Limits
from slmq.speed.pictures import check_picture
from slmq.speed.profile import attention_width, profile_model, work_of_steps
from slmq.speed.profile_plot import draw
from slmq.speed.profile_rows import OUTSIDE, Phase, Profile, StepRow, verdict

SMALL = small_shape(positions=400)
OPS = ["embed", "rope", "rmsnorm", "quantize", "linear", "attention", "linear+add", "swiglu"]
OPS += ["select", "head", OUTSIDE]
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits themselves are tested elsewhere."""
    monkeypatch.setattr("slmq.speed.limits.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("slmq.speed.limits.PROBE_S", 0.01)


def small(weight_format: str = "q4g32s") -> Loaded:
    weights = shapes.build_weights(SMALL, format_named(weight_format))
    return Loaded("small", weights, SMALL.config["max_position_embeddings"], 0.0)


@pytest.fixture(scope="module")
def found() -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmq.speed.limits.PROBE_BYTES", 4 << 20)
        patch.setattr("slmq.speed.limits.PROBE_S", 0.01)
        return profile_model(small(), LoadOptions(n_threads=2), prompt=40, context=70, repeat=2)


def check_sums(phase: Phase) -> None:
    """Both tables cut the same time, bytes and products."""
    for rows in (phase.ops, phase.layers):
        assert sum(row.share for row in rows) == pytest.approx(1)
        assert sum(row.time_us for row in rows) == pytest.approx(phase.time_us)
        for name in ("weight_bytes", "kv_bytes", "macs"):
            assert sum(getattr(row, name) for row in rows) == getattr(phase.total, name)
    assert phase.total.time_us == pytest.approx(phase.time_us)
    # Steps that a thread does for itself may take less than a tick of the clock.
    assert all(step.time_us > 0 for step in phase.steps if step.macs)
    assert min(step.time_us for step in phase.steps) >= 0
    assert 0 < phase.fastest_us <= phase.slowest_us
    assert phase.plain_us > 0


def test_tables_add_up_to_the_whole(found: Profile) -> None:
    assert [phase.name for phase in found.phases] == ["decode", "prefill"]
    for phase in found.phases:
        check_sums(phase)
        assert [row.name for row in phase.ops] == OPS
        names = [row.name for row in phase.layers]
        assert names == ["embedding", "layer 0", "layer 1", "head", OUTSIDE]
        assert phase.steps[-1].op == OUTSIDE


def test_bytes_are_those_of_the_plan(found: Profile) -> None:
    loaded = small()
    plan = record_plan(loaded.weights, LoadOptions(n_threads=1))
    embedding = loaded.weights.weights.embed.matrix.nbytes
    position = plan.native.page_bytes / 64
    decode, prefill = found.phases
    # The head is a matrix of its own here; of the embedding only rows are read.
    assert decode.total.weight_bytes == loaded.weights.weight_bytes - embedding
    assert decode.total.kv_bytes == 71 * position
    assert prefill.total.weight_bytes == decode.total.weight_bytes
    assert prefill.total.kv_bytes == 40 * position


def test_products_are_those_of_the_model(found: Profile) -> None:
    matrices = {w.name: w.n * w.k for w in SMALL.weights() if w.is_matrix}
    head = matrices["lm_head.weight"]
    body = sum(matrices.values()) - head - matrices["model.embed_tokens.weight"]
    attends = 2 * 2 * 4 * 24  # of one row with one position: layers, keys and values, channels
    decode, prefill = found.phases
    assert decode.total.macs == body + head + 71 * attends
    assert prefill.total.macs == 40 * body + head + sum(range(1, 41)) * attends
    for phase in found.phases:
        with_weights = [step for step in phase.steps if step.products]
        assert all(step.products == step.macs for step in with_weights)
        rows = {row.name: row for row in phase.ops}
        assert rows["attention"].integer_fraction == 0
        assert rows["head"].macs == head


def test_a_long_prompt_reads_weights_once_a_run() -> None:
    loaded = small()
    plan = record_plan(loaded.weights, LoadOptions(n_threads=1))
    most = plan.native.max_rows
    steps = work_of_steps(plan, [most, most, 3], 10, [1.0] * len(plan.steps))
    head = plan.steps[-1].weight_bytes
    layers = sum(step.weight_bytes for step in plan.steps) - head
    assert sum(step.weight_bytes for step in steps) == 3 * layers + head
    position = plan.native.page_bytes / 64
    read = (10 + most) + (10 + 2 * most) + (13 + 2 * most)
    assert sum(step.kv_bytes for step in steps) == read * position


def test_chunks_of_a_prompt_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmq.engine.opening.MAX_CHUNK", 64)
    phase = profile_model(
        small(), LoadOptions(n_threads=1), prompt=130, context=0, repeat=1
    ).phases[1]
    assert (phase.tokens, phase.runs) == (130, 3)
    check_sums(phase)


def test_fractions_follow_from_the_limits(found: Profile) -> None:
    limits = found.limits
    for phase in found.phases:
        for row in (*phase.ops, *phase.layers, phase.total):
            seconds = row.time_us / 1e6
            read = (row.weight_bytes + row.kv_bytes) / 1e9 / seconds
            assert row.gb_per_s == pytest.approx(read)
            assert row.read_fraction == pytest.approx(read / limits.read_gb_per_s)
            assert row.gmac_per_s == pytest.approx(row.macs / 1e9 / seconds)


def test_float_weights_have_no_integer_products() -> None:
    found = profile_model(small("f16"), LoadOptions(n_threads=1), prompt=0, context=0, repeat=1)
    assert found.activations == "float"
    assert [phase.name for phase in found.phases] == ["decode"]
    assert not any(step.products for step in found.phases[0].steps)
    assert found.phases[0].bound != "integer arithmetic"


# ------------------------------------------------------------------ what bounds it

MEGA = 1_000_000


def step(op: str, time_us: float, nbytes: int = 0, macs: int = 0, products: int = 0) -> StepRow:
    attends = op == "attention"
    return StepRow("", op, time_us, 0 if attends else nbytes, nbytes * attends, macs, products)


@pytest.mark.parametrize(
    ("steps", "bound", "words"),
    [
        ([step("linear", 900, 8 * MEGA, MEGA, MEGA)], "memory", "100% of its time, at 0.89 of"),
        (
            [step("linear", 900, MEGA, 40 * MEGA, 80 * MEGA), step("rmsnorm", 100)],
            "integer arithmetic",
            "take 90% of its time, at 0.44 of the int8 peak (0.50 would be all of it)",
        ),
        (
            [step("linear", 1000, MEGA, 40 * MEGA, 40 * MEGA)],
            "integer arithmetic",
            "at 0.40 of the int8 peak",
        ),
        ([step("linear", 1000, MEGA, 20 * MEGA)], "float arithmetic", "at 20 GMAC/s"),
        (
            [step("linear", 300, MEGA, MEGA, MEGA), step("attention", 700, 5 * MEGA, MEGA)],
            "attention",
            "takes 70% of the time, at 0.71 of the read bandwidth",
        ),
        (
            [step("linear", 400, MEGA, MEGA, MEGA), step(OUTSIDE, 600)],
            "overhead",
            "take 60% of its time",
        ),
    ],
)
def test_what_takes_most_is_named(steps: list[StepRow], bound: str, words: str) -> None:
    named, sentence = verdict("decode", steps, Limits(1, 10.0, 100.0))
    assert named == bound
    assert sentence.startswith(f"decode is bound by {bound}")
    assert words in sentence


def test_attention_shapes() -> None:
    assert attention_width("9/3x64") == 2 * 9 * 64
    assert attention_width("something else") == 0


# ------------------------------------------------------------------ arguments and output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": -1}, "prompt: expected 0 to 400 tokens, the context of small; got -1"),
        ({"prompt": 401}, "prompt: expected 0 to 400"),
        ({"context": 400}, "context: expected 0 to 399 tokens"),
        ({"repeat": 0}, "repeat: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profile_model(small(), **{"prompt": 4, "context": 4, "repeat": 1, **options})


def test_progress_is_told_to_its_end() -> None:
    told: list[tuple[int, int, str]] = []
    profile_model(
        small(),
        LoadOptions(n_threads=1),
        prompt=4,
        context=4,
        repeat=2,
        progress=lambda *s: told.append(s),
    )
    assert [stage[0] for stage in told] == list(range(9))
    assert {stage[1] for stage in told} == {9}


def run_command(*arguments: object) -> tuple[str, str]:
    asked = RUNNER.invoke(app, ["profile", *(str(argument) for argument in arguments)])
    assert asked.exit_code == 0, asked.stderr
    return asked.stdout, asked.stderr


def test_json_has_the_documented_shape(tiny_model_path: Path) -> None:
    options = ("--prompt-tokens", 9, "--context", 5, "--repeat", 1, "--threads", 1)
    shown, errors = run_command(tiny_model_path, "--format", "int8", *options, "--json")
    data = json.loads(shown)
    assert errors == "" or errors.startswith("timings vary widely")
    assert list(data) == list(Profile.__dataclass_fields__)
    assert (data["model"], data["format"], data["threads"]) == ("tiny-llama", "q8g32s", 1)
    assert set(data["limits"]) == {"threads", "read_gb_per_s", "integer_peak_gmac_per_s"}
    for phase in data["phases"]:
        assert list(phase) == list(Phase.__dataclass_fields__)
        assert list(phase["steps"][0]) == list(StepRow.__dataclass_fields__)
    assert [(p["tokens"], p["context"]) for p in data["phases"]] == [(1, 5), (9, 0)]


def test_people_get_tables_and_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {"small": SMALL})
    options = ("--prompt-tokens", 9, "--context", 5, "--repeat", 1, "--layers")
    shown, errors = run_command("--shape", "small", "--format", "q8g32s", *options)
    assert errors == "" or errors.startswith("timings vary widely")
    for expected in ("of read bandwidth", "of int8 peak", "layer 1", "swiglu", "total", "100.0%"):
        assert expected in shown
    # What matters comes first, and the layers of a deep model only when they are asked for.
    assert re.fullmatch(r"Decode is bound by .+; prefill is bound by .+\.", shown.splitlines()[2])
    short, _ = run_command("--shape", "small", "--format", "q8g32s", *options[:-1])
    assert "swiglu" in short
    assert "layer 1" not in short


def test_bad_options_of_the_command(tiny_model_path: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([], "expected either a MODEL or a --shape"),
        ([str(tiny_model_path), "--shape", "mistral-7b"], "expected either a MODEL or a --shape"),
        ([str(tiny_model_path), "--plot", str(tmp_path / "x.gif")], "ending in .svg, .png, .pdf"),
        ([str(tiny_model_path), "--plot", str(tmp_path / "no" / "x.svg")], "does not exist"),
    ):
        asked = RUNNER.invoke(app, ["profile", *arguments])
        assert asked.exit_code == 1
        assert asked.stdout == ""
        assert message in asked.stderr


# ------------------------------------------------------------------ the picture


def test_the_picture_names_axes_machine_and_model(found: Profile, tmp_path: Path) -> None:
    file = tmp_path / "out.svg"
    draw(found, file)
    root = ElementTree.parse(file).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = " | ".join("".join(node.itertext()) for node in root.iter() if node.text)
    for expected in (
        "small, q4g32s",
        found.cpu,
        "GB/s",
        "share of the time",
        "layer",
        "time (µs)",
        "fraction of this machine's limit",
        "decode: one token at 70 tokens of context",
        "prefill: a prompt of 40 tokens",
        "swiglu",
    ):
        assert expected in texts


def test_other_endings_are_other_formats(found: Profile, tmp_path: Path) -> None:
    file = tmp_path / "out.png"
    draw(found, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"expected a file name ending in \.svg"):
        draw(found, tmp_path / "out.txt")
    with pytest.raises(WriteError, match="does not exist"):
        draw(found, tmp_path / "nowhere" / "out.svg")


def test_without_matplotlib_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        check_picture(tmp_path / "out.svg")
    # Nothing is measured first: the model is not even looked for.
    asked = RUNNER.invoke(app, ["profile", "no-such-model", "--plot", str(tmp_path / "out.svg")])
    assert asked.exit_code == 1
    assert "pip install matplotlib" in asked.stderr


# ------------------------------------------------------------------ the real model


@pytest.mark.slow
def test_the_real_model_adds_up(smollm2_path: Path) -> None:
    loaded = b.load(str(smollm2_path), LoadOptions(n_threads=2))
    found = profile_model(loaded, LoadOptions(n_threads=2), prompt=64, context=64, repeat=1)
    decode, prefill = found.phases
    for phase in found.phases:
        check_sums(phase)
        assert len(phase.layers) == 33  # 30, embedding, head, outside
    # The head is the embedding here: every weight is read, and none twice.
    assert decode.total.weight_bytes == loaded.weights.weight_bytes
    assert prefill.total.weight_bytes == loaded.weights.weight_bytes
    assert decode.total.kv_bytes == 65 * 30 * 2 * 3 * 64 * 2
