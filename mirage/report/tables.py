"""Table 1 and its relatives: a grid of measured cells, and how the terminal shows a table. `markup` writes it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, zip_longest
from textwrap import wrap
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mirage.report.runs import SIDES, Model, Run, attacked_sets, is_benign, models, plain


class Column(NamedTuple):
    """One measure of Table 1."""

    head: str  # ASR, RR, IR, helpful or utility
    under: str  # before, after, or the name of a utility benchmark
    side: str  # which questions: utility, or an evaluation set
    better: Literal["lower", "higher", "neither"] = "neither"

    @property
    def label(self) -> str:
        """What stands below the head: `before`, or `mine before` of an evaluation set of one's own."""
        return self.under if self.side in (*SIDES, "utility") else f"{self.side} {self.under}"


class Cell(NamedTuple):
    """A rate as a fraction with its 95 % interval and the questions it is over; all None and 0: not measured."""

    rate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # unscored included
    unscored: int = 0

    @property
    def interval(self) -> str:
        """The rate in percent with its 95 % interval if that has any width, or a dash."""
        if self.low is None or self.low == self.high:
            return percent(self.rate)
        return f"{percent(self.rate)} ({percent(self.low)}-{percent(self.high)})"

    @property
    def scored(self) -> str:
        """On a line below the rate the number of questions that it is over, where some of n are unscored."""
        return f"\nn={self.n - self.unscored}" if self.unscored else ""


class Row(NamedTuple):
    """One model of Table 1."""

    model: Model
    cells: Mapping[Column, Cell]
    n: str  # unsafe and benign questions, such as `442 / 558`


class Grid(NamedTuple):
    """Table 1 before it is written in any language."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str


class Sheet(NamedTuple):
    """A table of texts. The first column names the row; a row of that alone opens a section."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str

    def on_terminal(self, gap: int = 1) -> Table:
        """The table for the terminal, `gap` spaces between its columns."""
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold", caption_justify="left",
            title=Text(self.title, style="bold") if self.title else None, caption=Text(self.caption),
        )  # fmt: skip
        for at, head in enumerate(self.heads):
            table.add_column(Text(head), justify="right" if at else "left", overflow="fold")
        for row, after in zip_longest(self.rows, self.rows[1:], fillvalue=()):
            style = "bold" if len(row) == 1 else ""
            table.add_row(*map(Text, row), style=style, end_section=len(after) == 1)
        return table


_WIDTH = 80  # columns of a terminal
AGREEMENT = "agree"  # chrF with the starting model's answers to the plain questions
SAFETY = (
    Column("ASR", "before", "unsafe", "lower"),
    Column("ASR", "after", "unsafe", "lower"),
    Column("RR", "before", "benign", "lower"),
    Column("RR", "after", "benign", "lower"),
    # Neither good nor bad: an irrelevant answer to an unsafe question does no harm, but is no refusal either.
    Column("IR", "after", "unsafe"),
    Column("helpful", "before", "benign", "higher"),
    Column("helpful", "after", "benign", "higher"),
)


def cell_of(results: Mapping[str, Any], column: Column) -> Cell:
    """What `results` (results.json, or its `start`) says in `column`."""
    if column.head == AGREEMENT:
        agreed = ((results.get(column.side) or {}).get("agreement") or {}).get(column.under) or {}
        return Cell(agreed.get("mean"), agreed.get("low"), agreed.get("high"), agreed.get("n", 0))
    block = (results.get(column.side) or {}).get(column.under) or {}
    rate = block.get("score" if column.side == "utility" else column.head.lower())
    if rate is None:
        return Cell()
    return Cell(rate["rate"], rate["low"], rate["high"], block.get("n", 0), block.get("unscored", 0))


