"""The rules of the repository that a reviewer would otherwise have to remember.

They read the source tree: who may use whom, what a kernel may contain, how code is written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "slmq"
CPP = ROOT / "src" / "cpp"

pytestmark = pytest.mark.skipif(
    not (PACKAGE.is_dir() and CPP.is_dir()), reason="reads the source tree, which is not here"
)

# From the ground up: a room (a folder or file directly under src/slmq) may use the floors below its
# own. The numbers are not a choice: each is one more than the highest that the room imports.
FLOORS = {
    "errors": 1,
    "formats": 1,
    "machine": 1,
    "settings": 1,
    "chat": 2,
    "checkpoint": 2,
    "hub": 2,
    "plan": 2,
    "torch": 2,
    "tokenizer": 3,
    "tools": 3,
    "weights": 3,
    "models": 4,
    "conversion": 5,
    "engine": 5,
    "embedding": 6,
    "generation": 6,
    "quantizer": 6,
    "speed": 6,
    "batch": 7,
    "evaluation": 7,
    "search": 7,
    "server": 8,
    "cli": 9,
}
MOST_ROOMS, MOST_FLOORS = 24, 10
FACE = {"__init__", "__main__"}
# What a room may use at most, where that is less than all floors below.
ONLY = {"chat": {"errors"}, "hub": {"errors", "machine"}}
NEVER = {"engine": {"hub"}, "models": {"_native"}}
CPP_LAYERS = (
    "machine", "layout", "threads", "quantizer", "vec", "kernels", "probes", "plan", "training",
    "selftest", "bind",
)  # fmt: skip

# What a kernel may take from the system: types, constants, plain math and intrinsics.
KERNEL_HEADERS = {
    "algorithm", "bit", "cfloat", "climits", "cmath", "cstddef", "cstdint", "cstring", "limits",
    "tuple", "type_traits", "utility", "immintrin.h", "arm_neon.h",
}  # fmt: skip
KERNEL_BANS = {
    "allocation": r"\bnew\b|\bdelete\b(?!\s*;)|\b\w*(?:m|c|re)alloc\b|\bfree\s*\(|memalign",
    "threads": r"std::(?:j?thread|\w*mutex|atomic\w*|condition_variable|async|future)|\bomp\b",
    "exceptions": r"\bthrow\b|\btry\b|\bcatch\b",
    "STL containers": r"std::(?:vector|string|deque|list|(?:unordered_)?(?:map|set)|function"
    r"|(?:unique|shared)_ptr|optional|span)\b",
}
FAST_MATH = re.compile(
    r"-ffast-math|-Ofast|[-/]fp[:=]fast|-funsafe-math|-fassociative-math|-freciprocal-math"
    r"|-ffinite-math-only|-fno-signed-zeros|-ffp-contract=(?!off)\w+"
)
MAX_FILE_LINES = 600
MAX_PAGE_COLUMNS = 110
MAX_PAGE_WORDS = 1200  # five minutes at 240 words a minute


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def cpp_files() -> list[Path]:
    return sorted(path for path in CPP.rglob("*") if path.suffix in {".h", ".cpp"})


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def listed(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


# Python layers ------------------------------------------------------------------------------


def room_of(path: Path) -> str:
    """The room that a file belongs to: `models` for `models/llama.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, at any depth."""
    package = ("slmq", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), named(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else ())))
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of another room; `_native` counts, with no floor."""
    for line, name in imported_names(path):
        parts = name.split(".")
        if parts[0] == "slmq" and len(parts) > 1 and parts[1] != room_of(path):
            yield line, parts[1]


def room_files() -> list[tuple[str, Path]]:
    return [(room_of(path), path) for path in python_files() if room_of(path) not in FACE]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {room: set() for room, _ in room_files()}
    for room, path in room_files():
        found[room] |= {target for _, target in imported_rooms(path)} - {"_native"}
    return found


def test_floors_are_those_that_the_imports_make() -> None:
    """A circle has no floor, so it fails here, too."""
    uses = arrows()
    floors: dict[str, int] = {}
    while ready := [r for r in uses if r not in floors and uses[r] <= floors.keys()]:
        floors |= {room: 1 + max((floors[t] for t in uses[room]), default=0) for room in ready}
    assert floors.keys() == uses.keys(), f"a circle: {sorted(uses.keys() - floors.keys())}"
    assert floors == FLOORS
    assert len(floors) <= MOST_ROOMS
    assert max(floors.values()) <= MOST_FLOORS


def test_no_python_import_goes_up() -> None:
    upward = [
        f"{named(path)}:{line} uses {target}"
        for room, path in room_files()
        for line, target in imported_rooms(path)
        if target != "_native" and FLOORS.get(target, 99) >= FLOORS.get(room, 0)
    ]
    assert not upward, listed(upward)


def test_nothing_imports_the_face() -> None:
    """`from slmq import _native` would make the deepest file depend on the package's own names."""
    found = [
        f"{named(path)}:{node.lineno}"
        for _, path in room_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.module == "slmq")
        or (isinstance(node, ast.Import) and any(alias.name == "slmq" for alias in node.names))
    ]
    assert not found, listed(found)


def test_rooms_keep_to_what_they_need() -> None:
    found = [
        f"{named(path)}:{line} uses {target}"
        for room, path in room_files()
        for line, target in imported_rooms(path)
        if target in NEVER.get(room, ()) or target not in ONLY.get(room, {target})
    ]
    assert not found, listed(found)


def test_nothing_forks_on_the_kind_of_a_checkpoint() -> None:
    """`kind` is for people; what a reader needs to know, a checkpoint answers by name."""
    fork = re.compile(r"checkpoint\.kind\s*(?:[!=]=|\b(?:not )?in\b)|match \w*checkpoint\.kind")
    found = [
        f"{named(path)}:{line_of(text, match.start())}"
        for path in python_files()
        for text in [path.read_text(encoding="utf-8")]
        for match in fork.finditer(text)
    ]
    assert not found, listed(found)


def test_no_cast_joins_two_interfaces() -> None:
    """What stands in the place of another thing fits its `Protocol`, as mypy sees."""
    found = []
    for path in python_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = {
            name.rpartition(".")[2] for _, name in imported_names(path) if name.startswith("slmq.")
        } | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "cast":
                target = ast.unparse(node.args[0])
                if ours.intersection(re.findall(r"\w+", target)):
                    found.append(f"{named(path)}:{node.lineno} cast to {target}")
    assert not found, listed(found)


def test_nothing_imports_torch_or_transformers() -> None:
    """But for `slmq.torch`, which is for them, and which nothing imports."""
    found = [
        f"{named(path)}:{line} imports {name}"
        for path in python_files()
        for line, name in imported_names(path)
        if room_of(path) != "torch"
        and (name.split(".")[0] in {"torch", "transformers"} or name.startswith("slmq.torch"))
    ]
    assert not found, listed(found)


def test_no_library_computes_for_an_answer() -> None:
    """The bits of its powers and products follow the CPU: ours are in `machine/exact.py` and the
    native module. Reports of what was measured may take them."""
    told = {"slmq/quantizer/page.py"}
    functions = {"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "power", "pow", "tanh"}
    functions |= {"sin", "cos", "tan", "matmul", "dot", "vdot", "inner", "einsum", "tensordot"}
    found = []
    for path in python_files():
        if room_of(path) == "evaluation" or path.relative_to(PACKAGE.parent).as_posix() in told:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                library, _, name = ast.unparse(node.func).rpartition(".")
                if (library in {"np", "math"} and name in functions) or library == "np.linalg":
                    found.append(f"{named(path)}:{node.lineno} {library}.{name}")
    assert not found, listed(found)


def test_the_hub_writes_through_one_file() -> None:
    """What a hub may name is made, renamed and removed by `machine/disk.py`, which checks."""
    banned = {
        *("unlink", "rmdir", "rmtree", "rename", "renames", "removedirs", "symlink_to", "symlink"),
        *("hardlink_to", "link", "touch", "write_text", "write_bytes", "truncate", "chmod"),
    }
    found = []
    for path in (PACKAGE / "hub").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), named(path))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                # Strings are replaced by two arguments, files by one.
                moved = node.func.attr == "replace" and len(node.args) == 1
                if moved or node.func.attr in banned:
                    found.append(f"{named(path)}:{node.lineno} {node.func.attr}")
    assert not found, listed(found)


# C++ layers ---------------------------------------------------------------------------------


def code_of(path: Path) -> str:
    """A C++ file with comments and string literals blanked, line numbers kept."""
    text = path.read_text(encoding="utf-8")
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    return re.sub(pattern, blank, text, flags=re.DOTALL)


def includes(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, target and whether it is a system header, of every include."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', text, re.MULTILINE):
        yield line_of(text, match.start(2)), match.group(2), match.group(1) == "<"


def resolve(path: Path, target: str) -> Path | None:
    """The file of ours that a quoted include names: beside the includer, or from src/cpp."""
    for folder in (path.parent, CPP):
        candidate = (folder / target).resolve()
        if candidate.is_file():
            return candidate
    return None


def cpp_layer(path: Path) -> str:
    return path.relative_to(CPP).parts[0]


def kernel_files() -> list[Path]:
    """Kernels and their vector layer; not the choice of a table and its settings, made once."""
    layers = {"vec", "kernels"}
    return [
        p for p in cpp_files() if cpp_layer(p) in layers and p.stem not in ("dispatch", "tuning")
    ]


def test_every_cpp_file_has_its_layer() -> None:
    assert cpp_files()
    strays = [named(path) for path in cpp_files() if cpp_layer(path) not in CPP_LAYERS]
    assert not strays, listed(strays)


def test_no_cpp_include_goes_up() -> None:
    upward = []
    for path in cpp_files():
        for line, target, system in includes(path):
            if system:
                continue
            found = resolve(path, target)
            if found is None or CPP not in found.parents:
                upward.append(f"{named(path)}:{line} {target} is not a file under src/cpp")
            elif cpp_layer(found) in CPP_LAYERS[CPP_LAYERS.index(cpp_layer(path)) + 1 :]:
                upward.append(f"{named(path)}:{line} includes {target}")
    assert not upward, listed(upward)


def test_only_bind_knows_python() -> None:
    found = [
        f"{named(path)}:{line} includes {target}"
        for path in cpp_files()
        if cpp_layer(path) != "bind"
        for line, target, _ in includes(path)
        if re.match(r"Python\.h|pybind11/|numpy/", target)
    ]
    assert not found, listed(found)


def test_kernels_use_only_plain_headers() -> None:
    found = [
        f"{named(path)}:{line} includes <{target}>"
        for path in kernel_files()
        for line, target, system in includes(path)
        if system and target not in KERNEL_HEADERS
    ]
    assert not found, listed(found)


@pytest.mark.parametrize("what", KERNEL_BANS)
def test_kernels_do_without(what: str) -> None:
    found = []
    for path in kernel_files():
        code = code_of(path)
        for match in re.finditer(KERNEL_BANS[what], code):
            found.append(f"{named(path)}:{line_of(code, match.start())} {match.group()}")
    assert not found, listed(found)


def test_no_fast_math() -> None:
    builds = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *ROOT.glob("cmake/**/*.cmake")]
    found = [
        f"{named(path)}: {match.group()}"
        for path in (*builds, *cpp_files())
        for match in FAST_MATH.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, listed(found)
    assert "-ffp-contract=off" in builds[0].read_text(encoding="utf-8")


# How code is written ------------------------------------------------------------------------


def written_files() -> list[Path]:
    """Every text that we wrote, whatever its language."""
    folders = ("src", "tests", "asv_bench", "benchmarks", "docs", ".github", ".ci")
    suffixes = {".py", ".pyx", ".pyi", ".h", ".cpp", ".md", ".yml", ".toml", ".cmake", ".sh"}
    inside = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    top = (path for path in ROOT.iterdir() if path.is_file())
    return sorted(path for path in (*inside, *top) if path.suffix in suffixes and path.is_file())


def test_no_postponed_work() -> None:
    # One-letter classes keep this line from finding itself.
    marks = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
    found = []
    for path in written_files():
        text = path.read_text(encoding="utf-8")
        for match in marks.finditer(text):
            found.append(f"{named(path)}:{line_of(text, match.start())}")
    assert not found, listed(found)


def test_files_have_one_idea() -> None:
    code = {".py", ".pyx", ".pyi", ".h", ".cpp"}
    long = {
        named(path): lines
        for path in written_files()
        if path.suffix in code
        and (lines := len(path.read_text(encoding="utf-8").splitlines())) >= MAX_FILE_LINES
    }
    assert not long


def public_definitions(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods; not properties, which their class describes."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        decorators = {ast.unparse(item).split(".")[-1] for item in node.decorator_list}
        if decorators & {"overload", "property", "cached_property", "setter"}:
            continue
        yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body, f"{prefix}{node.name}.")


def protocols() -> dict[str, set[str]]:
    """The methods that each protocol of the package describes."""
    return {
        node.name: {
            method.name
            for method in node.body
            if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
        }
        for path in python_files()
        for node in ast.parse(path.read_text(encoding="utf-8"), named(path)).body
        if isinstance(node, ast.ClassDef)
        if any(re.match(r"Protocol\b", ast.unparse(base)) for base in node.bases)
    }


def described_methods(tree: ast.Module, known: dict[str, set[str]]) -> set[str]:
    """Methods that need no text of their own: a protocol describes them.

    It is one of this file, or one that the docstring of their class names.
    """
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    here = set().union(*(known.get(node.name, set()) for node in classes))
    return here | {
        f"{node.name}.{method}"
        for node in classes
        for protocol in re.findall(r"`(\w+)`", ast.get_docstring(node) or "")
        for method in known.get(protocol, ())
    }


def test_public_names_have_docstrings() -> None:
    bare, known = [], protocols()
    for path in python_files():
        tree = ast.parse(path.read_text(encoding="utf-8"), named(path))
        described = described_methods(tree, known)
        for name, node in public_definitions(tree.body):
            free = name in described or ("." in name and node.name in described)
            if not (ast.get_docstring(node) or free):
                bare.append(f"{named(path)}:{node.lineno} {name}")
    assert not bare, listed(bare)


# The repository's own files -----------------------------------------------------------------


def test_pre_commit_runs_the_pinned_linters() -> None:
    """One version of each linter: the `lint` extra, which CI installs, and the local hooks."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pins = re.compile(r"\b(ruff|mypy|clang-format)==([\w.]+)")
    wanted = dict(pins.findall(project))
    assert wanted.keys() == {"ruff", "mypy", "clang-format"}
    assert set(pins.findall(hooks)) == set(wanted.items())


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    return [path for path in written_files() if path.suffix == ".md"]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def test_lines_of_pages_are_short() -> None:
    """Rows of tables are exempt: Markdown cannot wrap them."""
    long = [
        f"{named(page)}:{number} has {len(line)} columns"
        for page in pages()
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MAX_PAGE_COLUMNS and not line.startswith("|")
    ]
    assert not long, listed(long)


def test_links_of_pages_lead_somewhere() -> None:
    """Relative links name files that are there, and headings that these pages have."""
    dead = []
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            file, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            found = (page.parent / file).resolve() if file else page
            if not found.exists() or (anchor and anchor not in anchors(found)):
                dead.append(f"{named(page)} links to {target}")
    assert not dead, listed(dead)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked() -> None:
    """From README or CONTRIBUTING, or from a page that they link."""
    start = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md"]
    seen: set[Path] = set()
    while start:
        page = start.pop()
        if page not in seen and page.suffix == ".md" and page.is_file():
            seen.add(page)
            targets = re.findall(r"\]\(([^)#\s]+)", prose(page))
            start += [(page.parent / target).resolve() for target in targets]
    lonely = [named(page) for page in pages() if page not in seen]
    assert not lonely, listed(lonely)


def test_the_page_of_layers_is_what_the_tests_hold() -> None:
    """docs/design/layers.md: floors and their rooms, then the folders of C++."""
    page = (ROOT / "docs" / "design" / "layers.md").read_text(encoding="utf-8")
    rooms, floor = {}, 0
    for number, room in re.findall(r"^\| (\d*) ?\| `(\w+)(?:\.py)?` \|", page, re.MULTILINE):
        floor = int(number or floor)
        rooms[room] = floor
    assert rooms == FLOORS
    folders = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(folders) == sorted(CPP_LAYERS)


def test_design_pages_are_read_in_five_minutes() -> None:
    for page in (ROOT / "docs" / "design").glob("*.md"):
        words = len(page.read_text(encoding="utf-8").split())
        assert words <= MAX_PAGE_WORDS, f"{named(page)} has {words} words"


def test_changelog_opens_with_what_is_coming() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or re.match(
        r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", headings[0]
    )
