"""Table 1 and its relatives: one grid of measured cells, and how the terminal shows it. `markup` writes it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mirage.report.runs import SIDES, Run, models


class Column(NamedTuple):
    """One measure of Table 1."""

    head: str  # ASR, RR, IR, helpful or utility
    under: str  # before, after, or the name of a utility benchmark
    side: str  # unsafe, benign or utility: which questions
    measure: str  # the key within the block
    better: Literal["lower", "higher", "neither"]

    @property
    def title(self) -> str:
        """Both lines of the column's head in one."""
        return f"{self.head} {self.under}"


class Cell(NamedTuple):
    """A rate as a fraction with its 95 % interval and the questions it is over; all None and 0: not measured."""

    rate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # unscored included
    unscored: int = 0

    @property
    def percent(self) -> str:
        """The rate in percent, or a dash."""
        return percent(self.rate)

    @property
    def interval(self) -> str:
        """The rate in percent with its 95 % interval, or a dash."""
        return self.percent if self.low is None else f"{self.percent} ({percent(self.low)}-{percent(self.high)})"

    @property
    def scored(self) -> str:
        """On a line below the rate the number of questions that it is over, where some of n are unscored."""
        return f"\nn={self.n - self.unscored}" if self.unscored else ""


class Row(NamedTuple):
    """One model of Table 1."""

    label: str
    cells: Mapping[Column, Cell]
    n: str  # unsafe and benign questions, such as `442 / 558`
    position: int | None  # of the run; None for a starting model


class Grid(NamedTuple):
    """Table 1 before it is written in any language."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str


SAFETY = (
    Column("ASR", "before", "unsafe", "asr", "lower"),
    Column("ASR", "after", "unsafe", "asr", "lower"),
    Column("RR", "before", "benign", "rr", "lower"),
    Column("RR", "after", "benign", "rr", "lower"),
    # Neither good nor bad: an irrelevant answer to an unsafe question does no harm, but is no refusal either.
    Column("IR", "after", "unsafe", "ir", "neither"),
    Column("helpful", "before", "benign", "helpful", "higher"),
    Column("helpful", "after", "benign", "helpful", "higher"),
)


def cell_of(results: Mapping[str, Any], column: Column) -> Cell:
    """What `results` (results.json, or its `start`) says in `column`."""
    utility = column.side == "utility"
    block = (results.get(column.side) or {}).get(column.measure if utility else column.under) or {}
    rate = block.get("score" if utility else column.measure)
    if rate is None:
        return Cell()
    return Cell(rate["rate"], rate["low"], rate["high"], block.get("n", 0), block.get("unscored", 0))


def grid(runs: Sequence[Run]) -> Grid:
    """Table 1 in its small form: every starting model once, then a row a run."""
    shown = models(runs)
    columns = (*SAFETY, *_utility_columns([model.results for model in shown]))
    rows = []
    for model in shown:
        asked = [(model.side(side).get("before") or {}).get("n", "-") for side in SIDES]
        cells = {column: cell_of(model.results, column) for column in columns}
        rows.append(Row(model.label, cells, " / ".join(map(str, asked)), model.position))
    captions = {run.label: _caption(run.results) for run in runs}
    caption = next(iter(captions.values()))
    if len(set(captions.values())) > 1:
        each = "; ".join(f"{plain(label)}: {text}" for label, text in captions.items())
        caption = f"The runs differ in attack or judge: {each}"
    return Grid(columns, tuple(rows), caption + _utility_metrics([model.results for model in shown]))


def terminal_table(runs: Sequence[Run]) -> RenderableType:
    """Table 1 for the terminal, 80 columns wide: percentages, and n wherever it is not that of the caption.

    More than two utility scores do not fit beside the rest and have a table of their own.
    """
    columns, rows, caption = grid(runs)
    same_n = len({row.n for row in rows}) == 1
    text = f"Percent. n = {rows[0].n} unsafe / benign questions." if same_n else "Percent."
    if any(cell.unscored for row in rows for cell in row.cells.values()):
        text += " A smaller n below a rate: the other questions are unscored."

    def table(shown: Sequence[Column], with_n: bool, caption: str) -> Table:
        table = terminal(caption)
        table.add_column(Text("model"), overflow="fold")
        if with_n:
            table.add_column(Text("n"), justify="right")
        for column in shown:
            table.add_column(Text(f"{column.head}\n{plain(column.under)}"), justify="right", overflow="fold")
        for row in rows:
            cells = [row.cells[column].percent + row.cells[column].scored for column in shown]
            table.add_row(*map(Text, [plain(row.label), *([row.n] if with_n else []), *cells]))
        return table

    caption = f"{text} {caption}"
    if len(columns) <= len(SAFETY) + 2:
        return table(columns, not same_n, caption)
    return Group(table(SAFETY, not same_n, ""), table(columns[len(SAFETY) :], False, caption))


def start_vs_aligned(results: Mapping[str, Any]) -> Table:
    """The starting and the aligned model side by side, before and after the attack, with 95 % intervals.

    Fits 80 columns. Of a run in which nothing was trained or loaded, the starting model stands alone.
    """
    name = plain(str(results.get("name") or results.get("method")))
    untrained = results.get("method") == "start"
    start, aligned = (results, {}) if untrained else (results.get("start") or {}, results)
    caption = _caption(results) + _utility_metrics([start, aligned])
    table = terminal(f"Percent, with 95 % intervals; n= below a rate: its scored questions. {caption}")
    which = "the starting model" if untrained else "the starting model and the aligned one"
    table.title = Text(f"{name}: {which}", style="bold")
    table.padding = (0, 0, 0, 0)  # the widest cells just fit
    table.add_column(Text("questions"), no_wrap=True)
    for head in ("start\nbefore", "start\nafter", "aligned\nbefore", "aligned\nafter"):
        table.add_column(Text(head), justify="right")
    sections: dict[str, dict[str, list[Cell]]] = {
        side: {
            measure if measure == "helpful" else measure.upper(): [
                cell_of(model, Column("", when, side, measure, "neither"))
                for model in (start, aligned)
                for when in ("before", "after")
            ]
            for measure in measures
        }
        for side, measures in {"unsafe": ("asr", "rr", "ir"), "benign": ("rr", "ir", "helpful")}.items()
    }
    sections["utility"] = {
        "\n  ".join(wrap(plain(column.under), 18)): [cell_of(start, column), Cell(), cell_of(aligned, column), Cell()]
        for column in _utility_columns([start, aligned])
    }
    for title, rows in sections.items():
        counts = sorted({cell.n for cells in rows.values() for cell in cells if cell.n})
        if not counts:
            continue
        table.add_row(Text(f"{title}\nn = {' or '.join(map(str, counts))}", style="bold"))
        for label, cells in rows.items():
            # "100" rather than "100.0" at the end of an interval: with it the widest cell fits 80 columns.
            texts = (cell.interval.replace("-100.0)", "-100)") + cell.scored for cell in cells)
            table.add_row(Text(f"  {label}"), *map(Text, texts), end_section=label == list(rows)[-1])
    return table


def heads_of(columns: Sequence[Column]) -> list[tuple[Column, int]]:
    """For each head over neighbouring columns the first of them, and how many it spans."""
    groups = [list(group) for _, group in groupby(columns, key=lambda column: column.head)]
    return [(group[0], len(group)) for group in groups]


def percent(value: float | None) -> str:
    """`0.5498` as `55.0`, and a dash where nothing was measured."""
    return "-" if value is None else f"{100 * value:.1f}"


def plain(text: str) -> str:
    """The text on one line without control characters, so that a name cannot steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def terminal(caption: str) -> Table:
    """An empty table in the style of all tables here."""
    return Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", caption=Text(caption),
        caption_justify="left",
    )  # fmt: skip


