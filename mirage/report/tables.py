"""Table 1 and its relatives: one grid of measured cells, and how the terminal shows it. `markup` writes it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mirage.report.runs import SIDES, Run, named_utility, starts
from mirage.stats import Rate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


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
    """A measured rate with the questions it is over."""

    rate: Rate
    n: int  # unscored included
    unscored: int


class Row(NamedTuple):
    """One model: its name, and one cell a column (None: not measured)."""

    label: str
    cells: tuple[Cell | None, ...]
    n: tuple[int | None, int | None]  # unsafe and benign questions


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


def cell_of(model: Mapping[str, Any], column: Column) -> Cell | None:
    """What `model` (results.json, or its `start`) says in `column`, or None where it was not measured."""
    if column.side == "utility":
        benchmark = (model.get("utility") or {}).get(column.measure)
        if not benchmark:
            return None
        return Cell(_rate(benchmark["score"]), benchmark.get("n", 0), benchmark.get("unscored", 0))
    block = ((model.get(column.side) or {}).get(column.under)) or {}
    if column.measure not in block:
        return None
    return Cell(_rate(block[column.measure]), block["n"], block["unscored"])


def grid(runs: Sequence[Run]) -> Grid:
    """Table 1 in its small form: every starting model once, then a row a run."""
    models = [(start.label, start.run.results["start"]) for start in starts(runs)]
    models += [(run.label, run.results) for run in runs]
    benchmarks = list(dict.fromkeys(name for _, model in models for name in model.get("utility") or {}))
    columns = (*SAFETY, *(Column("utility", name, "utility", name, "higher") for name in benchmarks))
    rows = [
        Row(label, tuple(cell_of(model, column) for column in columns), _questions(model)) for label, model in models
    ]
    return Grid(columns, tuple(rows), _caption(runs) + _utility_of([model for _, model in models]))


def terminal_table(runs: Sequence[Run]) -> RenderableType:
    """Table 1 for the terminal, 80 columns wide: percentages, and n wherever it is not that of the caption.

    More than two utility scores do not fit beside the rest and have a table of their own.
    """
    from rich.console import Group
    from rich.text import Text

    columns, rows, caption = grid(runs)
    everywhere = rows[0].n if len({row.n for row in rows}) == 1 else None
    said = f" n = {counts_of(rows[0])} unsafe / benign questions." if everywhere else ""
    few = any(cell and cell.unscored for row in rows for cell in row.cells)
    said += " A smaller n below a rate: the other questions are unscored." if few else ""

    def table(shown: Sequence[int], counted: bool, caption: str) -> Table:
        table = terminal(caption)
        table.add_column(Text("model"), overflow="fold")
        if counted:
            table.add_column(Text("n"), justify="right")
        for at in shown:
            head = f"{columns[at].head}\n{plain(columns[at].under)}"
            table.add_column(Text(head), justify="right", overflow="fold")
        for row in rows:
            n = [Text(counts_of(row))] if counted else []
            cells = (row.cells[at] for at in shown)
            table.add_row(Text(plain(row.label)), *n, *(Text(percent_of(cell) + _scored(cell)) for cell in cells))
        return table

    every, said = range(len(columns)), f"Percent.{said} {caption}"
    if len(columns) <= len(SAFETY) + 2:
        return table(every, not everywhere, said)
    return Group(table(every[: len(SAFETY)], not everywhere, ""), table(every[len(SAFETY) :], False, said))


def start_vs_aligned(results: Mapping[str, Any]) -> Table:
    """The starting and the aligned model side by side, before and after the attack, with 95 % intervals."""
    from rich.text import Text

    results = named_utility(results)
    name, said = plain(str(results.get("name") or results.get("method"))), _caption_of(results)
    start = results.get("start") or {}
    if results.get("method") == "start":
        start, results = results, {}  # nothing was trained or loaded: what was measured is the starting model
    said += _utility_of([start, results])
    table = terminal("Percent, with 95 % intervals; n= below a rate: its scored questions. " + said)
    models = "the starting model and the aligned one" if results else "the starting model"
    table.title = Text(f"{name}: {models}", style="bold")
    table.add_column(Text("questions"), overflow="fold")
    for head in ("start\nbefore", "start\nafter", "aligned\nbefore", "aligned\nafter"):
        table.add_column(Text(head), justify="right")

    def add(label: str, cells: Sequence[Cell | None], end: bool) -> None:
        table.add_row(Text(label), *(Text(with_interval(cell) + _scored(cell)) for cell in cells), end_section=end)

    for side, measures in {"unsafe": ("asr", "rr", "ir"), "benign": ("rr", "ir", "helpful")}.items():
        if not start.get(side) and not results.get(side):
            continue
        for measure in measures:
            head = measure if measure == "helpful" else measure.upper()
            cells = [
                cell_of(model, Column(head, when, side, measure, "neither"))
                for model in (start, results)
                for when in ("before", "after")
            ]
            n = next((cell.n for cell in cells if cell), 0)
            if measure == measures[0]:
                table.add_row(Text(f"{side}, n = {n}", style="bold"))
            add(f"  {head}", cells, measure == measures[-1])
    scores = {
        name: [cell_of(model, Column("utility", name, "utility", name, "higher")) for model in (start, results)]
        for name in dict.fromkeys([*(start.get("utility") or {}), *(results.get("utility") or {})])
    }
    counts = {cell.n for cells in scores.values() for cell in cells if cell}
    if scores:
        table.add_row(Text(f"utility, n = {counts.pop()}" if len(counts) == 1 else "utility", style="bold"))
        table.columns[0].min_width = min(20, 2 + max(map(len, scores)))
    for benchmark, (before, after) in scores.items():
        add(f"  {plain(benchmark)}", (before, None, after, None), benchmark == list(scores)[-1])
    return table


def heads_of(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The heads over the columns, each with the number of neighbouring columns that it spans."""
    heads: list[tuple[str, int]] = []
    for column in columns:
        if heads and heads[-1][0] == column.head:
            heads[-1] = (column.head, heads[-1][1] + 1)
        else:
            heads.append((column.head, 1))
    return heads


