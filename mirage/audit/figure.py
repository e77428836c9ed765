"""The paper's Figure 1, drawn from an audit."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from mirage.atomic import replacing
from mirage.audit.counts import BY_ANSWERS, Audit, WordCount, Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermillion: apart for every common colour blindness, and in grey print.
_ANSWERED, _REFUSED, _INK, _MUTED, _GRID = "#0072B2", "#D55E00", "#222222", "#666666", "#DDDDDD"


def figure(found: Audit, *, rows: int = 18, title: str = "", data: str = "", words: Words = BY_ANSWERS) -> Figure:
    """The paper's Figure 1: left, what opens answered and refused questions; right, how often each is refused.

    Args:
        found: What is drawn.
        rows: So many words, the most frequent first.
        title: By default what the audit found.
        data: What was audited, for a small line below.
        words: What the two labels are called.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = found.words[:rows]
    drawn = Figure(figsize=(10.5, 1.9 + 0.32 * max(len(lines), 4)), dpi=150, facecolor="white")
    drawn.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04))
    shares, rates = drawn.subplots(1, 2, sharey=True, width_ratios=(1.45, 1))
    drawn.suptitle(
        _plain(title or _headline(found, words)), x=0.012, ha="left", fontsize=13, fontweight="bold", color=_INK
    )
    drawn.supxlabel(
        (f"{_plain(fill(data, 120))}\n" if data else "")
        + f"{found.questions:,} questions, {found.refused:,} {words.refused} and {found.answered:,} {words.answered}.\n"
        f"The opening word tells {found.mutual_information_bits:.3f} of the label's {found.label_entropy_bits:.3f} bits"
        f" and, alone, labels {100 * found.opening_accuracy:.2f} % rightly.",
        x=0.012,
        ha="left",
        fontsize=9.5,
        color=_MUTED,
    )
    _draw_shares(shares, lines, words)
    _draw_rates(rates, lines, found.refused / found.questions, words)
    shares.set_yticks(range(len(lines)), [line.word for line in lines], fontsize=10.5, color=_INK)
    shares.set_ylim(max(len(lines), 1) - 0.4, -0.6)
    for axes in (shares, rates):
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="both", length=0)
    return drawn


def _plain(text: str) -> str:
    """`text` for matplotlib, which would read what stands between two dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _headline(found: Audit, words: Words) -> str:
    where = "that hold" if found.every_word else "that open with"
    said = []
    for word, effect in ((found.attack_word, words.answered), (found.overprudence_word, words.refused)):
        line = found.of(word) if word else None
        if line:
            rate = line.p_refused.rate if effect == words.refused else 1 - line.p_refused.rate
            said.append(f'"{word}" are {effect} ({100 * rate:.0f} %)')
    between = ", with " if sum(map(len, said)) < 62 else ",\nwith "  # more does not fit the figure's width
    return f"Questions {where} {between.join(said)}" if said else "Words of the questions, and their labels"


def _draw_shares(axes: Axes, lines: tuple[WordCount, ...], words: Words) -> None:
    widest = []
    for side, colour, values in (
        (-1, _ANSWERED, [line.share_of_answered for line in lines]),
        (1, _REFUSED, [line.share_of_refused for line in lines]),
    ):
        axes.barh(range(len(lines)), [side * value for value in values], height=0.72, color=colour, zorder=2)
        widest.append(max([*values, 0.02]))
        for position, value in enumerate(values):
            axes.annotate(
                f"{100 * value:.1f}" if value else "0",
                (side * value, position),
                xytext=(side * 4, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=8.5,
                color=_INK if value else _MUTED,
            )
    room = 0.12 * sum(widest)
    axes.set_xlim(-widest[0] - room, widest[1] + room)
    axes.axvline(0, color=_INK, linewidth=0.9, zorder=3)
    axes.set_xticks([])
    for side, colour, text in (
        (-1, _ANSWERED, f"% of {words.answered.removeprefix('in ')}"),
        (1, _REFUSED, f"% of {words.refused.removeprefix('in ')}"),
    ):
        axes.annotate(
            text,
            (0, 1),
            xycoords=("data", "axes fraction"),
            xytext=(side * 6, 4),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom",
            fontsize=10.5,
            fontweight="bold",
            color=colour,
        )


def _draw_rates(axes: Axes, lines: tuple[WordCount, ...], base_rate: float, words: Words) -> None:
    axes.axvline(100 * base_rate, color=_MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for position, line in enumerate(lines):
        rate = line.p_refused
        colour, marker = _MUTED, "D"
        if rate.low > base_rate:
            colour, marker = _REFUSED, "o"
        elif rate.high < base_rate:
            colour, marker = _ANSWERED, "s"
        axes.plot([100 * rate.low, 100 * rate.high], [position] * 2, color=colour, linewidth=2.2, zorder=2)
        axes.plot([100 * rate.rate], [position], marker, color=colour, markersize=6.5, zorder=3, clip_on=False)
        axes.annotate(
            f"n = {line.count:,}",
            (1.03, position),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=_MUTED,
            annotation_clip=False,
        )
    axes.set_xlim(-1, 101)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"], fontsize=9, color=_MUTED)
    axes.set_xlabel(f"dashed: all questions, {100 * base_rate:.1f} %", fontsize=9, color=_MUTED, loc="left")
    axes.grid(axis="x", color=_GRID, linewidth=0.7, zorder=0)
    axes.set_title(
        f"{words.refused}, with 95 % interval", loc="left", fontsize=10.5, fontweight="bold", color=_INK, pad=5
    )


def write_figure(drawn: Figure, path: Path) -> None:
    """`path` holds the figure in the format of its suffix, whole or not at all; same figure, same bytes."""
    import matplotlib

    held = io.BytesIO()
    kind = path.suffix.lstrip(".")
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "mirage", "svg.fonttype": "none"}):
        drawn.savefig(held, format=kind, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(held.getvalue())
