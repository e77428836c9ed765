"""The paper's Figure 1 of an audit, and the cues of form as bars."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mirage.atomic import replacing
from mirage.audit.counts import BY_ANSWERS, Audit, LabelNames, WordCount
from mirage.audit.forms import FormAudit

WORDS = 18  # shown, the most frequent first

# Okabe and Ito's blue and vermillion: apart for every common colour blindness, and in grey print.
_ANSWERED, _REFUSED, _INK, _MUTED, _PALE, _GRID = (
    "#0072B2", "#D55E00", "#222222", "#666666", "#B5B5B5", "#DDDDDD",
)  # fmt: skip


def figure(audit: Audit, *, data: str = "", names: LabelNames = BY_ANSWERS, forms: FormAudit | None = None) -> Figure:
    """The paper's Figure 1: left, what opens answered and refused questions; right, how often each is refused.

    Below them, how well each cue of form alone labels the questions, if the `forms` of the same questions are given. The
    two words that the audit names are the title; `data`, what was audited, is a small line below.
    """
    lines = audit.words[:WORDS]
    heights = [0.6 + 0.32 * max(len(lines), 4), *([0.7 + 0.42 * (len(forms.cues) + 1)] if forms else [])]
    image = Figure(figsize=(10.5, 1.3 + sum(heights)), dpi=150, facecolor="white")
    image.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04))
    panels = [["shares", "rates"], ["forms", "forms"]][: len(heights)]
    axes = image.subplot_mosaic(panels, width_ratios=(1.45, 1), height_ratios=heights)  # type: ignore[arg-type]
    shares, rates = axes["shares"], axes["rates"]
    rates.sharey(shares)
    rates.tick_params(labelleft=False)
    left: dict[str, Any] = {"x": 0.012, "ha": "left", "parse_math": False}
    image.suptitle(_headline(audit, names), fontsize=13, fontweight="bold", color=_INK, **left)
    image.supxlabel(
        (f"{fill(data, 120)}\n" if data else "")
        + f"{audit.questions:,} questions, {audit.refused:,} {names.refused} and {audit.answered:,} {names.answered}.\n"
        f"The opening word carries {audit.mutual_information_bits:.3f} of the label's {audit.label_entropy_bits:.3f} bits"
        f" and, alone, labels {100 * audit.opening_accuracy:.2f} % correctly.",
        fontsize=9.5, color=_MUTED, **left,
    )  # fmt: skip
    _show_shares(shares, lines, names)
    _show_rates(rates, lines, 100 * audit.refused / audit.questions, names)
    shares.set_yticks(range(len(lines)), [line.word for line in lines], fontsize=10.5, color=_INK)
    shares.set_ylim(max(len(lines), 1) - 0.4, -0.6)
    if forms:
        _show_forms(axes["forms"], forms)
    for each in axes.values():
        each.spines[:].set_visible(False)
        each.tick_params(axis="both", length=0)
    return image


def _headline(audit: Audit, names: LabelNames) -> str:
    where = "that hold" if audit.every_word else "that open with"
    parts = []
    for word, effect in ((audit.attack_word, names.answered), (audit.overprudence_word, names.refused)):
        if line := audit.of(word) if word else None:
            rate = line.p_refused.rate if effect == names.refused else 1 - line.p_refused.rate
            parts.append(f'"{word}" are {effect} ({100 * rate:.0f} %)')
    between = ", with " if sum(map(len, parts)) < 62 else ",\nwith "  # more does not fit the figure's width
    return f"Questions {where} {between.join(parts)}" if parts else "Words of the questions, and their labels"


def _show_shares(axes: Axes, lines: tuple[WordCount, ...], names: LabelNames) -> None:
    widest = []
    for side, align, colour, name, values in (
        (-1, "right", _ANSWERED, names.answered, [line.share_of_answered for line in lines]),
        (1, "left", _REFUSED, names.refused, [line.share_of_refused for line in lines]),
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


def _show_rates(axes: Axes, lines: tuple[WordCount, ...], average: float, names: LabelNames) -> None:
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
    _explain(axes, f"{names.refused}, with 95 % interval", average, f"all questions, {average:.1f} %", zorder=1)


def _show_forms(axes: Axes, forms: FormAudit) -> None:
    in_sample = [(at - 0.19, cue.in_sample) for at, cue in enumerate(forms.cues)]
    crossed = [(at + 0.19, cue.cross_validated) for at, cue in enumerate(forms.cues)]
    crossed += [(len(forms.cues), forms.form_only_accuracy)]
    for bars, colour, label in (
        (in_sample, _PALE, "in sample"), (crossed, _INK, f"{forms.folds} folds that share no picture"),
    ):  # fmt: skip
        places, values = zip(*bars, strict=True)
        drawn = axes.barh(places, [v - 0.5 for v in values], 0.34, left=0.5, color=colour, label=label, zorder=2)
        axes.bar_label(drawn, [f"{v:.3f}" for v in values], padding=4, fontsize=8.5, color=_INK)
    names = [*(cue.cue for cue in forms.cues), "form only"]
    axes.set_yticks(range(len(names)), names, fontsize=10.5, color=_INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(min(0.45, *(value - 0.05 for _, value in in_sample + crossed)), 1.04)
    axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1], ["0.5", "0.6", "0.7", "0.8", "0.9", "1"], fontsize=9, color=_MUTED)
    _explain(axes, "Balanced accuracy of one cue of form alone", 0.5, "chance, 0.5", zorder=3)
    axes.legend(loc="lower right", fontsize=9, frameon=False, bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1)


def _explain(axes: Axes, title: str, dashed: float, what: str, *, zorder: int) -> None:
    """Title, grid, and a dashed line with what it shows."""
    axes.axvline(dashed, color=_MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=zorder)
    axes.set_xlabel(f"dashed: {what}", fontsize=9, color=_MUTED, loc="left")
    axes.grid(axis="x", color=_GRID, linewidth=0.7, zorder=0)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=_INK, pad=5)


def write_figure(image: Figure, path: Path) -> None:
    """`path` holds the figure in the format of its suffix, whole or not at all; same figure, same bytes."""
    content = io.BytesIO()
    kind = path.suffix.lstrip(".")
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "mirage", "svg.fonttype": "none"}):
        image.savefig(content, format=kind, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content.getvalue())