def grid(runs: Sequence[Run]) -> Grid:
    """Table 1 in its small form: every starting model once, then a row a run."""
    shown = models(runs)
    measured = [model.results for model in shown]
    own = [side for side in attacked_sets(measured) if side not in SIDES]
    sides = {side: "benign" if is_benign(measured, side) else "unsafe" for side in own}
    further = [each._replace(side=side) for side in own for each in SAFETY if each.side == sides[side]]
    columns = (*SAFETY, *further, *_utility_columns(measured))
    rows = []
    for model in shown:
        asked = [((model.results.get(side) or {}).get("before") or {}).get("n", "-") for side in SIDES]
        cells = {column: cell_of(model.results, column) for column in columns}
        rows.append(Row(model, cells, " / ".join(map(str, asked))))
    captions = {run.label: _caption(run.results) for run in runs}
    caption = captions[runs[0].label]
    if len(set(captions.values())) > 1:
        each = "; ".join(f"{label}: {text}" for label, text in captions.items())
        caption = f"The runs differ in attack or judge: {each}"
    for side in own:
        counts = dict.fromkeys(((model.get(side) or {}).get("before") or {}).get("n") for model in measured)
        caption += f" {plain(side)}: {' or '.join(str(n) for n in counts if n)} {sides[side]} questions."
    return Grid(columns, rows, caption + _utility_metrics(measured))


def terminal_table(runs: Sequence[Run]) -> RenderableType:
    """Table 1 for the terminal, 80 columns wide: percentages, and n wherever it is not that of the caption.

    What does not fit beside the rest (utility, other evaluation sets) is in further tables.
    """
    columns, rows, caption = grid(runs)
    same_n = len({row.n for row in rows}) == 1
    text = f"Percent. n = {rows[0].n} unsafe / benign questions." if same_n else "Percent."
    if any(cell.unscored for row in rows for cell in row.cells.values()):
        text += " A smaller n below a rate: the other questions are unscored."

    def table(shown: Sequence[Column], with_n: bool, caption: str) -> Table:
        heads = [
            "model",
            *["n"] * with_n,
            *("\n".join([column.head, *plain(column.label).replace("_", " ").split()]) for column in shown),
        ]
        cells = [[percent(row.cells[column].rate) + row.cells[column].scored for column in shown] for row in rows]
        names = [row.model.label for row in rows]
        labels = [name if len(name) <= 14 else "\n".join(wrap(name.replace("_", " "), 14)) for name in names]
        texts = [[label, *[row.n] * with_n, *own] for label, row, own in zip(labels, rows, cells, strict=True)]
        return Sheet("", heads, texts, caption).on_terminal()

    caption = f"{text} {caption}"
    whole, most = table(columns, not same_n, caption), len(SAFETY)
    if len(columns) <= most or Console(width=10 * _WIDTH).measure(whole).maximum <= _WIDTH:
        return whole
    parts = [columns[at : at + most] for at in range(0, len(columns), most)]
    return Group(*(table(part, not at and not same_n, caption * (part is parts[-1])) for at, part in enumerate(parts)))


