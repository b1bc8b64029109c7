"""A profile as a picture: time by layer and op, and how near each op is to the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmq.speed.pictures import check_picture, figure_class
from slmq.speed.profile_rows import Phase, Profile, duration

__all__ = ["draw"]

# Okabe and Ito's palette, which colour-blind eyes can tell apart; the same op has the same colour
# in every picture.
COLOURS = {
    "linear": "#0072b2",
    "linear+add": "#56b4e9",
    "swiglu": "#009e73",
    "attention": "#d55e00",
    "head": "#cc79a7",
    "quantize": "#e69f00",
    "rmsnorm": "#f0e442",
}
OTHER, OTHER_COLOUR = "other", "#9a9a9a"
INK, FAINT = "#333333", "#dddddd"
LABELLED_SHARE = 0.06  # smaller pieces of the whole have no room for a number
LISTED_SHARE = 0.002
LONGEST_FRACTION = 1.15  # weights that stay in the cache go beyond the memory's limit


def draw(profile: Profile, path: Path) -> None:
    """Writes the picture; errors as `check_picture`."""
    check_picture(path)
    import matplotlib as mpl

    # Text stays text in an SVG: it can be searched, and read aloud.
    style = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10, "text.color": INK}
    style |= {"axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    style |= {"axes.titlelocation": "left", "hatch.linewidth": 0.5}
    with mpl.rc_context(style):
        figure = _compose(profile)
        figure.savefig(path, dpi=150)


def _compose(profile: Profile) -> Any:
    """Three panels for each phase: the whole, the layers, the limits."""
    phases = profile.phases
    figure = figure_class()(figsize=(13, 1.5 + 4.6 * len(phases)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    figure.suptitle(
        f"{profile.model}, {profile.format} on {profile.cpu}, {profile.isa} kernels, "
        f"{profile.threads} thread{'s' if profile.threads > 1 else ''}\n"
        f"read bandwidth {profile.limits.read_gb_per_s:.1f} GB/s, int8 peak "
        f"{profile.limits.integer_peak_gmac_per_s:.0f} GMAC/s, activations {profile.activations}, "
        f"cache {profile.cache}",
        fontsize=12,
        x=0.01,
        ha="left",
    )
    grids = figure.add_gridspec(len(phases) + 1, 1, height_ratios=[1] * len(phases) + [0.07])
    for i, phase in enumerate(phases):
        cell = grids[i].subgridspec(2, 2, height_ratios=[1, 4.2], width_ratios=[1.7, 1])
        _draw_whole(figure.add_subplot(cell[0, :]), phase)
        _draw_layers(figure.add_subplot(cell[1, 0]), phase)
        _draw_limits(figure.add_subplot(cell[1, 1]), phase, profile)
    _draw_legend(figure.add_subplot(grids[-1]), phases, profile.activations == "a16g32")
    return figure


def _kind(op: str) -> str:
    return op if op in COLOURS else OTHER


def _colour(kind: str) -> str:
    return COLOURS.get(kind, OTHER_COLOUR)


def _present(phases: list[Phase]) -> list[str]:
    """Kinds of ops in the order of the palette."""
    there = {_kind(row.name) for phase in phases for row in phase.ops}
    return [kind for kind in (*COLOURS, OTHER) if kind in there]


def _what(phase: Phase) -> str:
    if phase.name == "decode":
        return f"decode: one token at {phase.context:,} tokens of context"
    return f"prefill: a prompt of {phase.tokens:,} tokens"


def _draw_whole(axes: Any, phase: Phase) -> None:
    """One bar of the whole time, cut by op."""
    left = 0.0
    for kind in _present([phase]):
        share = sum(row.share for row in phase.ops if _kind(row.name) == kind)
        axes.barh(0, share, left=left, color=_colour(kind), edgecolor="white", height=0.8)
        if share >= LABELLED_SHARE:
            ink = "black" if kind in {"rmsnorm", "quantize", "linear+add"} else "white"
            axes.text(
                left + share / 2, 0, f"{kind}\n{share:.0%}", ha="center", va="center", color=ink,
                fontsize=8,
            )  # fmt: skip
        left += share
    axes.set(xlim=(0, 1), yticks=[], xlabel="share of the time")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(
        f"{_what(phase)}: {duration(phase.time_us)} with clocks, "
        f"{duration(phase.plain_us)} without. Bound by {phase.bound}.",
        fontweight="bold",
    )
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_layers(axes: Any, phase: Phase) -> None:
    """A bar for each layer, stacked by op."""
    names = list(dict.fromkeys(s.layer for s in phase.steps if s.layer.startswith("layer ")))
    unit, scale = ("ms", 1e3) if _longest_us(phase, names) >= 1e4 else ("µs", 1.0)
    floor = [0.0] * len(names)
    for kind in _present([phase]):
        times = [
            sum(s.time_us for s in phase.steps if s.layer == name and _kind(s.op) == kind) / scale
            for name in names
        ]
        axes.bar(range(len(names)), times, bottom=floor, color=_colour(kind), width=0.85)
        floor = [a + b for a, b in zip(floor, times, strict=True)]
    outside = ", ".join(
        f"{row.name} {duration(row.time_us)}"
        for row in phase.layers
        if not row.name.startswith("layer ")
    )
    axes.set(xlabel="layer", ylabel=f"time ({unit})", xlim=(-0.7, len(names) - 0.3))
    axes.set_title(f"By layer (not shown: {outside})")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _longest_us(phase: Phase, names: list[str]) -> float:
    return max((row.time_us for row in phase.layers if row.name in names), default=0.0)


def _draw_limits(axes: Any, phase: Phase, profile: Profile) -> None:
    """Two bars for each op that reads weights or the cache, and for the whole."""
    rows = [r for r in phase.ops if r.share >= LISTED_SHARE and (r.weight_bytes or r.kv_bytes)]
    for i, row in enumerate([*rows, phase.total]):
        colour = INK if i == len(rows) else _colour(_kind(row.name))
        for shift, value, hatch in (
            (-0.2, row.read_fraction, ""),
            (0.2, row.integer_fraction, "/"),
        ):
            if value == 0:
                continue  # attention multiplies floats
            # A bar that leaves the picture tells its length all the same.
            length = min(value, LONGEST_FRACTION)
            hatches = {"hatch": hatch, "edgecolor": "white", "linewidth": 0} if hatch else {}
            axes.barh(i + shift, length, height=0.38, color=colour, **hatches)
            shown = f"{value:.2f}" if value >= 0.01 else "<0.01"
            axes.text(length + 0.01, i + shift, shown, va="center", fontsize=8)
    axes.axvline(1, color=INK, linewidth=1)
    if profile.activations == "a16g32":
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(
        range(len(rows) + 1), [f"{r.name}  {r.share:.0%}" for r in (*rows, phase.total)]
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, LONGEST_FRACTION + 0.1), xlabel="fraction of this machine's limit")
    axes.set_title("Beside the limits, by op")
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_legend(axes: Any, phases: list[Phase], wide: bool) -> None:
    """What the colours mean: ops at the left, limits at the right."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_axis_off()
    kinds = _present(phases)
    others = dict.fromkeys(
        row.name for phase in phases for row in phase.ops if _kind(row.name) == OTHER
    )
    named = {OTHER: f"other ({', '.join(name for name in others)})"}
    ops = [Patch(color=_colour(kind), label=named.get(kind, kind)) for kind in kinds]
    axes.add_artist(
        axes.legend(handles=ops, loc="upper left", ncols=5, frameon=False, borderaxespad=0)
    )
    limits: list[Any] = [
        Patch(color=OTHER_COLOUR, label="of read bandwidth"),
        Patch(facecolor=OTHER_COLOUR, edgecolor="white", linewidth=0, hatch="//////",
              label="of the int8 peak"),
    ]  # fmt: skip
    if wide:
        full = "its full use with 16-bit activations"
        limits.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=full))
    axes.legend(handles=limits, loc="upper right", ncols=1, frameon=False, borderaxespad=0)
