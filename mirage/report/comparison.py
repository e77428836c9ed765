"""Two runs on the same questions: a paired test for each measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mirage.evaluation.run.counting import question_verdict, shots_by_question
from mirage.report.markup import markdown, markdown_row
from mirage.report.runs import SIDES, Run
from mirage.report.tables import attack_of, percent, plain, terminal
from mirage.schema import Record, Verdict
from mirage.stats import McNemar, mcnemar

if TYPE_CHECKING:
    from rich.table import Table

MEASURES = (
    ("ASR", "unsafe", Verdict.COMPLIED),
    ("RR", "benign", Verdict.REFUSED),
    ("helpful", "benign", Verdict.COMPLIED),
)


class Difference(NamedTuple):
    """One measure of two runs on the questions that both scored."""

    title: str
    n: int  # questions scored in both runs
    skipped: int  # questions unscored in either run
    test: McNemar  # `before` is the first run, `after` the second

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """The share of the n questions in the first and in the second run."""
        if self.n == 0:
            return None, None
        return (self.test.both + self.test.only_before) / self.n, (self.test.both + self.test.only_after) / self.n


class Comparison(NamedTuple):
    """Two runs, measure by measure."""

    first: str
    second: str
    differences: tuple[Difference, ...]
    note: str


def compare(run_a: Run, run_b: Run) -> Comparison:
    """McNemar's exact test of ASR, RR and helpful, before and after the attack, over the questions of both runs.

    A question that is unscored in either run is left out and counted, never taken as safe.

    Raises:
        ValueError: If the runs share no eval_set with records, have other ids or other questions under the same ids,
            or were judged differently (two instruments cannot be compared).
    """
    differences: list[Difference] = []
    notes: list[str] = []
    for side in SIDES:
        lacking = [run.label for run in (run_a, run_b) if side not in run.records]
        if lacking:
            notes.append(f"No {side} questions are compared: {' and '.join(lacking)} has no records of them.")
            continue
        judges = [run.results[side].get("judge") for run in (run_a, run_b)]
        if judges[0] != judges[1]:
            raise ValueError(
                f"{run_a.label} and {run_b.label}: the {side} answers were judged by {judges[0]} and by {judges[1]},"
                " and two instruments cannot be compared. Judge one of them again with the judge of the other."
            )
        attacks = [attack_of(run.results[side]) for run in (run_a, run_b)]
        if attacks[0] != attacks[1]:
            notes.append(f"The attacks on {side} questions differ: {attacks[0]} and {attacks[1]}.")
        written = [run.results[side].get("generation") or {} for run in (run_a, run_b)]
        if differing := [key for key in {**written[0], **written[1]} if written[0].get(key) != written[1].get(key)]:
            told = (", ".join(f"{key} {one.get(key)}" for key in differing) for one in written)
            notes.append(f"The {side} answers were written differently: {' and '.join(told)}.")
        _same_questions(run_a, run_b, side)
        shots = [shots_by_question(run.records[side]) for run in (run_a, run_b)]
        for title, where, verdict in MEASURES:
            if where != side:
                continue
            before = [{id: own[0] for id, own in of.items()} for of in shots]
            after = [{id: question_verdict(own[1:], side == "unsafe") for id, own in of.items()} for of in shots]
            differences.append(_difference(f"{title} before", before, verdict))
            differences.append(_difference(f"{title} after", after, verdict))
    if not differences:
        raise ValueError(
            f"{run_a.label} and {run_b.label} have no records of the same eval_set: nothing can be paired."
        )
    notes.append("Rates in percent of the n questions that both runs scored; 'only' counts those that differ.")
    notes.append(f"p is two-sided and not adjusted for the {len(differences)} tests.")
    return Comparison(run_a.label, run_b.label, tuple(differences), " ".join(notes))


def comparison_table(comparison: Comparison) -> Table:
    """The paired tests for the terminal: both rates, the discordant counts and p."""
    from rich.text import Text

    first, second = plain(comparison.first), plain(comparison.second)
    table = terminal(comparison.note)
    table.title = Text(f"{first} against {second}: McNemar's exact test", style="bold")
    for i, head in enumerate(comparison_heads(comparison)):
        table.add_column(Text(plain(head)), justify="right" if i else "left", overflow="fold", no_wrap=i == 0)
    for row in comparison_rows(comparison):
        table.add_row(*(Text(cell) for cell in row))
    return table


def comparison_heads(comparison: Comparison) -> list[str]:
    """The heads of the columns that `comparison_rows` fills."""
    first, second = comparison.first, comparison.second
    return ["measure", "n", "left out", first, second, f"only {first}", f"only {second}", "p"]


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """The cells of the table: measure, n, left out, rate of each run, the two discordant counts, p."""
    return [
        [
            difference.title,
            str(difference.n),
            str(difference.skipped),
            *(percent(rate) for rate in difference.rates),
            str(difference.test.only_before),
            str(difference.test.only_after),
            p_value(difference.test.p) if difference.n else "-",
        ]
        for difference in comparison.differences
    ]


def comparison_markdown(comparison: Comparison) -> str:
    """The paired tests in Markdown, after a heading."""
    heads = comparison_heads(comparison)
    lines = [markdown_row(heads), markdown_row(["---"] + ["---:"] * (len(heads) - 1), escape=False)]
    lines += [markdown_row(row) for row in comparison_rows(comparison)]
    return "\nMcNemar's exact test\n\n" + "\n".join(lines) + f"\n\n{markdown(comparison.note)}\n"


def p_value(p: float) -> str:
    """`< 0.001`, or three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _difference(title: str, pair: Sequence[Mapping[str, Verdict]], verdict: Verdict) -> Difference:
    unscored = {id for of in pair for id, own in of.items() if own is Verdict.UNSCORED}
    first, second = ({id: own is verdict for id, own in of.items() if id not in unscored} for of in pair)
    return Difference(title, len(first), len(unscored), mcnemar(first, second))


def _same_questions(run_a: Run, run_b: Run, side: str) -> None:
    first, second = (_plain_questions(run.records[side]) for run in (run_a, run_b))
    if first.keys() != second.keys():
        told = [
            f"only in {run.label}: {', '.join(ids[:10])}" + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
            for run, ids in (
                (run_a, sorted(first.keys() - second.keys())),
                (run_b, sorted(second.keys() - first.keys())),
            )
            if ids
        ]
        raise ValueError(
            f"{side}: a paired test needs the same questions in both runs, but {'; '.join(told)}. Evaluate both with"
            " the same data, limit and seed."
        )
    changed = [id for id in first if first[id] != second[id]]
    if changed:
        raise ValueError(
            f"{side}: question {changed[0]} (and {len(changed) - 1} others) reads differently, or is about another picture,"
            f" in {run_a.label} and {run_b.label}. Evaluate both with the same data."
        )


def _plain_questions(records: Sequence[Record]) -> dict[str, tuple[str, str | None]]:
    return {record.id: (record.question, record.image) for record in records if record.shot == 0}
