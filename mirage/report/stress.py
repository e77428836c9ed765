"""The stress tests of a run as a table for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from mirage.report.figures import COLOURS, LINE, MUTED, drawn
from mirage.report.runs import plain
from mirage.report.tables import Cell, Sheet, attack_of

MEASURES = {True: ("asr", "rr"), False: ("rr", "helpful")}  # of unsafe and of benign questions
NAMES = {"asr": "ASR", "rr": "RR", "helpful": "helpful"}


def table(results: Mapping[str, Any]) -> Table:
    """Every condition in a row, 80 columns wide for two sets: percentages, most of them with 95 % intervals."""
    sets = results["sets"]
    columns = [(name, measure) for name, each in sets.items() for measure in MEASURES[each["unsafe"]]]
    rows: list[list[str]] = []
    for condition, blocks in results["conditions"].items():
        section, _, label = condition.partition(".")
        if not label:
            section, label = "nothing changed", condition
        if [section] not in rows:
            rows.append([section])
        rows.append([f"  {label.replace('.', ' ').replace('_', ' ')}"])
        for name, measure in columns:
            cell = cell_of(blocks, name, measure)
            brief = measure == "rr" and sets[name]["unsafe"]  # four intervals do not fit
            text = cell.interval.partition(" ")[0] if brief else cell.interval.replace("-100.0)", "-100)")
            rows[-1].append(text + cell.scored)
    heads = ["", *(f"{plain(name)}\n{NAMES[measure]}" for name, measure in columns)]
    about = "; ".join(f"{name}: {attack_of(each)}, judge {each['judge']}" for name, each in sets.items())
    caption = " ".join([f"Percent, with 95 % intervals. {about}.", *results["notes"]])
    return Sheet(plain(f"{Path(results['run']).name}: stress tests"), heads, rows, plain(caption)).on_terminal()


def cell_of(blocks: Mapping[str, Any], eval_set: str, measure: str) -> Cell:
    """One measure of a condition on a set; empty where that set was not asked."""
    block = blocks.get(eval_set)
    return Cell(**block[measure], n=block["n"], unscored=block["unscored"]) if block else Cell()


def figure(results: Mapping[str, Any], kind: Literal["png", "svg"]) -> bytes:
    """Left a heat map, opening word x (ASR, RR); right the other conditions as bars with 95 % intervals."""
    conditions, unsafe_share = results["conditions"], results["words"]
    sets = {name: each["unsafe"] for name, each in results["sets"].items()}
    columns = [(name, "asr" if unsafe else "rr") for name, unsafe in sets.items()]
    bars = [*columns, *((name, "rr") for name, unsafe in sets.items() if unsafe)]
    words = sorted(unsafe_share, key=unsafe_share.__getitem__)
    others = [name for name in conditions if not name.startswith("words.")]

    def paint(image: Figure) -> None:
        image.suptitle(
            plain(f"{Path(results['run']).name}: stress tests"), fontsize=13, fontweight="bold", x=0.01, ha="left"
        )
        left, right = image.subplots(1, 2, width_ratios=(len(columns), 5))
        _heat_map(
            left, [[cell_of(conditions[f"words.{word}"], *column).rate for column in columns] for word in words],
            [f"{word} ({100 * unsafe_share[word]:.0f})" for word in words], [_named(*column) for column in columns],
        )  # fmt: skip
        _bars(right, others, {_named(*bar): [cell_of(conditions[name], *bar) for name in others] for bar in bars})

    return drawn(paint, (11, 2 + 0.36 * max(len(words), 1.4 * len(others))), kind)


def _named(eval_set: str, measure: str) -> str:
    return plain(f"{NAMES[measure]}, {eval_set}")


def _heat_map(axes: Axes, rates: list[list[float | None]], words: Sequence[str], columns: Sequence[str]) -> None:
    if not words:
        return axes.set_axis_off()
    axes.imshow(values := np.array(rates, dtype=float), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), rate in np.ndenumerate(values):
        text, colour = f"{100 * rate:.0f}".replace("nan", "-"), "white" if rate > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_yticks(range(len(words)), words)
    axes.set_xticks(range(len(columns)), [name.replace(", ", "\n") for name in columns])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("percent; in brackets: of the training\nquestions that open so, percent unsafe", color=MUTED)


def _bars(axes: Axes, conditions: Sequence[str], measured: Mapping[str, Sequence[Cell]]) -> None:
    height = 0.8 / len(measured)
    for at, (name, cells) in enumerate(measured.items()):
        scored = {row + height * (at + 0.5) - 0.4: cell for row, cell in enumerate(cells) if cell.rate is not None}
        ends = (100 * np.array([getattr(cell, end) for cell in scored.values()]) for end in ("low", "rate", "high"))
        low, rate, high = ends
        axes.barh(list(scored), rate, 0.9 * height, color=COLOURS[at % len(COLOURS)], label=name, zorder=2)
        axes.errorbar(rate, list(scored), xerr=(rate - low, high - rate), fmt="none", ecolor=MUTED, zorder=3)
    axes.set_yticks(range(len(conditions)), [name.replace(".", " ").replace("_", " ") for name in conditions])
    axes.set(ylim=(len(conditions) - 0.5, -0.5), xlim=(0, 100))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LINE)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("percent of scored questions, with 95 % intervals", color=MUTED, loc="left")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(measured), frameon=False)