def percent(value: float | None) -> str:
    """`0.5498` as `55.0`, and a dash where nothing was measured."""
    return "-" if value is None else f"{100 * value:.1f}"


def plain(text: str) -> str:
    """The text on one line without control characters, so that a name cannot steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def terminal(caption: str) -> Table:
    """An empty table in the style of all tables here."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        caption=Text(caption),
        caption_justify="left",
    )


def attack_of(summary: Mapping[str, Any] | None) -> str:
    """The attack of one side of results.json in words: `rewrite x 3, word "what's"`."""
    attack = (summary or {}).get("attack") or {}
    how = " x ".join(str(attack[key]) for key in ("kind", "shots") if attack.get(key) is not None)
    return plain(", ".join(part for part in (how, f'word "{attack["word"]}"' if attack.get("word") else "") if part))


def _caption(runs: Sequence[Run]) -> str:
    said = list(dict.fromkeys(_caption_of(run.results) for run in runs))
    return (
        said[0]
        if len(said) == 1
        else "The runs differ in attack or judge: "
        + "; ".join(f"{plain(run.label)}: {_caption_of(run.results)}" for run in runs)
    )


def _caption_of(results: Mapping[str, Any]) -> str:
    sides = [(side, results[side]) for side in SIDES if results.get(side)]
    if not sides:
        return "No questions were asked under attack."
    attacks = "; ".join(f"{side}: {attack_of(summary)}" for side, summary in sides)
    judges = ", ".join(dict.fromkeys(plain(str(summary.get("judge", "unknown"))) for _, summary in sides))
    served = dict.fromkeys(writer for _, summary in sides if (writer := _server_of(summary)))
    return (
        f"ASR and IR on unsafe, RR and helpful on benign questions. After = under attack ({attacks}). Judge: {judges}."
        + (f" Answers by {', '.join(served)}." if served else "")
    )


def _server_of(summary: Mapping[str, Any]) -> str | None:
    """The model and server that wrote the answers, where it was not the run's own model."""
    generation = summary.get("generation") or {}
    if generation.get("engine", "hf") == "hf":
        return None
    return plain(f"{generation.get('model', 'unknown')} at {generation.get('base_url', generation['engine'])}")


def _utility_of(models: Sequence[Mapping[str, Any]]) -> str:
    """What each utility score is, as a sentence to add: `Utility: mini is accuracy (n = 200).`"""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for model in models:
        for name, score in (model.get("utility") or {}).items():
            found.setdefault(name, []).append(score)
    told = [
        f"{plain(name)} is {_either(scores, 'metric')}, n = {_either(scores, 'n')}" for name, scores in found.items()
    ]
    return f" Utility: {'; '.join(told)}." if told else ""


def _either(scores: Sequence[Mapping[str, Any]], key: str) -> str:
    return " or ".join(dict.fromkeys(plain(str(score.get(key, "unknown"))) for score in scores))


def _rate(value: Mapping[str, Any]) -> Rate:
    return Rate(value["rate"], value["low"], value["high"])


def _questions(model: Mapping[str, Any]) -> tuple[int | None, int | None]:
    unsafe, benign = (((model.get(side) or {}).get("before") or {}).get("n") for side in SIDES)
    return unsafe, benign


def counts_of(row: Row) -> str:
    """How many unsafe and benign questions a row is over: `442 / 558`."""
    return " / ".join("-" if n is None else str(n) for n in row.n)


def percent_of(cell: Cell | None) -> str:
    """A cell's rate in percent, or a dash."""
    return percent(cell.rate.rate if cell else None)


def with_interval(cell: Cell | None) -> str:
    """A cell's rate in percent with its 95 % interval, or a dash."""
    if cell is None or cell.rate.rate is None:
        return "-"
    if cell.rate.low is None:
        return percent(cell.rate.rate)
    return f"{percent(cell.rate.rate)} ({percent(cell.rate.low)}-{percent(cell.rate.high)})"


def _scored(cell: Cell | None) -> str:
    """On a line of its own the questions that the rate is over, where some of n are unscored."""
    return f"\nn={cell.n - cell.unscored}" if cell and cell.unscored else ""