def attack_of(summary: Mapping[str, Any] | None) -> str:
    """The attack of one side of results.json in words: `rewrite x 3, word "what's"`."""
    attack = (summary or {}).get("attack") or {}
    how = " x ".join(str(attack[key]) for key in ("kind", "shots") if attack.get(key) is not None)
    return plain(", ".join(part for part in (how, f'word "{attack["word"]}"' if attack.get("word") else "") if part))


def _caption(results: Mapping[str, Any]) -> str:
    sides = {side: results[side] for side in SIDES if results.get(side)}
    if not sides:
        return "No questions were asked under attack."
    attacks = "; ".join(f"{side}: {attack_of(summary)}" for side, summary in sides.items())
    judges = ", ".join(dict.fromkeys(plain(str(summary.get("judge", "unknown"))) for summary in sides.values()))
    servers = []  # models that wrote the answers where it was not the run's own
    for summary in sides.values():
        generation = summary.get("generation") or {}
        if (engine := generation.get("engine", "hf")) != "hf":
            servers.append(plain(f"{generation.get('model', 'unknown')} at {generation.get('base_url', engine)}"))
    return (
        f"ASR and IR on unsafe, RR and helpful on benign questions. After = under attack ({attacks}). Judge: {judges}."
        + (f" Answers by {', '.join(dict.fromkeys(servers))}." if servers else "")
    )


def _utility_columns(models: Sequence[Mapping[str, Any]]) -> list[Column]:
    names = dict.fromkeys(name for model in models for name in model.get("utility") or {})
    return [Column("utility", name, "utility", name, "higher") for name in names]


def _utility_metrics(models: Sequence[Mapping[str, Any]]) -> str:
    """What each utility score is, as a sentence to add: `Utility: mini is accuracy, n = 200.`"""
    metrics = []
    for name in (column.measure for column in _utility_columns(models)):
        scores = [model["utility"][name] for model in models if name in (model.get("utility") or {})]
        metric, n = (
            " or ".join(dict.fromkeys(plain(str(score.get(key, "unknown"))) for score in scores))
            for key in ("metric", "n")
        )
        metrics.append(f"{plain(name)} is {metric}, n = {n}")
    return f" Utility: {'; '.join(metrics)}." if metrics else ""
