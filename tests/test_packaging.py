"""What a user installs: small, quick to import, self-contained and safe to load.

These look at the installed package, not at the source tree. pip always goes through a wheel,
so the files that it recorded are the wheel's contents.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

import slmq

COMPILED = {"_native": "slmq", "_sampling": "slmq.generation"}  # and their package
MODULES = (".so", ".pyd")
BASE_DEPENDENCIES = {"numpy", "tokenizers", "jinja2", "typer", "rich", "llguidance"}
SYSTEM_LIBRARIES = {"c", "m", "stdc++", "gcc_s", "pthread", "dl", "rt"}


@pytest.fixture(scope="module")
def distribution() -> importlib.metadata.Distribution:
    return importlib.metadata.distribution("slmq")


@pytest.fixture(scope="module")
def shipped(distribution: importlib.metadata.Distribution) -> dict[str, Path]:
    """Every file of the wheel: its name in the archive, and where it was installed."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("slmq is installed in place: the wheel's contents need `pip install .`")
    ours = {}
    for file in distribution.files or ():
        name = file.as_posix()
        written_by_pip = name.endswith((".pyc", "/INSTALLER", "/REQUESTED", "/direct_url.json"))
        if name.startswith("slmq") and not written_by_pip:
            ours[name] = Path(str(file.locate()))
    assert "slmq/__init__.py" in ours
    return ours


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    """Where Python finds our compiled modules."""
    specs = {
        name: importlib.util.find_spec(f"{package}.{name}") for name, package in COMPILED.items()
    }
    return {name: Path(spec.origin) for name, spec in specs.items() if spec and spec.origin}


def tool_output(*command: str) -> str:
    """The output of a binutils program, which every Linux with a compiler has."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads ELF files: Linux only")
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is missing: install binutils")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_wheel_is_under_5_mb(shipped: dict[str, Path]) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, path in shipped.items():
            wheel.write(path, name)
    assert archive.tell() < 5_000_000


def test_compiled_modules_are_found(modules: dict[str, Path]) -> None:
    assert modules.keys() == set(COMPILED)
    assert all(path.name.endswith(MODULES) for path in modules.values())


def test_no_executable_stack(modules: dict[str, Path]) -> None:
    for path in modules.values():
        headers = tool_output("readelf", "-lW", str(path))
        stack = re.findall(
            r"^\s*GNU_STACK\s+(?:0x\w+\s+){5}(\w[\w ]*?)\s+0x\w+$", headers, re.MULTILINE
        )
        assert stack == ["RW"], f"{path.name}: expected a stack header with flags RW, got {stack}"


def test_no_text_relocations(modules: dict[str, Path]) -> None:
    """Code is shared between processes and never written to."""
    for path in modules.values():
        assert "TEXTREL" not in tool_output("readelf", "-dW", str(path)), path.name


def test_module_exports_only_its_init(modules: dict[str, Path]) -> None:
    for name, path in modules.items():
        symbols = tool_output("nm", "-D", "--defined-only", "--format=posix", str(path))
        exported = {line.split()[0] for line in symbols.splitlines()}
        assert exported == {f"PyInit_{name}"}, path.name


def test_module_needs_only_system_libraries(modules: dict[str, Path]) -> None:
    """No OpenMP run time or BLAS beside those that other packages bring."""
    for path in modules.values():
        dynamic = tool_output("readelf", "-dW", str(path))
        needed = set(re.findall(r"\(NEEDED\).*\[(?:lib)?(.+?)(?:-linux.*)?\.so", dynamic))
        assert needed, path.name
        assert needed <= SYSTEM_LIBRARIES | {"ld"}, path.name


def test_types_and_stubs_are_shipped(shipped: dict[str, Path]) -> None:
    assert "slmq/py.typed" in shipped
    compiled = {Path(name).name.partition(".")[0] for name in shipped if name.endswith(MODULES)}
    assert compiled == set(COMPILED)
    assert {f"{p.replace('.', '/')}/{name}.pyi" for name, p in COMPILED.items()} <= shipped.keys()


def test_wheel_holds_nothing_but_the_package(shipped: dict[str, Path]) -> None:
    page = {".html", ".css", ".js"}  # of the server
    expected = {".py", ".pyi", ".typed", ".toml", ".txt", ".npz", ".so", ".pyd"} | page
    metadata = re.compile(r"slmq-[^/]+\.dist-info/")
    extra = [
        name for name in shipped if Path(name).suffix not in expected and not metadata.match(name)
    ]
    assert not extra


def test_licence_is_shipped(
    distribution: importlib.metadata.Distribution, shipped: dict[str, Path]
) -> None:
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    (licence,) = (path for name, path in shipped.items() if name.endswith("/LICENSE"))
    text = licence.read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_version_and_python_agree_with_the_metadata(
    distribution: importlib.metadata.Distribution,
) -> None:
    assert slmq.__version__ == distribution.version
    assert distribution.metadata["Requires-Python"] == ">=3.10"


def test_base_dependencies_are_the_agreed_few(
    distribution: importlib.metadata.Distribution,
) -> None:
    required = [
        line
        for line in distribution.requires or ()
        if not re.search(r"extra ==|python_version <", line)
    ]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in required}
    assert names == BASE_DEPENDENCIES


def test_command_is_installed(distribution: importlib.metadata.Distribution) -> None:
    scripts = distribution.entry_points.select(group="console_scripts", name="slmq")
    assert [callable(script.load()) for script in scripts] == [True]


def fresh_import_seconds(runs: int) -> Iterator[float]:
    """`import slmq` in new interpreters, without their start."""
    code = (
        "import time; start = time.perf_counter(); import slmq; print(time.perf_counter() - start)"
    )
    for _ in range(runs):
        yield float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))


def test_import_is_quick() -> None:
    assert min(fresh_import_seconds(5)) < 0.3


def test_import_leaves_heavy_packages_out() -> None:
    code = "import json, sys, slmq; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))
    assert "slmq" in loaded
    heavy = {"torch", "transformers", "huggingface_hub", "tokenizers", "jinja2", "typer", "rich"}
    assert not heavy.intersection(loaded)
