"""Every benchmark runs once, on tiny models; and the commands around asv judge rightly."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import ROOT

SUITE = ROOT / "asv_bench" / "benchmarks"
KINDS = ("time_", "timeraw_", "track_", "peakmem_")

pytestmark = pytest.mark.skipif(not SUITE.is_dir(), reason="the benchmarks are not here")


@pytest.fixture(scope="module", autouse=True)
def suite_path() -> Iterator[None]:
    """Lets tests import the suite and the commands' module, and forgets them afterwards."""
    added = [str(SUITE.parent), str(ROOT / "benchmarks")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)
    for name in [n for n in sys.modules if n.split(".")[0] in ("benchmarks", "asv_tools")]:
        del sys.modules[name]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def command(name: str) -> ModuleType:
    """A command of benchmarks/, which has no suffix, as a module."""
    path = str(ROOT / "benchmarks" / name)
    loader = importlib.machinery.SourceFileLoader(f"asv_tools_{name}", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    loaded = importlib.util.module_from_spec(spec)
    loader.exec_module(loaded)
    return loaded


def benchmark_classes() -> list[tuple[str, type]]:
    found = []
    for path in sorted(SUITE.glob("*.py")):
        if path.stem == "__init__":
            continue
        loaded = module(path.stem)
        classes = inspect.getmembers(loaded, inspect.isclass)
        found += [
            (path.stem, c) for _, c in classes if c.__module__ == loaded.__name__ and kinds(c)
        ]
    return found


def kinds(cls: type) -> list[str]:
    return [name for name in dir(cls) if name.startswith(KINDS)]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small models and short probes: what is tested is that the benchmarks run."""
    models = module("gguf_models")
    shape = models.Shape(320, 64, 96, 2, 4, 2, 16, True, 2048)
    monkeypatch.setattr(models, "PATTERN_BYTES", 1 << 12)
    monkeypatch.setattr(module("session"), "SHAPES", dict.fromkeys(models.SHAPES, shape))
    monkeypatch.setattr(module("limits"), "ROUNDS", 1)
    monkeypatch.setattr(module("limits"), "SPELL_S", 1e-3)
    monkeypatch.setattr(module("limits"), "MOST", float("inf"))  # so short a look finds anything
    monkeypatch.setattr(module("linear"), "LARGE_BYTES", 1 << 20)
    monkeypatch.setattr(module("linear"), "PEAK_ROWS", 2)
    monkeypatch.delenv("SLMQ_ISA", raising=False)
    monkeypatch.chdir(tmp_path)  # as asv does: setup_cache makes this the folder of the models


@pytest.mark.usefixtures("tiny")
def test_every_benchmark_runs_with_its_smallest_parameters() -> None:
    ran: set[str] = set()
    skipped: dict[str, str] = {}
    for name, cls in benchmark_classes():
        benchmark: Any = cls()
        cache = [benchmark.setup_cache()] if hasattr(benchmark, "setup_cache") else []
        params = [axis[0] for axis in getattr(cls, "params", ())]
        try:
            benchmark.setup(*cache, *params)
        except NotImplementedError as skip:
            skipped[f"{name}.{cls.__name__}"] = str(skip)
            continue
        for kind in kinds(cls):
            result = getattr(benchmark, kind)(*cache, *params)
            ran.add(name)
            if kind.startswith("track_"):
                assert result > 0, f"{name}.{cls.__name__}.{kind}"
    assert skipped.keys() <= {"wheel.Wheel"}, skipped  # it needs an installation from a wheel
    assert ran == {
        "batch", "context", "decode", "imports", "linear", "load", "memory", "prefill", "rows",
        "stable", "wheel",
    }  # fmt: skip


@pytest.mark.usefixtures("tiny")
def test_every_verb_and_model_runs() -> None:
    rows, folder = module("rows"), str(Path.cwd())
    for verb in rows.VERBS:
        benchmark = rows.Rows()
        benchmark.setup(verb, 16, "scalar")
        benchmark.time_rows()
    for name, cls in (("decode", "Decode"), ("stable", "OverLimit")):
        loaded = getattr(module(name), cls)
        track = next(kind for kind in kinds(loaded) if kind.startswith("track_"))
        for params in itertools.product(*loaded.params[:-1], [1]):
            benchmark = loaded()
            benchmark.setup(folder, *params)
            assert getattr(benchmark, track)(folder, *params) > 0


@pytest.mark.usefixtures("tiny")
def test_a_native_folder_is_loaded_and_measured() -> None:
    load, folder = module("load"), str(Path.cwd())
    for model in load.MODELS:
        benchmark = load.Load()
        benchmark.setup(folder, "native", model, 1)
        assert benchmark.path.is_dir()
        benchmark.time_first_token(folder, "native", model, 1)


def test_every_benchmark_is_pinned_and_has_a_unit() -> None:
    for name, cls in benchmark_classes():
        assert cls.version, f"{name}.{cls.__name__}: an edit would discard its history"
        assert cls.timeout <= 300
        params, names = getattr(cls, "params", ()), getattr(cls, "param_names", ())
        assert len(params) == len(names), f"{name}.{cls.__name__}"
        assert any(k.startswith("track_") for k in kinds(cls)) <= hasattr(cls, "unit")


def test_what_the_cpu_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    common = module("common")
    for ask in (
        lambda: common.need_isa("no such"),
        lambda: common.need_threads(10**6),
        lambda: common.need("slmq", "no_such"),
        lambda: common.need("slmq.no_such"),
    ):
        with pytest.raises(NotImplementedError):
            ask()
    monkeypatch.setenv("SLMQ_ISA", "scalar")
    with pytest.raises(NotImplementedError, match="without it"):
        common.once_for_all_isas()
    from slmq import _native

    best = [name for name, table in _native.isa_tables().items() if table is not None][-1]
    monkeypatch.setenv("SLMQ_ISA", best)
    with pytest.raises(NotImplementedError, match="best"):
        common.need_own_curve()


def test_a_fraction_is_the_best_rate_over_the_best_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = module("limits")
    seconds = iter([3.0, 2.0, 4.0] * 10)
    monkeypatch.setattr(machine, "shortest_s", lambda _: next(seconds))
    limits = iter([10.0, 20.0] * 10)
    assert machine.fraction(lambda: next(limits), lambda: None, amount=30.0) == 30 / 2.0 / 20


def test_the_vocabulary_of_a_model_has_its_size() -> None:
    for count in (260, 5824, 49152):
        tokens, merges = module("gguf_models")._vocabulary(count)
        assert len(tokens) == len(set(tokens)) == count
        assert len(merges) == count - 257
        assert all(merge.replace(" ", "") in tokens for merge in merges[:50])


@pytest.mark.parametrize("weight_format", ["q4g32s", "q4g32a", "q8g32s"])
def test_a_model_is_stored_in_the_format_it_is_named_for(
    tmp_path: Path, weight_format: str
) -> None:
    import slmq

    models = module("gguf_models")
    shape = models.Shape(320, 64, 96, 2, 4, 2, 16, False, 2048)
    path = models.write_model(tmp_path / "m.gguf", shape, weight_format)
    with slmq.load(path, n_threads=1) as model:
        info = model.engine.info
        assert set(info.formats) == {weight_format}
        macs = shape.layer_macs() + 2 * shape.head_macs()
        assert info.weight_bytes == models.weight_bytes(macs, weight_format)
        assert model.n_vocab == 320


def test_the_wheel_is_found_by_pips_note(tmp_path: Path) -> None:
    wheel = module("wheel")
    file = tmp_path / "slmq 1.whl"
    file.write_bytes(b"x" * 10)
    note = json.dumps({"url": file.as_uri(), "archive_info": {}})
    assert wheel.wheel_file(note) == file
    for other in (None, json.dumps({"url": tmp_path.as_uri()}), note.replace("slmq", "gone")):
        with pytest.raises(NotImplementedError):
            wheel.wheel_file(other)


def test_asv_configuration() -> None:
    config = importlib.import_module("asv_tools").read_config()
    assert (ROOT / config["benchmark_dir"]).samefile(SUITE)
    assert config["results_dir"] == "asv_bench/results"
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert config["html_dir"].split("/")[0] + "/" in ignored
    assert "pythons" not in config, "another Python than asv's may be missing"
    assert "{build_cache_dir}" in config["build_command"][0]
    assert "--no-deps" in config["install_command"][0]
    assert None in config["matrix"]["env_nobuild"]["SLMQ_ISA"]


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["AuthenticAMD", "25", "1", "AMD EPYC"], "AMD-EPYC-Zen3-2c"),
        (["AuthenticAMD", "25", "97", "AMD Ryzen 9 7950X 16-Core Processor"],
         "AMD-Ryzen-9-7950X-Zen4-2c"),
        (["GenuineIntel", "6", "143", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"],
         "Intel-Xeon-Platinum-8481C-2c"),
    ],
)  # fmt: skip
def test_a_machine_is_named_by_its_cpu(lines: list[str], name: str) -> None:
    keys = ("vendor_id", "cpu family", "model", "model name")
    cpuinfo = "\n".join(f"{key}\t: {value}" for key, value in zip(keys, lines, strict=True))
    assert importlib.import_module("asv_tools").machine_name(cpuinfo + "\n\n", 2) == name


def test_results_name_no_machine_or_path() -> None:
    words = ("/home/", "/root", "/tmp/", "/work", "/Users/", os.uname().nodename)
    for path in (ROOT / "asv_bench" / "results").rglob("*.json"):
        text = path.read_text("utf-8")
        told = [word for word in words if f"{word}" in text and len(word) > 4]
        assert not told, f"{path.name} names {told}"


def test_results_are_read_by_name_and_parameters(tmp_path: Path) -> None:
    tools = importlib.import_module("asv_tools")
    content = {
        "result_columns": ["result", "params", "version"],
        "results": {
            "a.A.track_x": [[1.5, None, float("nan")], [["'p'", "'q'", "'r'"]], "1"],
            "b.B.track_y": [None, [["1", "2"]], "1"],
            "c.C.track_z": [[3], [], "1"],
        },
    }
    (tmp_path / "01234567-env.json").write_text(json.dumps(content), "utf-8")
    assert tools.read_results(tmp_path, "0123456789") == {
        ("a.A.track_x", ("'p'",)): 1.5,
        ("a.A.track_x", ("'q'",)): None,
        ("b.B.track_y", ("1",)): None,
        ("b.B.track_y", ("2",)): None,
        ("c.C.track_z", ()): 3,
    }


def test_regress_tells_a_regression_from_what_was_not_measured() -> None:
    regress = command("regress")
    key = ("a.A.track_x", ())
    assert "base" in regress.unmeasured({}, {key: 1.0}, 1)
    assert "head" in regress.unmeasured({key: 1.0}, {}, 1)
    assert "a.A.track_x" in regress.unmeasured({key: 1.0}, {key: None, ("b", ()): 1.0}, 1)
    assert regress.unmeasured({key: 1.0}, {key: 9.0}, 1) is None
    assert regress.rose(1.0, 1.2, 1.15)
    assert not regress.rose(1.0, 1.1, 1.15)
    assert not regress.rose(None, 9.0, 1.15)


def test_the_stable_metrics_exist() -> None:
    names = {f"{name}.{cls.__name__}.{k}" for name, cls in benchmark_classes() for k in kinds(cls)}
    assert set(command("regress").STABLE) <= names


def test_the_site_reads_its_own_files() -> None:
    site = command("site")
    page = (
        '<script src="https://cdn.example/flot/0.8.3/jquery.flot.min.js" integrity="sha512-a=" '
        'crossorigin="anonymous" onerror="f()"></script><a href="https://example.org/">x</a>'
    )
    assert site.EXTERNAL.sub(site.local, page) == (
        '<script src="vendor/jquery.flot.min.js" onerror="f()"></script>'
        '<a href="https://example.org/">x</a>'
    )
    with pytest.raises(SystemExit, match=r"new\.js"):
        site.EXTERNAL.sub(site.local, '<script src="https://cdn.example/new.js"></script>')
