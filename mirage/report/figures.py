"""The K-shot curves: ASR and RR against the number of rewrites tried (the paper's Figure 3)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mirage.evaluation.run.counting import any_of_first
from mirage.report.runs import Run, models
from mirage.report.tables import plain

INK, MUTED, LINE = "#1b1f24", "#57606b", "#d5dae1"
# Each at least 4.5 : 1 on white, and different in marker as well. On the page they are CSS variables (`themed_svg`).
COLOURS = ("#0a66a8", "#b84a00", "#00755a", "#9c3f88", "#7a5c00", "#8a2323", "#3d4db3", "#4c6b1f")
START_COLOUR = "#5f6873"
MARKERS = "osD^vPX*"


class Series(NamedTuple):
    """One model's line: blocks for k = 0, 1, ..., K."""

    label: str
    blocks: tuple[dict[str, Any], ...]
    position: int | None  # of the run, for colour and marker; None for a starting model


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    measure: str
    axis: str  # what the horizontal axis counts
    series: tuple[Series, ...]


def panels(runs: Sequence[Run]) -> list[Panel]:
    """ASR on unsafe and RR on benign questions, any of the first k rewrites; a side without any records is skipped."""
    made = []
    for side, title, measure in (
        ("unsafe", "Attack success on unsafe questions (ASR)", "asr"),
        ("benign", "Refusal of benign questions (RR)", "rr"),
    ):
        series = tuple(
            Series(model.label, tuple(any_of_first(records, unsafe=side == "unsafe")), model.position)
            for model in models(runs)
            if (records := model.records(side))
        )
        words = {((run.results.get(side) or {}).get("attack") or {}).get("word") for run in runs if side in run.records}
        opening = f' opening with "{_short(str(word))}"' if len(words) == 1 and (word := words.pop()) else ""
        if series:
            made.append(Panel(title, measure, f"k rewrites{opening} (any of them)", series))
    return made


def curves_bytes(panels: Sequence[Panel]) -> tuple[bytes, bytes]:
    """All panels side by side, for a paper, as PNG and as SVG; the same bytes for the same numbers."""
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6 * len(panels), 4.0), layout="constrained")
        for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            _plot(panel, axes)
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata=_NO_METADATA)
    return png.getvalue(), svg.getvalue()


def themed_svg(panel: Panel) -> str:
    """One panel as an `<svg>` element with the page's CSS variables for colours, and ids of no other panel."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.7), layout="constrained")
        _plot(panel, figure.subplots())
        raw = io.BytesIO()
        figure.savefig(raw, format="svg", transparent=True, metadata=_NO_METADATA)
    opening, rest = raw.getvalue().decode().partition("<svg")[2].split(">", 1)
    opening = re.sub(r' (?:width|height|xmlns:xlink|version)="[^"]*"', "", opening)
    opening += f' role="img" aria-label="{panel.title}; the numbers stand in the table below"'
    rest = re.sub(r' id="([^"]+)"', rf' id="{panel.measure}-\1"', rest)
    rest = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{panel.measure}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{panel.measure}-\1)", rest)
    for colour, name in _VARIABLES.items():
        rest = rest.replace(colour, f"var(--{name})")
    return f"<svg{opening}>{rest}"


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
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


def _plot(panel: Panel, axes: Axes) -> None:
    last = max(len(series.blocks) for series in panel.series) - 1
    ends: list[tuple[float, float, str, str]] = []
    for series in panel.series:
        colour = START_COLOUR if series.position is None else COLOURS[series.position % len(COLOURS)]
        scored = {
            k: rate for k, block in enumerate(series.blocks) if (rate := block[panel.measure])["rate"] is not None
        }
        if not scored:
            continue
        ks = list(scored)
        low, rates, high = ([100 * rate[end] for rate in scored.values()] for end in ("low", "rate", "high"))
        axes.fill_between(ks, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            ks, rates, color=colour, linewidth=2, markersize=6, clip_on=False, zorder=3,
            marker="." if series.position is None else MARKERS[series.position % len(MARKERS)],
            linestyle="--" if series.position is None else "-",
        )  # fmt: skip
        ends.append((ks[-1], rates[-1], f"{_short(series.label)} {rates[-1]:.1f}", colour))
    axes.set_title(panel.title, loc="left", fontsize=11.5, fontweight="bold", pad=14)
    axes.set_xlabel(panel.axis, loc="left")
    axes.set_ylabel("percent of scored questions")
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.04 * max(last, 1), last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(lambda k, _: "plain" if k == 0 else f"{k:.0f}")
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for (k, y, text, colour), at in zip(ends, _spread([end[1] for end in ends], gap=6.5), strict=True):
        axes.annotate(
            text, xy=(k, y), xytext=(last + 0.06 * max(last, 1), at), va="center", color=colour, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.6, "shrinkA": 1, "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _spread(heights: Sequence[float], gap: float, top: float = 100.0) -> list[float]:
    """Heights for labels in the order of `heights`, at least `gap` apart, and near to them."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    floor = 0.0
    for i in order:
        placed[i] = floor = max(placed[i], floor)
        floor += gap
    ceiling = top
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed


def _short(label: str, longest: int = 22) -> str:
    """Cut in the middle: names of runs differ at their ends."""
    label, kept = plain(label), longest - 3
    return label if len(label) <= longest else f"{label[: kept - kept // 2]}...{label[-(kept // 2) :]}"