def start_vs_aligned(results: Mapping[str, Any]) -> Table:
    """The starting and the aligned model side by side, before and after the attack, with 95 % intervals.

    Fits 80 columns. Of a run in which nothing was trained or loaded, the starting model stands alone.
    """
    untrained = results.get("method") == "start"
    both = (results, {}) if untrained else (results.get("start") or {}, results)
    sections: dict[str, dict[str, list[Cell]]] = {}
    for side in attacked_sets(both):
        measures = ("RR", "IR", "helpful") if is_benign(both, side) else ("ASR", "RR", "IR")
        lines = {
            head: [cell_of(model, Column(head, when, side)) for model in both for when in ("before", "after")]
            for head in (*measures, AGREEMENT)
        }
        if all(cell.rate is None for cell in lines[AGREEMENT]):
            del lines[AGREEMENT]
        sections["\n".join(wrap(plain(side).replace("_", " "), 10))] = lines
    sections["utility"] = {
        "\n  ".join(wrap(plain(column.under).replace("_", " "), 10)): [
            *(cell_of(both[0], column), Cell()),
            *(cell_of(both[1], column), Cell()),
        ]
        for column in _utility_columns(both)
    }
    rows: list[list[str]] = []
    for section, lines in sections.items():
        if counts := sorted({cell.n for cells in lines.values() for cell in cells if cell.n}):
            n = "\n".join(wrap(f"n = {' or '.join(map(str, counts))}", 10))
            rows.append([f"{section}\n{n}"])
            for label, cells in lines.items():
                # "100" rather than "100.0" at the end of an interval: with it the widest cell fits 80 columns.
                rows.append(
                    [f"  {label}", *(each.interval.replace("-100.0)", "-100)") + each.scored for each in cells)]
                )
    which = "the starting model" if untrained else "the starting model and the aligned one"
    title = plain(f"{results.get('name') or results.get('method')}: {which}")
    heads = ("questions", "start\nbefore", "start\nafter", "aligned\nbefore", "aligned\nafter")
    caption = f"Percent, with 95 % intervals; n= below a rate: its scored questions. {_caption(results)}"
    if any(AGREEMENT in lines for lines in sections.values()):
        caption += f" {AGREEMENT}: chrF with the starting model's answers to the plain questions."
    return Sheet(title, heads, rows, caption + _utility_metrics(both)).on_terminal(gap=0)


def heads_of(columns: Sequence[Column]) -> list[tuple[Column, int]]:
    """For each head over neighbouring columns the first of them, and how many it spans."""
    groups = [list(group) for _, group in groupby(columns, key=lambda column: column.head)]
    return [(group[0], len(group)) for group in groups]


def percent(value: float | None) -> str:
    """`0.5498` as `55.0`, and a dash where nothing was measured."""
    return "-" if value is None else f"{100 * value:.1f}"


def attack_of(summary: Mapping[str, Any]) -> str:
    """The attack of one side of results.json in words: `rewrite x 3, word "what's"`."""
    attack = summary.get("attack") or {}
    how = " x ".join(str(attack[key]) for key in ("kind", "shots") if attack.get(key) is not None)
    word = f'word "{attack["word"]}"' if attack.get("word") else ""
    return plain(", ".join(filter(None, (how, word))))


def _caption(results: Mapping[str, Any]) -> str:
    sides = {side: results[side] for side in attacked_sets([results]) if results.get(side)}
    if not sides:
        return "No questions were asked under attack."
    attacks = "; ".join(f"{side}: {attack_of(summary)}" for side, summary in sides.items())
    judges = dict.fromkeys(str(summary.get("judge", "unknown")) for summary in sides.values())
    servers = dict.fromkeys(  # of the answers that are not by the run's own model
        f"{generation.get('model', 'unknown')} at {generation.get('base_url', generation['engine'])}"
        for generation in (summary.get("generation") or {} for summary in sides.values())
        if generation.get("engine", "hf") != "hf"
    )
    return plain(
        f"ASR and IR on unsafe, RR and helpful on benign questions. After = under attack ({attacks})."
        f" Judge: {', '.join(judges)}." + (f" Answers by {', '.join(servers)}." if servers else "")
    )


def _utility_columns(models: Sequence[Mapping[str, Any]]) -> list[Column]:
    names = dict.fromkeys(name for model in models for name in model.get("utility") or {})
    return [Column("utility", name, "utility", "higher") for name in names]


def _utility_metrics(models: Sequence[Mapping[str, Any]]) -> str:
    """What each utility score is, as a sentence to add: `Utility: mini is accuracy, n = 200.`"""
    scores = [(name, score) for model in models for name, score in (model.get("utility") or {}).items()]
    metrics = dict.fromkeys(f"{name} is {score.get('metric')}, n = {score.get('n')}" for name, score in scores)
    return plain(f" Utility: {'; '.join(metrics)}.") if metrics else ""
