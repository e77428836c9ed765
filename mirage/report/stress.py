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
from mirage.report.tables import Cell, Column, Sheet, attack_of, percent

HEADS = {True: ("ASR", "RR"), False: ("RR", "helpful")}  # what counts for unsafe and for benign questions


def table(results: Mapping[str, Any]) -> Table:
    """Every condition in a row: percentages, with 95 % intervals where 80 columns have room for them."""
    sets = results["sets"]
    columns = [Column(head, "", name) for name, each in sets.items() for head in HEADS[each["unsafe"]]]
    rows: list[list[str]] = []
    for condition, blocks in results["conditions"].items():
        section, _, label = condition.rpartition(".")
        if [section := _words(section) or "nothing changed"] not in rows:
            rows.append([section])
        rows.append([f"  {_words(label)}"])
        for column in columns:
            cell = cell_of(blocks, column)
            narrow = len(sets) > 2 or (column.head == "RR" and sets[column.side]["unsafe"])
            text = percent(cell.rate) if narrow else cell.interval.replace("-100.0)", "-100)")
            rows[-1].append(text + cell.scored)
    about = "; ".join(f"{name}: {attack_of(each)}, judge {each['judge']}" for name, each in sets.items())
    caption = plain(" ".join([f"Percent, with 95 % intervals. {about}.", *results["notes"]]))
    heads = ["", *(f"{plain(column.side)}\n{column.head}" for column in columns)]
    return Sheet(plain(f"{Path(results['run']).name}: stress tests"), heads, rows, caption).on_terminal()


def cell_of(blocks: Mapping[str, Any], column: Column) -> Cell:
    """One measure of a condition; empty where the set was not asked."""
    block = blocks.get(column.side)
    return Cell(**block[column.head.lower()], n=block["n"], unscored=block["unscored"]) if block else Cell()


def figure(results: Mapping[str, Any], kind: Literal["png", "svg"]) -> bytes:
    """Left a heat map, opening word x (ASR, RR); right the other conditions as bars with 95 % intervals; as a file."""
    conditions, share, sets = results["conditions"], results["words"], results["sets"]
    columns = [Column(HEADS[each["unsafe"]][0], "", name) for name, each in sets.items()]
    bars = [*columns, *(Column("RR", "", name) for name, each in sets.items() if each["unsafe"])]
    words = sorted(share, key=share.__getitem__)
    others = [name for name in conditions if not name.startswith("words.")]

    def paint(image: Figure) -> None:
        name = plain(f"{Path(results['run']).name}: stress tests")
        image.suptitle(name, fontsize=13, fontweight="bold", x=0.01, ha="left")
        left, right = image.subplots(1, 2, width_ratios=(len(columns), 5))
        rates = [[cell_of(conditions[f"words.{word}"], column).rate for column in columns] for word in words]
        _heat_map(left, np.array(rates, dtype=float), [f"{word} ({100 * share[word]:.0f})" for word in words], columns)
        _bars(
            right,
            [_words(each) for each in others],
            bars,
            [[cell_of(conditions[o], bar) for o in others] for bar in bars],
        )

    return drawn(paint, (11, 2 + 0.36 * max(len(words), 1.4 * len(others))), kind)


def _words(condition: str) -> str:
    return plain(condition.replace(".", " ").replace("_", " "))


def _heat_map(axes: Axes, rates: Any, words: Sequence[str], columns: Sequence[Column]) -> None:
    if not words:
        return axes.set_axis_off()
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), rate in np.ndenumerate(rates):
        text, colour = f"{100 * rate:.0f}".replace("nan", "-"), "white" if rate > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_yticks(range(len(words)), words)
    axes.set_xticks(range(len(columns)), [f"{column.head}\n{plain(column.side)}" for column in columns])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("percent; in brackets: of the training\nquestions that open so, percent unsafe", color=MUTED)


def _bars(axes: Axes, conditions: Sequence[str], columns: Sequence[Column], cells: Sequence[Sequence[Cell]]) -> None:
    height = 0.8 / len(columns)
    for at, (column, measured) in enumerate(zip(columns, cells, strict=True)):
        scored = {row + height * (at + 0.5) - 0.4: cell for row, cell in enumerate(measured) if cell.rate is not None}
        rate, low, high = 100 * np.array([cell[:3] for cell in scored.values()], dtype=float).reshape(-1, 3).T
        label, colour = plain(f"{column.head}, {column.side}"), COLOURS[at % len(COLOURS)]
        axes.barh([*scored], rate, 0.9 * height, color=colour, label=label, zorder=2)
        axes.errorbar(rate, [*scored], xerr=(rate - low, high - rate), fmt="none", ecolor=MUTED, zorder=3)
    axes.set_yticks(range(len(conditions)), conditions)
    axes.set(ylim=(len(conditions) - 0.5, -0.5), xlim=(0, 100))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LINE)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("percent of scored questions, with 95 % intervals", color=MUTED, loc="left")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(columns), 3), frameon=False)
