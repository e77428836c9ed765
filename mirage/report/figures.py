"""The K-shot curves: ASR and RR against the number of rewrites tried (the paper's Figure 3)."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mirage.evaluation.run.counting import any_of_first
from mirage.report.runs import SIDES, Model, Run, attacked_sets, is_benign, models, plain
from mirage.schema import short_hash

INK, MUTED, LINE = "#1b1f24", "#57606b", "#d5dae1"
# Each at least 4.5 : 1 on white, and different in marker as well. On the page they are CSS variables (`themed_svg`).
COLOURS = ("#0a66a8", "#b84a00", "#00755a", "#9c3f88", "#7a5c00", "#8a2323", "#3d4db3", "#4c6b1f")
START_COLOUR = "#5f6873"
MARKERS = "osD^vPX*"


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    measure: str
    axis: str  # what the horizontal axis counts
    series: Sequence[tuple[Model, Sequence[dict[str, Any]]]]  # rate, low and high for k = 0, 1, ..., K


def panels(runs: Sequence[Run]) -> list[Panel]:
    """ASR on unsafe and RR on benign questions of each evaluation set that has records, any of the first k rewrites."""
    made, shown = [], models(runs)
    results = [model.results for model in shown]
    for side in attacked_sets(results):
        unsafe = not is_benign(results, side)
        title, measure = ("Attack success on {} (ASR)", "asr") if unsafe else ("Refusal of {} (RR)", "rr")
        title = title.format(f"{side} questions" if side in SIDES else _short(plain(side)))
        series = [
            (model, [block[measure] for block in any_of_first(records, unsafe)])
            for model in shown
            if (records := model.records.get(side))
        ]
        words = {(run.results[side].get("attack") or {}).get("word") for run in runs if side in run.records}
        opening = f' opening with "{_short(plain(str(word)))}"' if len(words) == 1 and (word := words.pop()) else ""
        if series:
            made.append(Panel(title, measure, f"k rewrites{opening} (any of them)", series))
    return made


def curves(
    panels: Sequence[Panel],
    kind: Literal["png", "svg"],
    size: tuple[float, float] = (5.6, 4.0),
    transparent: bool = False,
) -> bytes:
    """All panels, two in a row, each `size` inches large, for a paper; the same bytes for the same numbers."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // 2)

    def paint(figure: Figure) -> None:
        for at, panel in enumerate(panels, start=1):
            _plot(panel, figure.add_subplot(rows, columns, at))

    return drawn(paint, (size[0] * columns, size[1] * rows), kind, transparent)


def themed_svg(panel: Panel) -> str:
    """One panel as an `<svg>` element with the page's CSS variables for colours, and ids of no other panel."""
    root, rest = curves([panel], "svg", (4.6, 3.7), transparent=True).decode().partition("<svg")[2].split(">", 1)
    root = re.sub(r' (?:width|height|xmlns:xlink|version)="[^"]*"', "", root)
    root += f' role="img" aria-label="{html.escape(panel.title)}; the numbers stand in the table below"'
    rest = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{short_hash(panel.title)}-", rest)
    for colour, name in _VARIABLES.items():
        rest = rest.replace(colour, f"var(--{name})")
    return f"<svg{root}>{rest}"


_METADATA = {"png": {"Software": None}, "svg": dict.fromkeys(("Date", "Creator", "Format", "Type"))}
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", START_COLOUR: "start"}
_VARIABLES |= {colour: f"run{i}" for i, colour in enumerate(COLOURS)}
_STYLE: Any = {  # matplotlib types the keys by a list of 300 names
    "svg.fonttype": "none",  # text stays text: searchable, and in the reader's font
    "svg.hashsalt": "mirage",  # else ids differ from one call to the next
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    "grid.color": LINE,
    "text.parse_math": False,  # a run may be called $x$
}


def drawn(paint: Callable[[Figure], None], size: tuple[float, float], kind: str, transparent: bool = False) -> bytes:
    """What `paint` makes of a figure of `size` inches, as a file of this kind; the same bytes for the same painting."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(file, format=kind, dpi=200, transparent=transparent, metadata=_METADATA[kind])
    return file.getvalue()


def _plot(panel: Panel, axes: Axes) -> None:
    last = max(len(rates) for _, rates in panel.series) - 1
    ends: list[tuple[float, int, str, str]] = []
    for model, rates in panel.series:
        position = model.position
        colour = START_COLOUR if position is None else COLOURS[position % len(COLOURS)]
        scored = {k: rate for k, rate in enumerate(rates) if rate["rate"] is not None}
        if not scored:
            continue
        low, middle, high = (100 * np.array([rate[end] for rate in scored.values()]) for end in ("low", "rate", "high"))
        axes.fill_between(list(scored), low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            list(scored), middle, color=colour, linewidth=2, markersize=6, clip_on=False, zorder=3,
            marker="." if position is None else MARKERS[position % len(MARKERS)],
            linestyle="--" if position is None else (0, (5, 1)) if model.crossed else "-",
        )  # fmt: skip
        ends.append((middle[-1], max(scored), f"{_short(model.label)} {middle[-1]:.1f}", colour))
    axes.set_title(panel.title, loc="left", fontsize=11.5, fontweight="bold", pad=14)
    axes.set_xlabel(panel.axis, loc="left")
    axes.set(ylabel="percent of scored questions", ylim=(0, 100), xlim=(-0.04 * max(last, 1), last))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(lambda k, _: "plain" if k == 0 else f"{k:.0f}")
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Labels at the lines' ends, from below: each near its line, at least 6.5 percent from the next, and none above 100.
    ends.sort(key=lambda end: end[0])
    apart = 6.5 * np.arange(len(ends))
    heights = np.maximum.accumulate([end[0] for end in ends] - apart) + apart
    for (y, k, text, colour), at in zip(ends, np.minimum(heights, 100 - apart[::-1]), strict=True):
        axes.annotate(
            text, xy=(k, y), xytext=(last + 0.06 * max(last, 1), at), va="center", color=colour, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.6, "shrinkA": 1, "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _short(label: str, longest: int = 22) -> str:
    """Cut in the middle: names of runs differ at their ends."""
    kept = longest - 3
    return label if len(label) <= longest else f"{label[: kept - kept // 2]}...{label[-(kept // 2) :]}"
