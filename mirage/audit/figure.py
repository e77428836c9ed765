"""The paper's Figure 1 of an audit."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from mirage.atomic import replacing
from mirage.audit.counts import BY_ANSWERS, Audit, LabelNames, WordCount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermillion: apart for every common colour blindness, and in grey print.
_ANSWERED, _REFUSED, _INK, _MUTED, _GRID = "#0072B2", "#D55E00", "#222222", "#666666", "#DDDDDD"


def figure(audit: Audit, *, rows: int = 18, title: str = "", data: str = "", labels: LabelNames = BY_ANSWERS) -> Figure:
    """The paper's Figure 1: left, what opens answered and refused questions; right, how often each is refused.

    Args:
        audit: The counts to show.
        rows: Number of words, the most frequent first.
        title: By default the two words that the audit names.
        data: What was audited, for a small line below.
        labels: What the two labels are called.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = audit.words[:rows]
    image = Figure(figsize=(10.5, 1.9 + 0.32 * max(len(lines), 4)), dpi=150, facecolor="white")
    image.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04))
    shares, rates = image.subplots(1, 2, sharey=True, width_ratios=(1.45, 1))
    left: dict[str, Any] = {"x": 0.012, "ha": "left"}
    image.suptitle(_plain(title or _headline(audit, labels)), fontsize=13, fontweight="bold", color=_INK, **left)
    image.supxlabel(
        (f"{_plain(fill(data, 120))}\n" if data else "")
        + f"{audit.questions:,} questions, {audit.refused:,} {labels.refused} and {audit.answered:,} {labels.answered}.\n"
        f"The opening word carries {audit.mutual_information_bits:.3f} of the label's {audit.label_entropy_bits:.3f} bits"
        f" and, alone, labels {100 * audit.opening_accuracy:.2f} % correctly.",
        fontsize=9.5, color=_MUTED, **left,
    )  # fmt: skip
    _show_shares(shares, lines, labels)
    _show_rates(rates, lines, 100 * audit.refused / audit.questions, labels)
    shares.set_yticks(range(len(lines)), [line.word for line in lines], fontsize=10.5, color=_INK)
    shares.set_ylim(max(len(lines), 1) - 0.4, -0.6)
    for axes in (shares, rates):
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="both", length=0)
    return image


def _plain(text: str) -> str:
    """`text` for matplotlib, which would read what stands between two dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _headline(audit: Audit, labels: LabelNames) -> str:
    where = "that hold" if audit.every_word else "that open with"
    parts = []
    for word, effect in ((audit.attack_word, labels.answered), (audit.overprudence_word, labels.refused)):
        if line := audit.of(word) if word else None:
            rate = line.p_refused.rate if effect == labels.refused else 1 - line.p_refused.rate
            parts.append(f'"{word}" are {effect} ({100 * rate:.0f} %)')
    between = ", with " if sum(map(len, parts)) < 62 else ",\nwith "  # more does not fit the figure's width
    return f"Questions {where} {between.join(parts)}" if parts else "Words of the questions, and their labels"


def _show_shares(axes: Axes, lines: tuple[WordCount, ...], labels: LabelNames) -> None:
    widest = []
    for side, align, colour, name, values in (
        (-1, "right", _ANSWERED, labels.answered, [line.share_of_answered for line in lines]),
        (1, "left", _REFUSED, labels.refused, [line.share_of_refused for line in lines]),
    ):
        axes.barh(range(len(lines)), [side * value for value in values], height=0.72, color=colour, zorder=2)
        widest.append(max([*values, 0.02]))
        for position, value in enumerate(values):
            axes.annotate(
                f"{100 * value:.1f}" if value else "0", (side * value, position), xytext=(side * 4, 0),
                textcoords="offset points", ha=align, va="center", fontsize=8.5, color=_INK if value else _MUTED,
            )  # fmt: skip
        axes.annotate(
            f"% of {name.removeprefix('in ')}", (0, 1), xycoords=("data", "axes fraction"), xytext=(side * 6, 4),
            textcoords="offset points", ha=align, va="bottom", fontsize=10.5, fontweight="bold", color=colour,
        )  # fmt: skip
    margin = 0.12 * sum(widest)
    axes.set_xlim(-widest[0] - margin, widest[1] + margin)
    axes.axvline(0, color=_INK, linewidth=0.9, zorder=3)
    axes.set_xticks([])


def _show_rates(axes: Axes, lines: tuple[WordCount, ...], average: float, labels: LabelNames) -> None:
    axes.axvline(average, color=_MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for position, line in enumerate(lines):
        rate, low, high = (100 * end for end in (line.p_refused.rate, line.p_refused.low, line.p_refused.high))
        colour, marker = (_REFUSED, "o") if low > average else (_ANSWERED, "s") if high < average else (_MUTED, "D")
        axes.plot([low, high], [position] * 2, color=colour, linewidth=2.2, zorder=2)
        axes.plot([rate], [position], marker, color=colour, markersize=6.5, zorder=3, clip_on=False)
        axes.annotate(
            f"n = {line.count:,}", (1.03, position), xycoords=("axes fraction", "data"), va="center", fontsize=8.5,
            color=_MUTED, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(-1, 101)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"], fontsize=9, color=_MUTED)
    axes.set_xlabel(f"dashed: all questions, {average:.1f} %", fontsize=9, color=_MUTED, loc="left")
    axes.grid(axis="x", color=_GRID, linewidth=0.7, zorder=0)
    title = f"{labels.refused}, with 95 % interval"
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=_INK, pad=5)


def write_figure(image: Figure, path: Path) -> None:
    """`path` holds the figure in the format of its suffix, whole or not at all; same figure, same bytes."""
    import matplotlib

    content = io.BytesIO()
    kind = path.suffix.lstrip(".")
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "mirage", "svg.fonttype": "none"}):
        image.savefig(content, format=kind, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content.getvalue())
