"""slmq and another engine side by side: the same GGUF file, in turn, A B A B.

    python benchmarks/peers.py --model smollm2-135m-instruct
    python benchmarks/peers.py --shape tinyllama-1.1b --format q4_0 --threads 1,2 --rounds 5
    python benchmarks/peers.py --shape smollm2-135m --peer openvino

Both engines stay loaded, each in a process and an environment of its own, and only one runs at a
time. The peer is installed by the first run, outside of the sources. Prints a table of ratios as
Markdown; `--json FILE` keeps everything.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_install import PEERS, ensure_environment, peer_named
from peer_measure import Row, Test, measure
from peer_process import PeerError, Worker
from peer_report import Comparison, as_json, as_markdown
from random_gguf import FORMATS, file_bytes, own_shape, write_random_gguf

from slmq import hub
from slmq.errors import Error
from slmq.hub.cache import cache_dir
from slmq.speed.shapes import SHAPES

__all__ = ["compare", "main"]


def compare(
    model: Path,
    name: str,
    workers: tuple[Worker, Worker],
    *,
    tests: Sequence[Test],
    threads: Sequence[int],
    rounds: int,
    options: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> Comparison:
    """Loads a file on both sides and measures.

    Parameters
    ----------
    model : Path
        GGUF file.
    name : str
        For the report.
    workers : (Worker, Worker)
        slmq and the peer.
    tests, threads : sequences
        Every test is run at every number of threads.
    rounds : int
        Counted ones, at least 1.
    options : (dict, dict)
        For loading, of each side.

    Raises
    ------
    PeerError
        If a worker fails.
    """
    positions = max(test.tokens for test in tests)
    batch = max(test.batch for test in tests)
    infos = []
    for worker, chosen in zip(workers, options, strict=True):
        say(f"{worker.name}: loading {name}")
        fields = {"positions": positions, "batch": batch, "options": chosen}
        infos.append(worker.ask("load", model=str(model), **fields))
    rows: list[Row] = []
    for count in threads:
        rows += measure(
            *workers,
            tests,
            threads=count,
            rounds=rounds,
            vocabulary=min(info["vocabulary"] for info in infos),
            progress=say,
        )
    return Comparison(name, cpu_name(), rounds, infos[0], infos[1], rows)


def say(text: str) -> None:
    """Progress goes where it does not disturb the table."""
    print(text, file=sys.stderr, flush=True)


def cpu_name() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} CPUs" if names else platform.processor() or "unknown CPU"


def find_model(args: argparse.Namespace, root: Path) -> tuple[Path, str]:
    """The GGUF file to run and its name; random ones are written once and kept."""
    if args.model is not None:
        found = hub.resolve(args.model)
        if found.path.suffix != ".gguf":
            raise PeerError(f"--model: expected a GGUF file, which both sides read; {found.path}")
        return found.path, found.path.name
    shape = own_shape(args.shape)
    path = root / "models" / f"{args.shape}-{args.format}.gguf"
    if not path.exists():
        say(f"writing {path} ({file_bytes(shape, args.format) / 1e6:.0f} MB)")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_random_gguf(path, shape, args.format)
    return path, f"{args.shape} {args.format}, random weights"


def make_tests(args: argparse.Namespace) -> list[Test]:
    """What --only, --prompt, --gen and --batch ask for."""
    tests = [Test(args.prompt, True)] * (args.only != "tg" and args.prompt > 0)
    if args.only != "pp" and args.gen > 0:
        tests += [Test(args.gen, False, batch) for batch in args.batch]
    if not tests:
        raise PeerError("nothing to measure: --only and the numbers of tokens leave no test")
    return tests


def counts(text: str) -> list[int]:
    """Positive numbers with commas between."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError
    return numbers


def option(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON where it is that."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a .gguf file, or a name that slmq resolves to one")
    what.add_argument("--shape", help=f"random weights: {', '.join(SHAPES)}")
    add("--format", default="q4_0", help=f"of a shape: {', '.join(FORMATS)} (default q4_0)")
    add("--peer", default="llama.cpp", help=f"{', '.join(PEERS)} (default llama.cpp)")
    add("--threads", type=counts, default=[1, 2], help="such as 1,2 (default)")
    add("--rounds", type=int, default=5, help="counted ones (default 5)")
    add("--prompt", type=int, default=512, help="tokens of the prompt (default 512)")
    add("--gen", type=int, default=64, help="tokens generated (default 64)")
    add("--batch", type=counts, default=[1], help="sequences of a step, such as 1,4,8 (default 1)")
    add("--only", choices=("pp", "tg"), help="prompt or generation alone")
    add("--json", type=Path, metavar="FILE", help="write everything that was found")
    add("--python", type=Path, help="interpreter that has the peer, instead of installing it")
    add("--cache", type=Path, help="folder of environments and random models")
    add("--install-only", action="store_true", help="install the peer, write the model, and stop")
    for side in ("peer", "slmq"):
        add(
            f"--{side}-option",
            type=option,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"passed when {side} loads; see the worker",
        )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    if args.rounds < 1:
        raise PeerError(f"--rounds: expected at least 1, got {args.rounds}")
    tests = make_tests(args)
    peer = peer_named(args.peer)
    root = args.cache or cache_dir() / "peers"
    python = args.python or ensure_environment(peer, root)
    model, name = find_model(args, root)
    if args.install_only:
        return
    own = PEERS["slmq"]
    with (
        Worker("slmq", Path(sys.executable), own.worker) as first,
        Worker("peer slmq" if peer is own else peer.name, python, peer.worker) as second,
    ):
        found = compare(
            model,
            name,
            (first, second),
            tests=tests,
            threads=args.threads,
            rounds=args.rounds,
            options=(dict(args.slmq_option), dict(args.peer_option)),
        )
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(found), indent=1) + "\n", "utf-8")
    print(as_markdown(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse(argv)
    try:
        run(args)
    except (Error, ImportError, OSError, PeerError, ValueError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
